"""Encoder tasks give the answers their definitions give: plain loops, scikit-learn, planted truth, chance."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_fscore_support

from evaluation.classifiers import LinearProbe, class_means, macro_scores, nearest
from evaluation.encoder_tasks import (
    DAY_US,
    Truth,
    classification,
    labels,
    own,
    pool_retrieval,
    query_retrieval,
    recall,
    together,
    variants,
)
from evaluation.science.encoders.model_free import unit


def values(measurements):
    return {one.name: (one.value, one.n) for one in measurements}


def rows_of(truth):
    return [set(truth.rows[a:b].tolist()) for a, b in zip(truth.offsets[:-1], truth.offsets[1:], strict=True)]


def recall_by_all_orders(score, relevant, k):
    """Mean over every order of the candidates that respects the scores: the definition, ties included."""
    orders = [
        order
        for order in permutations(range(len(score)))
        if all(score[a] >= score[b] for a, b in zip(order[:-1], order[1:], strict=True))
    ]
    return np.mean([len(set(order[:k]) & relevant) / len(relevant) for order in orders])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_recall_is_the_mean_over_all_orders_of_the_ties(seed, among_themselves):
    rng = np.random.default_rng(seed)
    items = 6
    candidate = rng.integers(-1, 2, (items, 2)).astype(np.float32)
    query = candidate if among_themselves else rng.integers(-1, 2, (4, 2)).astype(np.float32)
    wanted = [set(rng.permutation(items)[: rng.integers(0, 4)].tolist()) for _ in range(len(query))]
    if among_themselves:
        wanted = [one - {q} for q, one in enumerate(wanted)]
    pairs = [(q, row) for q, one in enumerate(wanted) for row in one]
    truth = Truth.of(*np.array(pairs, dtype=np.int64).reshape(-1, 2).T, len(query))
    assert rows_of(truth) == wanted

    expected = {1: [], 5: [], 10: []}
    for q in range(len(query)):
        relevant = {row for row in wanted[q] if candidate[row].any()}
        if not relevant or not query[q].any():
            continue
        others = [row for row in range(items) if not (among_themselves and row == q)]
        score = [float(query[q] @ candidate[row]) for row in others]
        for k, found in expected.items():
            found.append(recall_by_all_orders(score, {others.index(row) for row in relevant}, k))
    found = values(recall("t", query, candidate, truth, among_themselves, "test"))
    if not expected[1]:
        assert found == {}
        return
    for k, each in expected.items():
        value, n = found[f"encoder/t/recall@{k}"]
        assert value == pytest.approx(np.mean(each), abs=1e-9) and n == len(each)
        chance = min(1, k / (items - among_themselves))
        assert found[f"encoder/chance/t/recall@{k}"] == (pytest.approx(chance), len(each))


def test_recall_does_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((50, 8)))
    truth = variants(np.arange(50) // 3)
    whole = values(recall("t", vectors, vectors, truth, True, "test"))
    monkeypatch.setattr("evaluation.encoder_tasks.BLOCK", 7)
    assert values(recall("t", vectors, vectors, truth, True, "test")) == whole


def test_constant_vectors_find_what_chance_finds():
    same = np.ones((40, 3), dtype=np.float32)
    found = values(recall("t", same, same, variants(np.arange(40) // 4), True, "test"))
    for k in (1, 5, 10):
        assert found[f"encoder/t/recall@{k}"][0] == pytest.approx(k / 39)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=15))
def test_variants_are_the_other_items_of_the_product(spu):
    expected = [{b for b in range(len(spu)) if b != a and spu[b] == spu[a]} for a in range(len(spu))]
    truth = variants(np.array(spu))
    assert rows_of(truth) == expected and truth.queries == sum(bool(one) for one in expected)
    assert rows_of(own(len(spu))) == [{a} for a in range(len(spu))]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), max_size=25))
def test_together_counts_users_who_bought_both_on_one_day(log):
    expected = {}
    for user in range(4):
        bought = {
            (min(a, b), max(a, b))
            for who, day, a in log
            for who2, day2, b in log
            if who == who2 == user and day == day2 and a != b
        }
        for pair in bought:
            expected[pair] = expected.get(pair, 0) + 1
    user, day, code = np.array(log, dtype=np.int64).reshape(-1, 3).T
    hour = np.arange(len(log)) % 24 * (DAY_US // 24)
    pairs, users = together(user, day * DAY_US + hour, code)
    assert {tuple(pair): n for pair, n in zip(pairs.tolist(), users.tolist(), strict=True)} == expected


def test_each_task_asks_what_its_name_says():
    """One-hot views: whatever equals the target's view is found, and nothing else."""
    axis = np.eye(6, dtype=np.float32)
    nothing = np.zeros((6, 6), dtype=np.float32)
    spu = np.array([0, 0, 1, 1, 2, 3])
    sibling = axis[[1, 0, 3, 2, 4, 5]]
    bought = Truth.of(np.array([4, 5]), np.array([5, 4]), 6)

    def asked(**views):
        base = {"item": nothing, "image": nothing, "text": nothing, "title": nothing}
        return values(pool_retrieval({**base, **views}, variants(spu), bought, "test"))

    found = asked(item=axis, image=axis, title=sibling)
    assert found["encoder/image_to_item/own/recall@1"] == (1.0, 6)
    assert found["encoder/title_to_item/own/recall@1"] == (pytest.approx(2 / 6), 6)
    assert found["encoder/title_to_item/variants/recall@1"] == (1.0, 4)
    assert found["encoder/item_to_item/bought_together/recall@1"] == (pytest.approx(1 / 5), 2)
    assert "encoder/text_to_item/own/recall@1" not in found, "no text, no measurement"
    assert "encoder/image_to_text/own/recall@1" not in found
    found = asked(item=nothing, image=axis, text=axis)
    assert found["encoder/image_to_text/own/recall@1"] == found["encoder/text_to_image/own/recall@1"]
    assert found["encoder/image_to_text/own/recall@1"] == (1.0, 6)
    assert "encoder/image_to_item/own/recall@1" not in found
    assert found["encoder/image_to_image/variants/recall@1"][1] == 4


