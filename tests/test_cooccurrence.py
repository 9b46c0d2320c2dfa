"""Co-occurrence equals its formula, counted by hand, and its batch, single and pair forms agree."""

import math
from collections import Counter
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pyarrow as pa
import pytest
from conftest import START
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.contracts import EVENTS
from retrieval import cooccurrence as module
from retrieval.cooccurrence import Cooccurrence, Counting, build_cooccurrence
from retrieval.requests import Request, Requests, history_of, interests


def log_of(rows):
    """Events from (user, item, type, second[, value])."""
    columns = {name: [] for name in EVENTS.names}
    for number, (user, item, kind, second, *value) in enumerate(rows):
        values = {
            "event_id": number,
            "user_id": user,
            "item_id": item,
            "type": kind,
            "event_time": second * 10**6,
            "available_time": second * 10**6 + 1,
            "value": value[0] if value else None,
        }
        for name in columns:
            columns[name].append(values.get(name))
    return pa.table(
        {
            f.name: pa.array(columns[f.name], pa.int64()).cast(f.type)
            if f.name.endswith("time")
            else pa.array(columns[f.name], f.type)
            for f in EVENTS
        },
        schema=EVENTS,
    )


def by_hand(pairs):
    """s(i -> j) from distinct (user, item) pairs with dictionaries alone."""
    items_of = {u: {i for v, i in pairs if v == u} for u, _ in pairs}
    users_of = {i: {u for u, j in pairs if j == i} for _, i in pairs}
    return {
        (i, j): sum(1 / math.log2(1 + len(items_of[u])) for u in users_of[i] & users_of[j])
        / (len(users_of[i]) ** 0.5 * len(users_of[j]) ** 0.1)
        for i, j in product(users_of, users_of)
        if i != j and users_of[i] & users_of[j]
    }


def by_hand_in_order(rows, counting):
    """s(i -> j) by the formula, from (user, item) pairs in the order in which each user acted on distinct items."""
    lists = {u: [i for v, i in rows if v == u] for u, _ in rows}
    users = Counter(i for own in lists.values() for i in own)
    out = Counter()
    for own in lists.values():
        for (p, i), (q, j) in permutations(enumerate(own), 2):
            near = abs(q - p) ** -counting.distance * (1 if q > p else counting.backward)
            weighed = users[i] ** counting.seen * users[j] ** counting.candidate
            out[i, j] += near / math.log2(1 + len(own)) / weighed
    return out


def neighbours_of(graph, items, k):
    """The k items that co-occur most with some (oldest first), best first."""
    return graph.retrieve_batch(history_of(items), k)[0]


def opened(tmp_path, log, **options):
    return Cooccurrence.open(build_cooccurrence(log, tmp_path / "cooccurrence", {}, **options))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_scores_equal_the_formula_counted_by_hand(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 8, 60), rng.integers(100, 112, 60)
    kinds = rng.choice(["click", "purchase", "impression", "rating"], 60)
    log = log_of(
        [
            (int(u), int(i), str(kind), s, 5.0 if s % 2 else 2.0)
            for s, (u, i, kind) in enumerate(zip(users, items, kinds, strict=True))
        ]
    )
    positive = {
        (int(u), int(i))
        for s, (u, i, kind) in enumerate(zip(users, items, kinds, strict=True))
        if kind in ("click", "purchase") or (kind == "rating" and s % 2)
    }
    wanted = by_hand(positive)
    graph = opened(tmp_path_factory.mktemp("run"), log)
    known = sorted({i for _, i in positive})
    assert graph.item_ids.tolist() == known
    assert graph.popularity.tolist() == [len({u for u, j in positive if j == i}) for i in known]
    for item in known:
        row = {j: s for (i, j), s in wanted.items() if i == item}
        ids, scores = neighbours_of(graph, [item], 50)
        assert ids.tolist() == sorted(row, key=lambda j: (-np.float32(row[j]), j)) or np.allclose(
            scores, sorted(row.values(), reverse=True), rtol=1e-6
        )
        for found, score in zip(ids, scores, strict=True):
            assert score == pytest.approx(row[found], rel=1e-6)
        assert len(ids) == len(row)


