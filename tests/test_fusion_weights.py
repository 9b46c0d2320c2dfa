"""The weights of the sources: learned from what became of their answers, never worse than the best source alone."""

import numpy as np
import pytest

from retrieval.fusion import CONSTANTS, EQUAL, USUAL, Weights, fuse
from retrieval.fusion_weights import LEAST, Known, learn_weights
from retrieval.jagged import Retrieved, stack
from run.artifacts import ArtifactError, open_artifact, write_artifact

ITEMS, REQUESTS = 300, 200
TAKEN = Known(np.arange(REQUESTS), np.arange(REQUESTS), np.ones(REQUESTS, dtype=bool))
ONE = np.array(USUAL)


def only(known, rows):
    """What became of the items of some rows."""
    expected = None if known.expected is None else known.expected[rows]
    return Known(known.request[rows], known.item_id[rows], known.liked[rows], expected)


def answers(ranks, seed, silent=False):
    """Lists of a hundred that have item r of request r at the place ``ranks[r]``; -1: they lack it, or are empty."""
    draw = np.random.default_rng(seed)
    found = []
    for request, rank in enumerate(ranks):
        others = draw.permutation(np.delete(np.arange(ITEMS), request))[:100]
        ids = np.insert(others, rank, request)[:100] if rank >= 0 else others
        ids = ids[:0] if silent and rank < 0 else ids
        found.append((ids, (-1 - np.arange(100, dtype=np.float32))[: len(ids)]))
    return stack(found)


def ndcg(found: Retrieved, rows=range(REQUESTS)):
    """One relevant item for each request: the textbook formula, a request at a time."""
    gain = 0.0
    for request in rows:
        ids, scores = found[request]
        at = np.flatnonzero((ids == request) & (scores != 0))
        gain += 1 / np.log2(2 + at[0]) if len(at) else 0
    return gain / len(rows)


@pytest.fixture(scope="module")
def planted():
    """A good source, one that is good where the first is not, and three that are wrong."""
    draw = np.random.default_rng(0)
    good = draw.geometric(0.2, REQUESTS).clip(max=99) - 1
    other = np.where(draw.random(REQUESTS) < 0.3, 0, -1)
    good[other == 0] = -1
    found = {"good": answers(good, 1), "other": answers(other, 2, silent=True)}
    return found | {
        f"noise{n}": answers(np.full(REQUESTS, -1), 3) for n in range(3)
    }  # which agree with each other


def at_first_place(weights, name):
    return float(np.sum(weights.of_source[name]))


def test_equal_weights_lose_to_the_best_source_and_learned_ones_do_not(planted):
    weights, figures = learn_weights(planted, TAKEN, 0)
    fused = fuse(list(planted.values()), weights.of(list(planted)))
    assert figures["good"] == pytest.approx(ndcg(planted["good"]))
    assert ndcg(fuse(list(planted.values()))) < figures["good"] < ndcg(fused) - 0.05
    assert figures["fused"] == pytest.approx(ndcg(fused), abs=0.03), "of requests not learned from"
    assert at_first_place(weights, "other") > 0.1
    assert max(at_first_place(weights, f"noise{n}") for n in range(3)) < at_first_place(weights, "good") / 4


def test_weights_hold_for_requests_that_they_were_not_learned_from(planted):
    half = REQUESTS // 2
    first = {name: found.first(half) for name, found in planted.items()}
    weights, _ = learn_weights(first, only(TAKEN, TAKEN.request < half), 0)
    fused = fuse(list(planted.values()), weights.of(list(planted)))
    rest = [ndcg(found, range(half, REQUESTS)) for found in (fused, *planted.values())]
    assert rest[0] > max(rest[1:])


def test_a_source_is_trusted_as_far_down_as_it_is_right():
    """One is right at its first place or not at all, the other anywhere among a hundred."""
    draw = np.random.default_rng(4)
    sharp = np.where(draw.random(REQUESTS) < 0.4, 0, -1)
    even = np.where(sharp < 0, draw.integers(0, 100, REQUESTS), -1)
    weights, _ = learn_weights({"sharp": answers(sharp, 5), "even": answers(even, 6)}, TAKEN, 0)
    fiftieth = np.array([(1 + constant) / (50 + constant) for constant in CONSTANTS])
    sharply, evenly = (
        weights.of_source[name] @ fiftieth / at_first_place(weights, name) for name in ("sharp", "even")
    )
    assert sharply < 0.3 < 0.8 < evenly


