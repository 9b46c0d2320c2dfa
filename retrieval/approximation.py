"""Inverted lists over a large catalogue: search that reads a part of it, with a recall measured when they were built.

Legend: B queries, N items, D width, K answers, G queries of the gate.
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

    def search(self, queries_BD: np.ndarray, k: int) -> np.ndarray:
        """About the k items of largest inner product with each query; -1 where the lists read hold fewer.

        Args:
            queries_BD: float32 [B, D].
            k: how many.

        Returns:
            int64 ids [B, k].
        """
        parameters = None
        if self.hidden is not None and len(self.hidden):
            numbers = np.flatnonzero(np.isin(self.ids, self.hidden))
            others = faiss.IDSelectorNot(faiss.IDSelectorBatch(numbers))
            parameters = faiss.SearchParametersIVF(sel=others, nprobe=self.lists.nprobe)  # type: ignore[call-arg]
        _, numbers_BK = self.lists.search(queries_BD, k, params=parameters)
        return np.where(numbers_BK < 0, -1, self.ids[numbers_BK])

    def with_items(self, ids: np.ndarray, matrix_ND: np.ndarray) -> Approximation:
        """The same lists with these items added or replaced; none is hidden."""
        copy: Any = faiss.clone_index(self.lists)
        replaced = np.flatnonzero(np.isin(self.ids, ids))
        if len(replaced):
            copy.remove_ids(faiss.IDSelectorBatch(replaced))
        numbers = np.arange(len(self.ids), len(self.ids) + len(ids))
        copy.add_with_ids(np.ascontiguousarray(matrix_ND, np.float32), numbers)
        return Approximation(copy, self.recall, np.concatenate([self.ids, ids]))

    def without(self, hidden: np.ndarray) -> Approximation:
        """The same lists, of which these ids are never answered."""
        return replace(self, hidden=hidden)


def approximate(matrix_ND: np.ndarray, ids: np.ndarray) -> Approximation | None:
    """Inverted lists that reach RECALL_GATE, or None when probing a quarter of them does not.

    Held-out queries are averages of pairs of items, so that none is its own nearest neighbour.

    Args:
        matrix_ND: float32 [N, D].
        ids: int64 [N].
    """
    count, width = matrix_ND.shape
    cells = max(1, int(4 * math.sqrt(count)))
    lists: Any = faiss.index_factory(width, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    lists.train(matrix_ND[rng.choice(count, min(count, 40 * cells), replace=False)])
    lists.add(matrix_ND)
    exact = faiss.IndexFlatIP(width)
    exact.add(matrix_ND)
    pairs_2G = rng.integers(0, count, size=(2, min(GATE_QUERIES, count)))
    queries_GD = (matrix_ND[pairs_2G[0]] + 0.25 * matrix_ND[pairs_2G[1]]).astype(np.float32)
    _, truth_GK = exact.search(queries_GD, GATE_K)
    probes = 8
    while probes <= max(8, cells // 4):
        lists.nprobe = probes
        _, found_GK = lists.search(queries_GD, GATE_K)
        hits = sum(len(np.intersect1d(row, wanted)) for row, wanted in zip(found_GK, truth_GK, strict=True))
        if hits >= RECALL_GATE * truth_GK.size:
            return Approximation(lists, hits / truth_GK.size, ids)
        probes *= 2
    return None
