"""What the ranker learns from is labelled right, and the service's order is the one that is measured."""

from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.contracts import TIME
from evaluation import replay
from evaluation.replay import lists
from feature_repo.frame import Frame, History
from retrieval.examples import MatchedFrames, example_rows
from retrieval.fusion import fuse, fuse_within
from retrieval.jagged import Retrieved

AT = datetime(2025, 6, 1, tzinfo=UTC)


def requests(relevant):
    count = len(relevant)
    return pa.table(
        {
            "request_id": pa.array(np.arange(count) * 10 + 7),
            "user_id": pa.array(np.arange(count) + 100),
            "time": pa.array([AT] * count, TIME),
            "relevant": pa.array(relevant, pa.list_(pa.int64())),
        }
    )


def retrieved(lists_of_ids):
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in lists_of_ids])]).astype(np.int64)
    ids = np.array([i for ids in lists_of_ids for i in ids], dtype=np.int64)
    return Retrieved(offsets, ids, -np.arange(len(ids), dtype=np.float32))


catalogues = st.lists(st.integers(0, 30), unique=True, max_size=12)


@given(st.lists(st.tuples(catalogues, catalogues.filter(bool)), min_size=1, max_size=5), st.integers(0, 4))
def test_every_candidate_is_labelled_by_what_was_taken(pairs, negatives):
    found, relevant = [list(f) for f, _ in pairs], [sorted(r) for _, r in pairs]
    whole = example_rows(requests(relevant), retrieved(found)).to_pylist()
    expected = {
        (7 + 10 * r, item): float(item in relevant[r]) for r in range(len(pairs)) for item in found[r]
    }
    assert {(row["request_id"], row["item_id"]): row["label"] for row in whole} == expected
    assert [row["request_id"] for row in whole] == sorted(row["request_id"] for row in whole)

    drawn = example_rows(requests(relevant), retrieved(found), negatives).to_pylist()
    for r in range(len(pairs)):
        mine = [row for row in drawn if row["request_id"] == 7 + 10 * r]
        took = sorted(set(relevant[r]) & set(found[r]))
        assert sorted(row["item_id"] for row in mine if row["label"]) == took, "all that was found and taken"
        others = [row["item_id"] for row in mine if not row["label"]]
        proposed = set(found[r]) - set(relevant[r])
        assert len(others) == len(set(others)) == min(negatives, len(proposed))
        assert set(others) <= proposed
        assert all(row["user_id"] == 100 + r and row["time"] == AT for row in mine)


def test_drawn_negatives_are_not_the_first_ones():
    found = retrieved([list(range(100))] * 50)
    rows = example_rows(requests([[0]] * 50), found, 10, 3)
    drawn = rows.filter(pa.array(rows["label"].to_numpy() == 0))["item_id"].to_numpy()
    assert 40 < drawn.mean() < 60


def test_fusion_is_the_sum_of_reciprocal_ranks():
    ids = np.array([5, 3, 9])
    got, scores = fuse_within(np.zeros(3, int), ids, np.array([0.1, 0.9, 0.5], dtype=np.float32))
    worth = {
        5: 1 / (60 + 1) + 1 / (60 + 3),
        3: 1 / (60 + 2) + 1 / (60 + 1),
        9: 2 / (60 + 2.5),
    }
    worth[9] = 1 / (60 + 3) + 1 / (60 + 2)
    assert got.tolist() == sorted(worth, key=lambda i: (-worth[i], i))
    assert np.allclose(scores, sorted(worth.values(), reverse=True))


def test_fusion_leaves_tiers_whole():
    """4 is the best by both orders; 2 and 7 go before it, being of a higher tier, in their fused order."""
    ids, tiers = np.array([4, 2, 7, 1]), np.array([0, 1, 1, 0])
    got, scores = fuse_within(tiers, ids, np.array([0.9, 0.1, 0.8, 0.7], dtype=np.float32))
    assert got.tolist() == [7, 2, 4, 1] and (np.diff(scores) < 0).all()


@given(
    st.integers(1, 4).flatmap(
        lambda r: st.lists(st.lists(catalogues, min_size=r, max_size=r), min_size=1, max_size=3)
    ),
    st.lists(st.lists(st.sampled_from([0.0, 0.3, 2.0]), min_size=3, max_size=3), min_size=3, max_size=3),
)
def test_fusing_sources_equals_adding_their_curves_one_by_one(sources, weights):
    weights = np.array(weights[: len(sources)])
    got = fuse([retrieved(lists_of_ids) for lists_of_ids in sources], weights)
    for request in range(len(sources[0])):
        worth: dict[int, float] = {}
        for source, own in zip(sources, weights, strict=True):
            for place, item in enumerate(source[request]):
                terms = [w * (1 + c) / (1 + place + c) for w, c in zip(own, (5, 60, 500), strict=True)]
                worth[item] = worth.get(item, 0) + sum(terms)
        ids, scores = got[request]
        assert {i: pytest.approx(s) for i, s in worth.items()} == dict(zip(ids.tolist(), scores, strict=True))
        assert (np.diff(scores) <= 0).all()