def shown_world(requests=400, seed=7):
    """Eight of the items shown are those that "usual" proposes, whoever asks; four are drawn; "knows" knows tastes.

    So most of what is liked is among the answers of "usual".
    """
    draw = np.random.default_rng(seed)
    usual = np.arange(100)
    found, rows = {"usual": [], "knows": []}, []
    for request in range(requests):
        taste = draw.permutation(ITEMS)
        known = taste[np.argsort(np.arange(ITEMS) + draw.normal(0, 40, ITEMS))][:100]
        rank = np.argsort(taste)
        shown = np.unique(np.append(usual[:8], draw.choice(ITEMS, 4, replace=False)))
        chance = np.where(rank[shown] < 60, 0.5, 0.05)
        liked = draw.random(len(shown)) < chance
        rows += [(request, item, one) for item, one in zip(shown.tolist(), liked, strict=True)]
        for name, ids in (("usual", usual), ("knows", known)):
            found[name].append((ids, -np.arange(100, dtype=np.float32)))
    request, item, liked = (np.array(column) for column in zip(*rows, strict=True))
    known = Known(request, item, liked, np.full(len(request), liked.mean(), np.float32))
    return {name: stack(lists) for name, lists in found.items()}, known


def slow_likes_over_expected(found, known):
    """A row at a time."""
    gained = expected = 0.0
    for request, item, liked, chance in zip(
        known.request, known.item_id, known.liked, known.expected, strict=True
    ):
        at = np.flatnonzero(found[request][0] == item)
        place = at[0] if len(at) else 500
        gained += liked / np.log2(2 + place)
        expected += chance / np.log2(2 + place)
    return gained / expected


def test_to_propose_what_the_shop_shows_anyway_is_worth_nothing():
    found, known = shown_world()
    weights, figures = learn_weights(found, known, 0)
    for name in found:
        assert figures[name] == pytest.approx(slow_likes_over_expected(found[name], known), rel=1e-5)
    assert figures["usual"] == pytest.approx(1, abs=0.1) and figures["knows"] > 1.3
    assert figures["fused"] > 0.95 * figures["knows"]
    assert at_first_place(weights, "usual") < at_first_place(weights, "knows") / 10
    as_taken = only(known, known.liked)
    taken, _ = learn_weights(found, Known(as_taken.request, as_taken.item_id, as_taken.liked), 0)
    assert at_first_place(taken, "usual") > at_first_place(taken, "knows"), (
        "which is why the likes alone mislead"
    )


def test_where_fusing_does_not_pay_the_best_source_is_left_alone():
    """Of twelve requests two sources are right by chance, which teaches the wrong weights in some worlds."""
    left, count = [], 12
    some = only(TAKEN, TAKEN.request < count)
    for seed in range(count):
        draw = np.random.default_rng(seed)
        ranks = [draw.integers(0, 3, count), *np.where(draw.random((2, count)) < 0.2, 0, -1)]
        found = {str(n): answers(own, seed + 50 * n) for n, own in enumerate(ranks)}
        weights, figures = learn_weights(found, some, seed)
        alone = {name: (name == "0") * ONE + LEAST * ONE for name in found}
        left.append(all(np.allclose(weights.of_source[name], alone[name]) for name in found))
        assert figures["0"] == max(figures[name] for name in found)
        if left[-1]:
            fused = fuse(list(found.values()), weights.of(list(found)))
            assert ndcg(fused, range(count)) == pytest.approx(figures["0"], abs=0.01), (
                "others fill, and break ties"
            )
    assert 0 < sum(left) < count


def test_where_the_best_source_is_silent_the_others_answer_in_their_order():
    found = {"good": stack([(np.empty(0, np.int64), np.empty(0, np.float32))]),
             "other": stack([(np.array([9, 4]), np.array([2.0, 1.0], np.float32))])}  # fmt: skip
    weights = Weights({"good": [0, 1.01, 0], "other": [0, LEAST, 0]})
    assert fuse(list(found.values()), weights.of(list(found)))[0][0].tolist() == [9, 4]


def test_where_no_source_finds_anything_all_weigh_the_same(planted):
    lost = {name: found for name, found in planted.items() if name == "other"}
    missing = Known(TAKEN.request, np.full(REQUESTS, ITEMS + 1), TAKEN.liked)
    assert learn_weights(lost, missing, 0) == (EQUAL, {})
    assert EQUAL.of(["a", "b"]).tolist() == [list(USUAL)] * 2


def test_a_list_is_cut_to_its_best(planted):
    whole, cut = (fuse(list(planted.values()), most=most) for most in (None, 7))
    for request in range(REQUESTS):
        assert cut[request][0].tolist() == whole[request][0][:7].tolist()


def test_weights_are_kept_and_a_source_that_is_not_there_has_the_usual_one(tmp_path):
    made = Weights({"a": [0.25, 0, 1]}).save(tmp_path / "fusion", {}, {"requests": 3})
    opened = Weights.open(open_artifact(tmp_path / "fusion", "fusion"))
    assert opened.of(["a", "new"]).tolist() == [[0.25, 0, 1], list(USUAL)]
    assert opened.artifact == made and made.config == {"requests": 3}


def test_weights_of_an_earlier_release_name_the_command_that_makes_them_again(tmp_path):
    with write_artifact(tmp_path / "fusion", "fusion", {}) as folder:
        (folder / "weights.json").write_text('{"words": 1.0}')
    with pytest.raises(ArtifactError, match="expected curves.json, found none.*Run 'moon retrieval'"):
        Weights.open(open_artifact(tmp_path / "fusion", "fusion"))
