"""Metrics are the textbook's: equal to scikit-learn, to hand values and to slow twins, ties included."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from dataset.auc import NoData, auc
from evaluation.ctr_quality import ctr_quality, probabilities
from evaluation.encoder_quality import Pool, effective_rank, encoder_quality
from evaluation.measurements import read_measurements, write_measurements
from evaluation.metrics import (
    Measurement,
    calibration_ratio,
    coverage_at,
    expected_calibration_error,
    gauc,
    hits,
    log_loss,
    ndcg_at,
    normalized_entropy,
    recall_at,
    reciprocal_rank,
    reliability,
)
from evaluation.retrieval_quality import Relevant, item_slices, retrieval_quality
from feature_repo.embedding_check import anisotropy

rows = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 4)), min_size=2, max_size=60)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_auc_equals_sklearn_and_counting_pairs_with_ties(table):
    label, score, _ = (np.array(column, dtype=np.float64) for column in zip(*table, strict=True))
    if label.min() == label.max():
        with pytest.raises(NoData):
            auc(label, score)
        return
    pairs = [(p > n) + (p == n) / 2 for p in score[label == 1] for n in score[label == 0]]
    assert auc(label, score) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_gauc_equals_weighted_mean_of_sklearn_auc_over_two_class_users(table):
    label, score, user = (np.array(column, dtype=np.float64) for column in zip(*table, strict=True))
    values, weights = [], []
    for one in np.unique(user):
        mine = user == one
        if label[mine].min() < label[mine].max():
            values.append(roc_auc_score(label[mine], score[mine]))
            weights.append(mine.sum())
    if not values:
        with pytest.raises(NoData, match="both classes"):
            gauc(label, score, user)
        return
    value, users = gauc(label, score, user)
    assert value == pytest.approx(np.average(values, weights=weights), abs=1e-12)
    assert users == len(values)


def test_gauc_by_hand_weights_by_impressions_and_skips_one_class_users():
    # user 7: perfect over 2 impressions; user 8: wrong over 4 (one pair of three right); user 9 never clicked
    label = np.array([1, 0, 1, 0, 0, 0, 0, 0])
    score = np.array([0.9, 0.1, 0.3, 0.5, 0.4, 0.2, 0.9, 0.8])
    user = np.array([7, 7, 8, 8, 8, 8, 9, 9])
    assert gauc(label, score, user) == (pytest.approx((2 * 1.0 + 4 * (1 / 3)) / 6), 2)


def test_log_loss_and_normalized_entropy_equal_sklearn_and_definition():
    generator = np.random.default_rng(0)
    p = generator.uniform(0.01, 0.99, 500)
    y = (generator.random(500) < p).astype(float)
    assert log_loss(y, p) == pytest.approx(sk_log_loss(y, p))
    base = np.full(500, y.mean())
    assert normalized_entropy(y, base) == pytest.approx(1.0)
    assert normalized_entropy(y, p) == pytest.approx(sk_log_loss(y, p) / sk_log_loss(y, base))
    assert math.isfinite(log_loss(np.array([1.0, 0.0]), np.array([0.0, 1.0])))  # clipped, not infinite


def test_calibration_by_hand():
    y = np.array([1, 0, 0, 1])
    p = np.array([0.8, 0.2, 0.2, 0.4])
    assert calibration_ratio(y, p) == pytest.approx(1.6 / 2)
    mean_p, mean_y, count = reliability(y, p, bins=2)
    np.testing.assert_allclose(mean_p, [0.2, 0.6])
    np.testing.assert_allclose(mean_y, [0.0, 1.0])
    assert count.tolist() == [2, 2]
    assert expected_calibration_error(y, p, bins=2) == pytest.approx((0.2 + 0.4) / 2)


def test_reliability_never_splits_equal_probabilities_and_ignores_row_order():
    generator = np.random.default_rng(1)
    p = generator.choice([0.1, 0.2, 0.7], 300, p=[0.8, 0.15, 0.05])
    y = generator.random(300) < p
    mean_p, _, count = reliability(y, p, bins=10)
    assert set(np.round(mean_p, 6)) == {0.1, 0.2, 0.7}
    assert count.sum() == 300
    shuffled = generator.permutation(300)
    assert expected_calibration_error(y, p) == expected_calibration_error(y[shuffled], p[shuffled])


ragged = st.lists(
    st.tuples(
        st.lists(st.integers(0, 12), unique=True, max_size=6),
        st.lists(st.integers(0, 12), unique=True, min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(ragged, st.integers(1, 6), st.sampled_from([0, 2**62]))
def test_ranking_metrics_equal_the_slow_twin(table, k, shift):
    ranked = np.full((len(table), 6), -1, dtype=np.int64)
    for row, (ids, _) in enumerate(table):
        ranked[row, : len(ids)] = np.array(ids, dtype=np.int64) + shift
    count = np.array([len(wanted) for _, wanted in table])
    offsets = np.concatenate([[0], np.cumsum(count)])
    relevant = np.array([item for _, wanted in table for item in wanted], dtype=np.int64) + shift
    hit = hits(ranked, offsets, relevant)
    recall, ndcg, rank = recall_at(hit, count, k), ndcg_at(hit, count, k), reciprocal_rank(hit)
    for row, (ids, wanted) in enumerate(table):
        assert recall[row] == pytest.approx(len(set(ids[:k]) & set(wanted)) / len(wanted))
        gain = sum(1 / math.log2(place + 2) for place, item in enumerate(ids[:k]) if item in wanted)
        best = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
        assert ndcg[row] == pytest.approx(gain / best)
        first = next((place for place, item in enumerate(ids) if item in wanted), None)
        assert rank[row] == (0 if first is None else 1 / (first + 1))
    shown = {item for ids, _ in table for item in ids[:k]}
    assert coverage_at(ranked, k, 13) == pytest.approx(len(shown) / 13)


def test_ndcg_equals_sklearn_on_full_rankings():
    generator = np.random.default_rng(2)
    score = generator.random((20, 30))
    label = generator.random((20, 30)) < 0.2
    label[:, 0] = True
    ranked = np.argsort(-score, axis=1)
    offsets = np.concatenate([[0], np.cumsum(label.sum(axis=1))])
    hit = hits(ranked, offsets, np.nonzero(label)[1])
    for k in (1, 5, 30):
        ours = ndcg_at(hit, label.sum(axis=1), k).mean()
        assert ours == pytest.approx(ndcg_score(label.astype(float), score, k=k))


def test_a_list_that_repeats_an_item_is_refused():
    ranked = np.array([[1, 2, -1, -1], [3, 3, -1, -1]])
    with pytest.raises(ValueError, match=r"repeats in 1 of 2 \(rows \[1\]\)"):
        hits(ranked, np.array([0, 1, 2]), np.array([1, 3]))


@pytest.mark.parametrize(
    "metric",
    [
        lambda: auc(np.empty(0), np.empty(0)),
        lambda: auc(np.ones(3), np.arange(3)),
        lambda: gauc(np.empty(0), np.empty(0), np.empty(0)),
        lambda: log_loss(np.empty(0), np.empty(0)),
        lambda: normalized_entropy(np.zeros(3), np.full(3, 0.1)),
        lambda: calibration_ratio(np.zeros(3), np.full(3, 0.1)),
        lambda: expected_calibration_error(np.empty(0), np.empty(0)),
        lambda: coverage_at(np.empty((0, 5), dtype=np.int64), 5, 10),
        lambda: Measurement("a", 0.5, 0, "test"),
    ],
)
def test_no_data_raises_and_is_never_zero(metric):
    with pytest.raises(NoData):
        metric()


# --- evaluators ---


def by_name(measurements):
    return {one.name: one for one in measurements}


def test_retrieval_quality_by_hand_with_slices():
    ranked = np.full((3, 50), -1, dtype=np.int64)
    ranked[0, :3] = [10, 11, 12]
    ranked[1, :2] = [12, 10]
    relevant = Relevant(np.array([0, 2, 3, 3]), np.array([10, 99, 10]))  # request 2 took nothing
    found = by_name(
        retrieval_quality(
            ranked, relevant, catalogue=6, slices={"cold": np.array([99]), "new": np.array([5])}
        )
    )
    assert found["retrieval/recall@10"] == Measurement("retrieval/recall@10", 0.75, 2, "test")
    assert found["retrieval/mrr"].value == pytest.approx((1 + 1 / 2) / 2)
    first = 1 / (1 + 1 / math.log2(3))
    assert found["retrieval/ndcg@20"].value == pytest.approx((first + 1 / math.log2(3)) / 2)
    assert found["retrieval/coverage@20"] == Measurement("retrieval/coverage@20", 0.5, 6, "test")
    assert found["retrieval/cold/recall@20"] == Measurement("retrieval/cold/recall@20", 0.0, 1, "test")
    assert not [name for name in found if name.startswith("retrieval/new")]  # no data: absent


def test_retrieval_quality_refuses_lists_that_are_too_short():
    with pytest.raises(ValueError, match="at least 50"):
        list(
            retrieval_quality(np.zeros((1, 20), dtype=np.int64), Relevant(np.array([0, 1]), np.array([1])), 5)
        )


def test_item_slices_by_hand():
    bought = np.repeat([1, 2, 3], [8, 2, 1])
    slices = item_slices(
        np.array([1, 2, 3, 4]), bought, np.array([0, 0, 50, 100]), 50, np.array([True, False, True, True])
    )
    assert {name: ids.tolist() for name, ids in slices.items()} == {
        "cold": [3, 4],
        "new": [3, 4],
        "no_image": [2],
        "tail": [3, 4],  # 1 holds 8 of 11; 2 crosses 80 %
    }


def test_ctr_quality_names_values_and_absences():
    generator = np.random.default_rng(3)
    truth = generator.uniform(0.05, 0.6, 400)
    label = (generator.random(400) < truth).astype(np.float32)
    guess = probabilities(np.log(truth / (1 - truth)) + generator.normal(0, 0.5, 400))
    user = generator.integers(0, 20, 400)
    never = label == 0
    found = by_name(ctr_quality(label, guess, user, {"cold": np.arange(400) < 100, "dull": never}))
    assert found["ctr/full/auc"].value == pytest.approx(roc_auc_score(label, guess))
    assert found["ctr/full/cold/auc"].value == pytest.approx(roc_auc_score(label[:100], guess[:100]))
    assert found["ctr/full/cold/auc"].n == 100
    assert found["ctr/full/gauc"].n <= 20
    assert not [name for name in found if "/dull/" in name]


def test_ctr_quality_refuses_logits():
    with pytest.raises(ValueError, match=r"1 of 2 outside \(rows \[1\]"):
        list(ctr_quality(np.array([0, 1]), np.array([0.2, 3.0]), np.array([1, 1])))
    with pytest.raises(ValueError, match="1 of 2 outside"):
        list(ctr_quality(np.array([0, 1]), np.array([0.2, np.nan]), np.array([1, 1])))


def test_probabilities_are_the_logistic_function_without_overflow():
    np.testing.assert_allclose(probabilities(np.array([0.0, 2.0])), [0.5, 1 / (1 + math.exp(-2))])
    assert probabilities(np.array([-1e4, 1e4])).tolist() == [0.0, 1.0]


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def test_encoder_quality_equals_brute_force():
    generator = np.random.default_rng(4)
    spu = generator.integers(0, 15, 40)
    item, image, text = (unit(generator.normal(size=(40, 8))) for _ in range(3))
    image[5] = 0  # no picture
    found = by_name(encoder_quality(Pool(spu, item, image, text)))
    for name, query, candidate, own in (
        ("item_to_item", item, item, False),
        ("image_to_item", image, item, False),
        ("image_to_text", image, text, True),
        ("text_to_image", text, image, True),
    ):
        values = []
        for row in range(40):
            pool = [other for other in range(40) if own or other != row]
            group = [other for other in pool if (other == row if own else spu[other] == spu[row])]
            group = [other for other in group if candidate[other].any()]
            if not query[row].any() or not group:
                continue
            top = sorted(pool, key=lambda other, row=row: -float(query[row] @ candidate[other]))[:10]  # noqa: B023
            values.append(len(set(top) & set(group)) / len(group))
        measured = found[f"encoder/{name}/recall@10"]
        assert measured.value == pytest.approx(np.mean(values), abs=1e-9)
        assert measured.n == len(values)
    assert found["encoder/chance/item_to_item/recall@10"].value == pytest.approx(10 / 39)


def test_constant_vectors_score_as_chance_not_as_one():
    same = np.ones((50, 4), dtype=np.float32) / 2
    found = by_name(encoder_quality(Pool(np.arange(50), same, same, same)))
    assert found["encoder/image_to_text/recall@1"].value == pytest.approx(1 / 50)
    assert found["encoder/anisotropy"].value == pytest.approx(1.0)
    assert found["encoder/effective_rank"].value == pytest.approx(1.0)
    assert "encoder/item_to_item/recall@1" not in found  # no product has two items


def test_anisotropy_and_effective_rank_by_hand():
    axes = np.eye(6, dtype=np.float32)
    assert anisotropy(axes) == pytest.approx(0.0)
    assert effective_rank(axes) == pytest.approx(6.0)
    generator = np.random.default_rng(5)
    vectors = unit(generator.normal(size=(30, 5)) + 1)
    cosine = vectors @ vectors.T
    assert anisotropy(vectors) == pytest.approx(cosine[~np.eye(30, dtype=bool)].mean(), abs=1e-6)


# --- metrics.json ---


def test_measurements_round_trip(tmp_path):
    written = [
        Measurement("retrieval/recall@20", 0.25, 6000, "test"),
        Measurement("ctr/full/auc", 0.7, 9, "valid"),
        Measurement("truth/served/clicks_per_slate", 1.5, 680, "test", 1.25, 1.75),
    ]
    write_measurements(tmp_path / "metrics.json", iter(written))
    assert read_measurements(tmp_path / "metrics.json") == {one.name: one for one in written}
    raw = json.loads((tmp_path / "metrics.json").read_text())
    assert raw["ctr/full/auc"] == {"value": 0.7, "n": 9, "split": "valid"}
    interval = {"low": 1.25, "high": 1.75}
    assert raw["truth/served/clicks_per_slate"] == {"value": 1.5, "n": 680, "split": "test", **interval}


def test_a_list_of_one_and_a_list_of_none_have_a_reciprocal_rank():
    assert reciprocal_rank(np.array([[True], [False], [True]])).tolist() == [1, 0, 1]
    assert reciprocal_rank(np.zeros((3, 0), dtype=bool)).tolist() == [0, 0, 0]


def test_the_same_measurements_make_the_same_bytes_in_any_folder_and_order(tmp_path):
    one, two = Measurement("a", 0.5, 1, "test"), Measurement("b", 0.25, 2, "valid")
    near, far = tmp_path / "metrics.json", tmp_path / "not" / "there" / "metrics.json"
    write_measurements(near, [one, two])
    write_measurements(far, [two, one])
    write_measurements(far, [two, one])  # over what is there
    assert near.read_bytes() == far.read_bytes()
    assert near.read_text().startswith(
        '{\n  "a": {\n    "n": 1,\n    "split": "test",\n    "value": 0.5\n  },\n  "b"'
    )
    assert [path.name for path in far.parent.iterdir()] == ["metrics.json"]


def test_duplicate_names_and_not_a_number_are_refused(tmp_path):
    path = tmp_path / "metrics.json"
    one = Measurement("a", 0.5, 1, "test")
    write_measurements(path, [one])
    with pytest.raises(ValueError, match="a was measured twice"):
        write_measurements(path, [one, one])
    assert read_measurements(path) == {"a": one}  # what was stored is not lost
    with pytest.raises(ValueError, match="finite"):
        Measurement("a", float("nan"), 1, "test")
    path.write_text('{"a": {"value": NaN, "n": 1, "split": "test"}}')
    with pytest.raises(ValueError, match="finite"):
        read_measurements(path)
    path.write_text('{"a": {"value": 1, "n": 1, "split": "t"}, "a": {"value": 2, "n": 1, "split": "t"}}')
    with pytest.raises(ValueError, match="twice"):
        read_measurements(path)
    path.write_text('{"a": {"value": 1, "n": 1}}')
    with pytest.raises(ValueError, match="value, n, split"):
        read_measurements(path)


def test_metrics_are_computed_in_double_precision_whatever_they_are_given():
    """Slow twins that add up exactly; in single precision the eighth digit would already differ."""
    generator = np.random.default_rng(7)
    p = generator.uniform(1e-4, 0.9, 5000).astype(np.float32)
    y = (generator.random(5000) < p).astype(np.float32)
    pairs = list(zip(y.tolist(), p.tolist(), strict=True))
    loss = math.fsum(-math.log(q) if label else -math.log1p(-q) for label, q in pairs) / 5000
    rate = math.fsum(y.tolist()) / 5000
    base = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
    assert log_loss(y, p) == pytest.approx(loss, rel=1e-12)
    assert normalized_entropy(y, p) == pytest.approx(loss / base, rel=1e-12)
    assert calibration_ratio(y, p) == pytest.approx(math.fsum(p.tolist()) / math.fsum(y.tolist()), rel=1e-12)
    below = sorted(pairs, key=lambda pair: pair[1])
    parts = [below[start : start + 500] for start in range(0, 5000, 500)]
    mean_p, mean_y, count = reliability(y, p)
    assert count.tolist() == [500] * 10
    np.testing.assert_allclose(mean_p, [math.fsum(q for _, q in part) / 500 for part in parts], rtol=1e-12)
    np.testing.assert_allclose(
        mean_y, [math.fsum(one for one, _ in part) / 500 for part in parts], rtol=1e-12
    )
    assert expected_calibration_error(y, p) == pytest.approx(np.abs(mean_p - mean_y).mean(), rel=1e-12)
    assert probabilities(np.float32([1e-9]))[0] == 0.5 * (1 + math.tanh(0.5 * float(np.float32(1e-9))))


def test_a_probability_of_nothing_costs_as_much_as_one_in_ten_millions():
    assert log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(-math.log(1e-7), rel=1e-12)
    assert log_loss(np.array([0.0]), np.array([1.0])) == pytest.approx(-math.log(1e-7), rel=1e-8)


def test_every_measurement_of_clicks_says_its_name_its_part_and_what_it_was_averaged_over():
    label = np.array([1.0, 0.0, 1.0, 0.0])
    guess = np.array([0.9, 0.2, 0.4, 0.6])
    user = np.array([1, 1, 2, 2])
    found = list(ctr_quality(label, guess, user, {"cold": np.array([True, True, False, False])}))
    assert [(one.name, one.n, one.split) for one in found] == [
        ("ctr/full/auc", 4, "test"),
        ("ctr/full/gauc", 2, "test"),
        ("ctr/full/ne", 4, "test"),
        ("ctr/full/logloss", 4, "test"),
        ("ctr/full/calibration", 4, "test"),
        ("ctr/full/ece", 4, "test"),
        ("ctr/full/cold/auc", 2, "test"),
        ("ctr/full/cold/gauc", 1, "test"),
        ("ctr/full/cold/ne", 2, "test"),
    ]
    assert [one.value for one in found[:2]] == [0.75, 0.5] and found[6].value == 1.0
    named = list(ctr_quality(label, guess, user, split="valid", prefix="ctr/id_only"))
    assert {one.name.rsplit("/", 1)[0] for one in named} == {"ctr/id_only"}
    assert {one.split for one in named} == {"valid"} and len(named) == 6
    assert found[3].value == log_loss(label, guess)
    with pytest.raises(ValueError, match="found 4, 4, 3"):
        list(ctr_quality(label, guess, user[:3]))


def test_every_measurement_of_lists_says_its_name_its_part_and_what_it_was_averaged_over():
    ranked = np.tile(np.arange(60), (2, 1))
    relevant = Relevant(np.array([0, 1, 2]), np.array([0, 15]))
    found = list(retrieval_quality(ranked, relevant, 120, {"cold": np.array([15])}))
    assert [(one.name, one.value, one.n, one.split) for one in found] == [
        ("retrieval/recall@10", 0.5, 2, "test"),
        ("retrieval/recall@20", 1.0, 2, "test"),
        ("retrieval/recall@50", 1.0, 2, "test"),
        ("retrieval/ndcg@10", 0.5, 2, "test"),
        ("retrieval/ndcg@20", pytest.approx((1 + 1 / math.log2(17)) / 2), 2, "test"),
        ("retrieval/hit_rate@10", 0.5, 2, "test"),
        ("retrieval/mrr", pytest.approx((1 + 1 / 16) / 2), 2, "test"),
        ("retrieval/coverage@20", 20 / 120, 120, "test"),
        ("retrieval/cold/recall@10", 0.0, 1, "test"),
        ("retrieval/cold/recall@20", 1.0, 1, "test"),
        ("retrieval/cold/recall@50", 1.0, 1, "test"),
        ("retrieval/cold/ndcg@10", 0.0, 1, "test"),
        ("retrieval/cold/ndcg@20", pytest.approx(1 / math.log2(17)), 1, "test"),
    ]
    named = list(retrieval_quality(ranked, relevant, 0, split="valid", prefix="retrieval/popularity"))
    assert [one.name for one in named][-1] == "retrieval/popularity/mrr"  # nothing can be covered
    assert {one.split for one in named} == {"valid"} and len(named) == 7
    with pytest.raises(ValueError, match="expected ranked ids of shape .3, at least 50., found .2, 60."):
        list(retrieval_quality(ranked, Relevant(np.arange(4), np.arange(3)), 5))


def test_slices_of_a_catalogue_that_nobody_has_bought_from():
    slices = item_slices(
        np.array([5, 7]), np.empty(0, np.int64), np.array([0, 9]), 9, np.array([False, True])
    )
    assert {name: ids.tolist() for name, ids in slices.items()} == {
        "cold": [5, 7],
        "new": [7],
        "no_image": [5],
        "tail": [5, 7],
    }


def test_items_bought_equally_often_are_head_by_their_ids():
    """Ten items of one event each: the first eight hold 80 % of them; a larger id than any bought has none."""
    ids = np.append(np.arange(10, 20), 99)
    slices = item_slices(ids, np.arange(10, 20), np.zeros(11), 1, np.ones(11, bool))
    assert slices["tail"].tolist() == [18, 19, 99] and len(slices["cold"]) == 11


def test_lists_and_requests_without_anything_have_no_hits():
    none = np.empty(0, np.int64)
    assert hits(np.empty((0, 5), np.int64), np.array([0]), none).shape == (0, 5)
    assert hits(np.empty((2, 0), np.int64), np.array([0, 0, 0]), none).shape == (2, 0)
    nothing = hits(np.array([[1, 2], [3, -1]]), np.array([0, 0, 0]), none)
    assert nothing.tolist() == [[False, False]] * 2 and nothing.dtype == bool
    with pytest.raises(NoData, match="found 2 and 0"):
        coverage_at(np.array([[1], [2]]), 1, 0)