@given(
    st.integers(1, 4).flatmap(
        lambda r: st.lists(st.lists(catalogues, min_size=r, max_size=r), min_size=1, max_size=3)
    )
)
def test_fusing_sources_equals_adding_reciprocal_ranks_one_by_one(sources):
    got = fuse([retrieved(lists_of_ids) for lists_of_ids in sources])
    for request in range(len(sources[0])):
        worth: dict[int, float] = {}
        for source in sources:
            for place, item in enumerate(source[request]):
                worth[item] = worth.get(item, 0) + 61 / (60 + 1 + place)
        ids, scores = got[request]
        assert {i: np.float32(s) for i, s in zip(ids.tolist(), scores, strict=True)} == {
            i: np.float32(s) for i, s in worth.items()
        }
        assert (np.diff(scores) <= 0).all()


def test_lists_end_with_minus_one():
    assert lists(retrieved([[4, 2], [], [1, 3, 5]]), 2).tolist() == [[4, 2], [-1, -1], [1, 3]]


class Stored:
    """Requests of one, two and three candidates, in memory."""

    def __len__(self):
        return 3

    def take(self, start, stop):
        return self.select(np.arange(start, stop))

    def select(self, rows):
        ids = [[10], [20, 21], [30, 31, 32]]
        chosen = [i for row in rows for i in ids[row]]
        offsets = np.concatenate([[0], np.cumsum([len(ids[row]) for row in rows])])
        nobody = np.zeros(0, np.int64)
        history = History(np.zeros(len(rows) + 1, np.int64), nobody, nobody, nobody)
        requests = pa.table({"request_id": pa.array(rows)})
        return Frame(requests, pa.table({"item_id": chosen}), offsets, history)


def test_match_columns_follow_their_candidates_in_any_order_of_requests():
    by_item = {10: 0.1, 20: 0.2, 21: 0.21, 30: 0.3, 31: 0.31, 32: 0.32}
    matches = np.array([[v, -v] for v in by_item.values()], dtype=np.float32)
    frames = MatchedFrames(Stored(), ("match_a", "match_b"), matches, np.array([0, 1, 3, 6]))
    for frame in (frames.select(np.array([2, 0, 1, 2])), frames.take(1, 3)):
        for item, a, b in zip(
            *(frame.candidates[name].to_pylist() for name in ("item_id", "match_a", "match_b")), strict=True
        ):
            assert np.allclose([a, b], [by_item[item], -by_item[item]])


def test_rows_of_examples_have_the_types_of_request_rows():
    rows = example_rows(requests([[1], [2]]), retrieved([[1, 3], [4]]))
    assert rows.schema.equals(
        pa.schema(
            {
                "request_id": pa.int64(),
                "user_id": pa.int64(),
                "time": TIME,
                "query_id": pa.int64(),
                "item_id": pa.int64(),
                "label": pa.float32(),
            }
        )
    )
    assert rows["query_id"].null_count == 3 and set(rows["time"].to_pylist()) == {AT}
    again = example_rows(requests([[1], [2]]), retrieved([list(range(20)), [4]]), 5)
    assert again.equals(example_rows(requests([[1], [2]]), retrieved([list(range(20)), [4]]), 5, seed=0))
    assert not again.equals(example_rows(requests([[1], [2]]), retrieved([list(range(20)), [4]]), 5, seed=1))


def test_a_ranker_that_learned_without_content_is_asked_with_the_columns_that_it_learned(monkeypatch):
    blind = SimpleNamespace(names=("match_taste", "match_behaviours"))
    plain = SimpleNamespace(names=(*blind.names, "match_words_mean"))
    whole = SimpleNamespace(
        names=(*plain.names, "match_taste_vectors"),
        without_content=lambda: blind,
        without_vectors=lambda: plain,
    )
    monkeypatch.setattr(replay, "match_names", lambda retriever: retriever.names)
    monkeypatch.setattr(replay, "matched", lambda stored, retriever, history: (stored, retriever))
    monkeypatch.setattr(replay, "chunks", lambda frames, what: [frames, frames])
    monkeypatch.setattr(
        replay,
        "score_together",
        lambda rankers, frame: {name: one.score(frame) for name, one in rankers.items()},
    )

    def ranker(names, value):
        def score(frame):
            assert frame == ("stored", {3: whole, 2: plain, 1: blind}[value])
            return np.array([value], np.float32)

        return SimpleNamespace(matches=set(names), score=score, history=50)

    rankers = {
        "full": ranker(whole.names, 3),
        "plain": ranker(plain.names, 2),
        "id_only": ranker(blind.names, 1),
    }
    found = replay.scores_of("stored", whole, rankers)
    assert {name: scores.tolist() for name, scores in found.items()} == {
        "full": [3, 3], "plain": [2, 2], "id_only": [1, 1],
    }  # fmt: skip
