"""Reciprocal rank fusion: one order out of two whose scores have nothing in common."""

from __future__ import annotations

import numpy as np

from retrieval.jagged import best_first

FUSION = 60  # the constant of reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009)


def fuse_orders(ids: np.ndarray, ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reciprocal rank fusion of two orders of the same items.

    A ranker that learned from impressions knows what an earlier system showed; of items nobody showed it knows
    less than the sources that proposed them (measured in LOG.md), so neither order may overrule the other.

    Args:
        ids: int64 [C], best first in the order of retrieval.
        ranked: float32 [C], the ranker's scores of the same items.

    Returns:
        ids and fused scores, best first.
    """
    rank = np.empty(len(ids), dtype=np.int64)
    rank[np.lexsort((ids, -ranked))] = np.arange(len(ids))
    fused = 1.0 / (FUSION + 1 + np.arange(len(ids))) + 1.0 / (FUSION + 1 + rank)
    return best_first(ids, fused.astype(np.float32), len(ids))
