"""Inverted lists: how many cells are trained on what, how many are read, and how their recall is measured.

Run: pytest tests/test_inverted_lists.py
"""

import faiss
import numpy as np
import pytest

from retrieval import approximation
from retrieval.approximation import GATE_K, GATE_QUERIES, RECALL_GATE, Approximation, approximate
from retrieval.index import ItemIndex


def clustered(count, width=8, seed=0):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(20, width))[rng.integers(0, 20, count)] + 0.1 * rng.normal(size=(count, width))
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


class Lists:
    """Lists whose answers are the exact ones, but for ``lost`` of them, from ``reach`` probes on; none before."""

    def __init__(self, exact, reach, lost):
        self.exact, self.reach, self.lost = exact, reach, lost
        self.nprobe, self.asked = 1, []

    def train(self, rows):
        self.trained = rows

    def add(self, rows):
        self.added = rows

    def search(self, queries, k):
        self.asked.append((self.nprobe, queries, k))
        scores, found = self.exact.search(queries, k)
        if self.nprobe < self.reach:
            found[:] = -1
        found.reshape(-1)[: self.lost] = -1
        return scores, found


def built(monkeypatch, count, reach, lost=0):
    """What is made of ``count`` items, the lists, and what the factory was told."""
    matrix, told = clustered(count), []
    exact = faiss.IndexFlatIP(matrix.shape[1])
    exact.add(matrix)
    lists = Lists(exact, reach, lost)
    monkeypatch.setattr(approximation.faiss, "index_factory", lambda *what: told.append(what) or lists)
    return approximate(matrix, np.arange(count) + 100), lists, told, matrix


def test_the_gate_is_ninety_nine_of_a_hundred_of_ten_items_for_256_queries(monkeypatch):
    assert (RECALL_GATE, GATE_QUERIES, GATE_K) == (0.99, 256, 10)
    made, lists, told, matrix = built(monkeypatch, 2500, reach=1)
    assert told == [(8, "IVF200,Flat", faiss.METRIC_INNER_PRODUCT)]
    ((probes, queries, k),) = lists.asked
    assert (probes, queries.shape, queries.dtype, k) == (8, (256, 8), np.float32, 10)
    assert made.recall == 1.0 and made.lists is lists and made.ids.tolist() == list(range(100, 2600))
    assert made.hidden is None
    np.testing.assert_array_equal(lists.added, matrix)
    assert len(lists.trained) == 2500 and len(np.unique(lists.trained, axis=0)) == 2500


def test_a_query_is_an_item_and_a_quarter_of_another(monkeypatch):
    _, lists, _, matrix = built(monkeypatch, 64, reach=1)
    queries = lists.asked[0][1]
    pairs = (matrix[:, None] + 0.25 * matrix[None]).reshape(-1, 8)
    assert len(queries) == 64
    for query in queries:
        assert np.abs(pairs - query).max(1).min() < 1e-6


def test_a_small_catalogue_has_as_many_queries_as_items(monkeypatch):
    _, lists, _, _ = built(monkeypatch, 40, reach=1)
    assert len(lists.asked[0][1]) == 40


def test_a_cell_is_trained_on_forty_items_of_its_own(monkeypatch):
    _, lists, told, _ = built(monkeypatch, 30_000, reach=1)
    cells = 692  # 4 * sqrt(30,000)
    assert told[0][1] == f"IVF{cells},Flat"
    assert len(lists.trained) == 40 * cells == len(np.unique(lists.trained, axis=0))


@pytest.mark.parametrize(("reach", "probes"), [(8, [8]), (9, [8, 16]), (33, [8, 16, 32, 64]), (65, None)])
def test_twice_as_many_cells_are_read_until_it_is_enough_and_a_quarter_of_them_at_most(
    monkeypatch, reach, probes
):
    made, lists, _, _ = built(monkeypatch, 4096, reach)  # 256 cells
    assert (made is None) == (probes is None)
    assert [asked for asked, _, _ in lists.asked] == (probes or [8, 16, 32, 64])


@pytest.mark.parametrize("lost", [0, 25, 26])
def test_the_recall_is_the_share_of_the_answers_that_was_found(monkeypatch, lost):
    """Of 2,560 places; without 26 of them it is below 0.99."""
    made, _, _, _ = built(monkeypatch, 2000, 1, lost)
    assert (made is None) == (lost == 26)
    assert made is None or made.recall == (2560 - lost) / 2560


def lists_of(matrix, ids, probes=2):
    lists = faiss.index_factory(matrix.shape[1], "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    lists.train(matrix)
    lists.add(matrix)
    lists.nprobe = probes
    return Approximation(lists, 0.5, ids)


def test_hidden_items_are_never_answered_and_as_many_cells_are_read_as_before():
    matrix, ids = clustered(200), np.arange(200) * 7
    whole = lists_of(matrix, ids)
    assert whole.search(matrix[:3], 1).ravel().tolist() == [0, 7, 14]
    hidden = np.array([0, 14])
    some = whole.without(hidden)
    answers = some.search(matrix[:3], 200)
    assert not np.isin(answers, hidden).any() and (answers < 0).any(), "two of the four cells are read"
    before = whole.search(matrix[:3], 200)
    for one, other in zip(answers, before, strict=True):
        kept = other[(other >= 0) & ~np.isin(other, hidden)]
        assert one[one >= 0].tolist() == kept.tolist()
    nothing = whole.without(np.array([], np.int64)).search(matrix[:3], 200)
    np.testing.assert_array_equal(nothing, before)
    assert (some.recall, some.lists, whole.hidden) == (0.5, whole.lists, None)


def test_items_are_added_and_replaced_and_the_first_lists_stay_as_they_are():
    matrix, ids = clustered(200), np.arange(200) * 7
    whole = lists_of(matrix, ids, probes=4).without(np.array([7]))
    axis = np.eye(8)[:2]
    more = whole.with_items(np.array([14, 5000]), axis)
    assert (more.recall, more.hidden, len(more.ids)) == (0.5, None, 202)
    found = more.search(np.concatenate([axis.astype(np.float32), matrix[1:3]]), 300)
    assert found[0, 0] == 14 and found[1, 0] == 5000 and found[2, 0] == 7
    assert all(sorted(row[row >= 0].tolist()) == sorted([*ids.tolist(), 5000]) for row in found)
    assert 5000 not in whole.search(axis.astype(np.float32), 300)
    only_new = whole.with_items(np.array([5000]), axis[:1])
    assert len(set(only_new.search(axis[:1].astype(np.float32), 201)[0].tolist())) == 201


def test_an_index_with_lists_says_their_recall_and_how_many_cells_are_read(tmp_path):
    matrix, ids = clustered(200), np.arange(200)
    index = ItemIndex(ids, matrix, [""] * 200, lists_of(matrix, ids, probes=3))
    saved = index.save(tmp_path / "index", {})
    assert saved.config == {"items": 200, "width": 8, "recall": 0.5, "probes": 3}
    opened = ItemIndex.open(saved).approximation
    assert (opened.recall, opened.lists.nprobe, opened.ids.tolist()) == (0.5, 3, ids.tolist())