@pytest.mark.parametrize(
    "counting",
    [
        Counting(0.7, 0.3, 0.5, 0.25, 0.6),
        Counting(1.0, 0.0, 1.0, 0.0, 0.4),
        Counting(0.5, 0.1, 0.0, 0.5, 1.0),
    ],
)
def test_order_and_distance_count_as_the_formula_says(tmp_path, monkeypatch, counting):
    rng = np.random.default_rng(1)
    rows = [(user, int(item)) for user in range(12) for item in rng.permutation(15)[: rng.integers(1, 9)]]
    log = log_of([(user, item, "click", second) for second, (user, item) in enumerate(rows)])
    wanted = by_hand_in_order(rows, counting)
    monkeypatch.setattr(module, "BLOCK_PAIRS", 20)  # several blocks
    graph = opened(tmp_path, log, counting=counting)
    for i in graph.item_ids.tolist():
        ids, scores = neighbours_of(graph, [i], 99)
        expected = {j: s for (k, j), s in wanted.items() if k == i and s > 0}
        assert dict(zip(ids.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)
    ids, scores = neighbours_of(graph, [3, 4], 99)  # 4 is newer
    summed = {j: wanted[4, j] + counting.recency * wanted[3, j] for j in graph.item_ids.tolist()}
    expected = {j: s for j, s in summed.items() if s > 0}
    assert dict(zip(ids.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)


def test_the_order_is_that_of_the_newest_behaviour(tmp_path):
    """A user who came back to an item acted on it after all others."""
    log = log_of([(1, 7, "click", 1), (1, 8, "click", 2), (1, 7, "click", 3)])
    graph = opened(tmp_path, log, counting=Counting(backward=0.0))
    assert neighbours_of(graph, [8], 9)[0].tolist() == [7] and not len(neighbours_of(graph, [7], 9)[0])


def test_a_history_sums_its_items_by_recency_and_pairs_score_as_retrieved(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(int(rng.integers(0, 40)), int(rng.integers(0, 30)), "click", s) for s in range(400)]
    graph = opened(tmp_path, log_of(rows))
    wanted = by_hand({(u, i) for u, i, *_ in rows})
    history = [3, 9, 4, 3]  # 3 counts once, at its newest place
    expected = {
        j: sum(0.9**rank * wanted.get((i, j), 0) for rank, i in enumerate([3, 4, 9])) for j in range(30)
    }
    ids, scores = neighbours_of(graph, history, 30)
    assert dict(zip(ids.tolist(), scores.tolist(), strict=True)) == pytest.approx(
        {j: s for j, s in expected.items() if s > 0}, rel=1e-6
    )
    assert all(a >= b for a, b in zip(scores, scores[1:], strict=False))
    histories = [history_of(history), history_of([]), history_of([999]), history_of([5])]
    requests = Requests.of([Request(0, h, START) for h in histories])
    candidates = np.array([0, 1, 2, 777, 4, 0, 1, 6, 7], dtype=np.int64)
    offsets = np.array([0, 5, 6, 7, 9])
    pairs = graph.score(requests.history, candidates, offsets)
    np.testing.assert_allclose(pairs[:5], [expected.get(int(c), 0) for c in candidates[:5]], rtol=1e-6)
    assert pairs[5] == pairs[6] == 0
    np.testing.assert_allclose(pairs[7:], [wanted.get((5, 6), 0), wanted.get((5, 7), 0)], rtol=1e-6)
    batch = graph.retrieve_batch(requests.history, 10)
    for row, single in enumerate(histories):
        for ours, theirs in zip(batch[row], neighbours_of(graph, single.item_id, 10), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_blocks_and_pruning_do_not_change_what_is_kept(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    log = log_of([(int(rng.integers(0, 40)), int(rng.integers(0, 30)), "click", s) for s in range(400)])
    whole = opened(tmp_path, log)
    monkeypatch.setattr(module, "BLOCK_PAIRS", 300)
    monkeypatch.setattr(module, "BLOCK_REQUESTS", 2)
    pruned = opened(tmp_path, log, neighbours=5)
    for item in range(30):
        ids, scores = neighbours_of(whole, [item], 5)
        for ours, theirs in zip((ids, scores), neighbours_of(pruned, [item], 99), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    requests = Requests.of([Request(0, history_of([i, i + 1]), START) for i in range(9)])
    for row in range(9):
        np.testing.assert_array_equal(
            pruned.retrieve_batch(requests.history, 4)[row][0], neighbours_of(pruned, [row, row + 1], 4)[0]
        )


def test_robots_are_cut_to_their_newest_items(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.likes.MOST_ITEMS", 3)
    graph = opened(tmp_path, log_of([(1, item, "click", 100 - item) for item in range(10)]))
    assert graph.item_ids.tolist() == [0, 1, 2]


def test_a_log_without_behaviour_has_no_neighbours(tmp_path):
    log = log_of([(1, 1, "impression", 1), (1, 2, "rating", 2, 1.0)])
    graph = Cooccurrence.open(build_cooccurrence(log, tmp_path / "c", {}))
    assert not len(graph.item_ids) and not len(graph.popularity)
    history = history_of([1, 2])
    assert [len(ids) for ids, _ in graph.retrieve_batch(history, 5)] == [0]
    assert graph.score(history, np.array([1, 7]), np.array([0, 2])).tolist() == [0, 0]


def test_interests_are_distinct_positive_newest_first():
    history = Requests.of(
        [
            Request(0, history_of([1, 2, 1, 3]), START),
            Request(0, replace(history_of([8, 9]), code=np.array([5, 5])), START),
            Request(0, history_of(range(50)), START),
        ]
    ).history
    spoken = interests(history)
    assert spoken.offsets.tolist() == [0, 3, 3, 3 + 20]
    assert spoken.item_id[:3].tolist() == [3, 1, 2]
    np.testing.assert_allclose(spoken.weight[:3], [1, 0.9, 0.81], rtol=1e-6)
    assert spoken.item_id[3:].tolist() == list(range(49, 49 - 20, -1))


def test_answers_and_scores_are_of_the_promised_types(tmp_path):
    graph = opened(tmp_path, log_of([(1, 10, "click", 1), (1, 11, "click", 2), (2, 11, "click", 3)]))
    assert (graph.item_ids.dtype, graph.popularity.dtype) == (np.int64, np.float32)
    for history in (history_of([10]), history_of([])):
        found = graph.retrieve_batch(history, 3)
        assert (found.offsets.dtype, found.item_id.dtype, found.score.dtype) == (
            np.int64,
            np.int64,
            np.float32,
        )
        score = graph.score(history, np.array([11, 99]), np.array([0, 2]))
        assert score.dtype == np.float32 and score[1] == 0
    assert graph.retrieve_batch(history_of([10]), 3, np.array([True, False])).item_id.tolist() == []
    assert graph.retrieve_batch(history_of([10]), 3, np.array([False, True])).item_id.tolist() == [11]


def test_the_newest_five_hundred_items_of_a_user_count(tmp_path):
    graph = opened(tmp_path, log_of([(1, item, "click", item) for item in range(502)]))
    assert graph.item_ids.tolist() == list(range(2, 502))


def test_two_hundred_neighbours_of_an_item_are_kept(tmp_path):
    graph = opened(tmp_path, log_of([(1, item, "click", item) for item in range(205)]))
    assert len(neighbours_of(graph, [7], 1000)[0]) == 200
