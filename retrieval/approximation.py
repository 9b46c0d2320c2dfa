"""Inverted lists over a large catalogue: search that reads a part of it, with a recall measured when they were built.

Legend: B queries, N items, D width, k answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np

RECALL_GATE = 0.99
GATE_QUERIES = 256
GATE_K = 10


@dataclass(frozen=True)
class Approximation:
    """Inverted lists over the whole catalogue, with the recall@10 measured against the exact answer.

    Attributes:
        lists: faiss.IndexIVF (faiss types what its factory and reader return as plain Index).
        recall: recall@10, measured on the catalogue they were trained on.
        ids: int64, the item that each number in the lists stands for.
        hidden: int64, ids that are never answered.
    """

    lists: Any
    recall: float
    ids: np.ndarray
    hidden: np.ndarray | None = None

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """About the k items of largest inner product with each query; -1 where the lists read hold fewer.

        Args:
            queries: float32 [B, D].
            k: how many.

        Returns:
            int64 ids [B, k].
        """
        parameters = None
        if self.hidden is not None and len(self.hidden):
            numbers = np.flatnonzero(np.isin(self.ids, self.hidden))
            others = faiss.IDSelectorNot(faiss.IDSelectorBatch(numbers))
            parameters = faiss.SearchParametersIVF(sel=others, nprobe=self.lists.nprobe)  # type: ignore[call-arg]
        _, numbers = self.lists.search(queries, k, params=parameters)
        return np.where(numbers < 0, -1, self.ids[numbers])

    def with_items(self, ids: np.ndarray, matrix: np.ndarray) -> Approximation:
        """The same lists with these items added or replaced; none is hidden."""
        copy: Any = faiss.clone_index(self.lists)
        replaced = np.flatnonzero(np.isin(self.ids, ids))
        if len(replaced):
            copy.remove_ids(faiss.IDSelectorBatch(replaced))
        numbers = np.arange(len(self.ids), len(self.ids) + len(ids))
        copy.add_with_ids(np.ascontiguousarray(matrix, np.float32), numbers)
        return Approximation(copy, self.recall, np.concatenate([self.ids, ids]))

    def without(self, hidden: np.ndarray) -> Approximation:
        """The same lists, of which these ids are never answered."""
        return replace(self, hidden=hidden)


def approximate(matrix: np.ndarray, ids: np.ndarray) -> Approximation | None:
    """Inverted lists that reach RECALL_GATE, or None when probing a quarter of them does not.

    Held-out queries are averages of pairs of items, so that none is its own nearest neighbour.

    Args:
        matrix: float32 [N, D].
        ids: int64 [N].
    """
    count, width = matrix.shape
    cells = max(1, int(4 * math.sqrt(count)))
    lists: Any = faiss.index_factory(width, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    lists.train(matrix[rng.choice(count, min(count, 40 * cells), replace=False)])
    lists.add(matrix)
    exact = faiss.IndexFlatIP(width)
    exact.add(matrix)
    pairs = rng.integers(0, count, size=(2, min(GATE_QUERIES, count)))
    queries = (matrix[pairs[0]] + 0.25 * matrix[pairs[1]]).astype(np.float32)
    _, truth = exact.search(queries, GATE_K)
    probes = 8
    while probes <= max(8, cells // 4):
        lists.nprobe = probes
        _, found = lists.search(queries, GATE_K)
        hits = sum(len(np.intersect1d(row, wanted)) for row, wanted in zip(found, truth, strict=True))
        if hits >= RECALL_GATE * truth.size:
            return Approximation(lists, hits / truth.size, ids)
        probes *= 2
    return None