def test_queries_are_measured_by_kind():
    query, candidate = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[0, 2, 1]]
    found = values(query_retrieval(["image", "text", "image"], query, candidate, own(3), "test"))
    assert found["encoder/query_to_item/image/recall@1"] == (0.5, 2)
    assert found["encoder/query_to_item/text/recall@1"] == (0.0, 1)
    assert found["encoder/chance/query_to_item/text/recall@1"] == (pytest.approx(1 / 3), 1)


def blobs(rng, items, classes, width=8, noise=0.5):
    centres = np.random.default_rng(7).standard_normal((classes, width))
    label = np.arange(items) % classes
    return unit(centres[label] + noise * rng.standard_normal((items, width))), label


def test_the_probe_is_scikit_learns_logistic_regression():
    rng = np.random.default_rng(0)
    train, label = blobs(rng, 300, 4)
    test, _ = blobs(rng, 200, 4)
    for strength in (1e-4, 1e-3, 1e-1):
        probe = LinearProbe.fit(train, label, 4, strength)
        scaled = (train - probe.centre) * probe.scale
        assert np.mean(np.sum(scaled**2, axis=1)) == pytest.approx(1, abs=1e-5)
        other = LogisticRegression(C=1 / (len(train) * strength), tol=1e-8, max_iter=2000).fit(scaled, label)
        logits = (test - probe.centre) * probe.scale @ probe.weight.T + probe.bias
        mine = np.exp(logits - logits.max(axis=1, keepdims=True))
        theirs = other.predict_proba((test - probe.centre) * probe.scale)
        np.testing.assert_allclose(mine / mine.sum(axis=1, keepdims=True), theirs, atol=2e-3)
        assert (probe.predict(test) == logits.argmax(axis=1)).all()


