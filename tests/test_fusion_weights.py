"""The weights of the sources: learned where the answers are known, never worse than the best source alone."""

import numpy as np
import pytest

from retrieval.fusion import EQUAL, Weights, fuse, learn_weights
from retrieval.jagged import Retrieved, stack
from run.artifacts import open_artifact

ITEMS, REQUESTS = 300, 200
ALONE = np.arange(REQUESTS + 1)


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


def ndcg(found: Retrieved):
    """One relevant item for each request: the textbook formula, a request at a time."""
    gain = 0.0
    for request, (ids, scores) in enumerate(found):
        at = np.flatnonzero((ids == request) & (scores != 0))
        gain += 1 / np.log2(2 + at[0]) if len(at) else 0
    return gain / len(found)


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


def test_equal_weights_lose_to_the_best_source_and_learned_ones_do_not(planted):
    weights, figures = learn_weights(planted, ALONE, np.arange(REQUESTS))
    fused = fuse(list(planted.values()), weights.of(list(planted)))
    assert figures["good"] == pytest.approx(ndcg(planted["good"]))
    assert figures["fused"] == pytest.approx(ndcg(fused))
    assert ndcg(fuse(list(planted.values()))) < figures["good"] < figures["fused"] - 0.05
    assert weights.of_source["other"] > 0
    assert max(weights.of_source[f"noise{n}"] for n in range(3)) < weights.of_source["good"] / 4


def test_weights_hold_for_requests_that_they_were_not_learned_from(planted):
    half = REQUESTS // 2
    first = {name: found.first(half) for name, found in planted.items()}
    weights, _ = learn_weights(first, np.arange(half + 1), np.arange(half))
    fused = fuse(list(planted.values()), weights.of(list(planted)))
    rest = [ndcg(stack([found[r] if r >= half else (np.empty(0, np.int64), np.empty(0, np.float32))
                        for r in range(REQUESTS)])) for found in (fused, *planted.values())]  # fmt: skip
    assert rest[0] > max(rest[1:])


def test_where_no_source_finds_anything_all_weigh_the_same(planted):
    lost = {name: found for name, found in planted.items() if name == "other"}
    missing = np.full(REQUESTS, ITEMS + 1)
    assert learn_weights(lost, ALONE, missing) == (EQUAL, {})
    assert EQUAL.of(["a", "b"]) == [1.0, 1.0]


def test_a_list_is_cut_to_its_best(planted):
    whole, cut = (fuse(list(planted.values()), most=most) for most in (None, 7))
    for request in range(REQUESTS):
        assert cut[request][0].tolist() == whole[request][0][:7].tolist()


def test_weights_are_kept_and_a_source_that_is_not_there_weighs_one(tmp_path):
    made = Weights({"a": 0.25}).save(tmp_path / "fusion", {}, {"requests": 3})
    opened = Weights.open(open_artifact(tmp_path / "fusion", "fusion"))
    assert (
        opened.of(["a", "new"]) == [0.25, 1.0] and opened.artifact == made and made.config == {"requests": 3}
    )