def test_the_probe_does_not_depend_on_where_the_vectors_lie_or_how_far_apart():
    rng = np.random.default_rng(1)
    train, label = blobs(rng, 200, 3)
    test, _ = blobs(rng, 100, 3)
    plain = LinearProbe.fit(train, label, 3).predict(test)
    crowded = LinearProbe.fit(train * 0.01 + 1, label, 3).predict(test * 0.01 + 1)
    assert np.mean(plain == crowded) > 0.98
    constant = LinearProbe.fit(np.ones((6, 2), dtype=np.float32), np.array([0, 0, 0, 0, 1, 1]), 2)
    assert constant.predict(np.ones((1, 2), dtype=np.float32)).tolist() == [0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_macro_scores_equal_scikit_learn(pairs):
    truth, answer = np.array(pairs).T
    precision, recall_, f1, _ = precision_recall_fscore_support(
        truth, answer, labels=np.unique(truth), average="macro", zero_division=0
    )
    expected = {
        "accuracy": np.mean(truth == answer),
        "macro_precision": precision,
        "macro_recall": recall_,
        "macro_f1": f1,
    }
    assert macro_scores(truth, answer) == pytest.approx(expected)


def test_means_and_nearest():
    vectors = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    means = class_means(vectors, np.array([0, 0, 1]), 2)
    np.testing.assert_allclose(means, [[0.5, 0.5], [0, 1]])
    assert nearest(np.array([[1.0, 0.0], [0.1, 1.0]]), means * [[10], [1]]).tolist() == [0, 1]


def test_only_answers_that_can_be_learned_are_asked():
    question = labels("q", ["a"] * 5 + ["b"] * 6 + ["rare"] * 4 + [None], ["rare", "b", None, "new", "a"])
    assert question.classes == ["a", "b"]
    assert question.test.tolist() == [-1, 1, -1, -1, 0]
    assert question.train.tolist() == [0] * 5 + [1] * 6 + [-1] * 5
    assert labels("q", ["a"] * 9 + ["b"] * 4, ["a", "b"]) is None, "one class is no question"
    assert labels("q", ["a"] * 5 + ["b"] * 5, ["c", None]) is None, "nobody to ask"


def test_classification_of_planted_classes_and_its_chance():
    rng = np.random.default_rng(0)
    train, train_label = blobs(rng, 120, 3, noise=0.05)
    test, test_label = blobs(rng, 61, 3, noise=0.05)
    names = np.array(["x", "y", "z"])
    question = labels("category_1", [*names[train_label], "x"], [*names[test_label], None])
    train, test = np.vstack([train, train[:1]]), np.vstack([test, test[:1]])
    centre = unit(np.random.default_rng(7).standard_normal((3, 8)))
    found = values(classification(question, train, test, centre, "test"))
    for way in ("zero_shot", "nearest_mean", "probe"):
        assert found[f"encoder/category_1/{way}/accuracy"] == (1.0, 61)
    assert found["encoder/category_1/probe/macro_f1"] == (1.0, 61)
    assert found["encoder/chance/category_1/zero_shot/accuracy"][0] == pytest.approx(1 / 3)
    share = np.mean(test_label == 0)  # "x" is the commonest training class by one item
    assert found["encoder/chance/category_1/probe/accuracy"][0] == pytest.approx(share)
    assert found["encoder/chance/category_1/nearest_mean/accuracy"][0] == pytest.approx(share)
    assert found["encoder/chance/category_1/probe/macro_recall"][0] == pytest.approx(1 / 3)

    wrong = values(classification(question, train, test, centre[[1, 2, 0]], "test"))
    assert wrong["encoder/category_1/zero_shot/accuracy"][0] == 0.0
    centre[1] = 0
    unseen = values(classification(question, train, test, centre, "test"))
    assert not any("zero_shot" in name for name in unseen), "a name nobody can see is no prototype"
    assert not any("zero_shot" in name for name in values(classification(question, train, test, None, "t")))
    assert values(classification(question, train, 0 * test, None, "test")) == {}
    blind = np.where((question.train == 2)[:, None], 0, train)
    assert values(classification(question, blind, test, None, "test")) == {}, "a class nobody saw examples of"


def test_random_vectors_classify_no_better_than_chance():
    rng = np.random.default_rng(3)
    train, test = (unit(rng.standard_normal((n, 16))) for n in (400, 400))
    answer = [["a", "b"][int(rng.random() < 0.5)] for _ in range(800)]
    found = values(classification(labels("q", answer[:400], answer[400:]), train, test, None, "test"))
    assert abs(found["encoder/q/probe/accuracy"][0] - 0.5) < 0.1
    assert abs(found["encoder/q/nearest_mean/accuracy"][0] - 0.5) < 0.1


def test_what_a_classifier_holds_is_single_precision_and_constant_columns_weigh_nothing():
    rng = np.random.default_rng(2)
    train, label = blobs(rng, 120, 3)
    train[:, 2] = 0.25  # a word that every title has
    assert class_means(train, label, 3).dtype == np.float32
    probe = LinearProbe.fit(train, label, 3)
    assert probe.weight.dtype == probe.bias.dtype == probe.centre.dtype == np.float32
    assert probe.weight.shape == (3, train.shape[1]) and not probe.weight[:, 2].any()
    assert probe.weight[:, [0, 1, 3]].all()
    same = LinearProbe.fit(train, label, 3, strength=1e-4)
    np.testing.assert_array_equal(probe.weight, same.weight)
    assert not np.array_equal(probe.weight, LinearProbe.fit(train, label, 3, strength=1e-3).weight)
    spread = np.mean(np.sum((train - train.mean(axis=0)) ** 2, axis=1))
    assert probe.scale == pytest.approx(spread**-0.5, rel=1e-6)
    assert LinearProbe.fit(np.ones((4, 2), np.float32), np.array([0, 1, 0, 1]), 2).scale == 1.0


def test_a_class_without_a_prototype_is_never_nearest_to_anything_alike():
    prototypes = np.array([[0.0, 0.0], [0.0, 5.0], [3.0, 0.0]])
    assert nearest(np.array([[1.0, 0.2], [0.2, 1.0]]), prototypes).tolist() == [2, 1]
    assert nearest(np.array([[-1.0, -1.0]]), prototypes).tolist() == [0]
    assert nearest(np.array([[1.0, 1.0]]), prototypes).tolist() == [1], "of equals the first"
