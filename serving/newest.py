"""The newest items, for whom too few others are known."""

from __future__ import annotations

import numpy as np

from retrieval.index import ItemIndex
from retrieval.requests import Request

AT_ONCE = 1_000  # items looked at, the newest first, until enough of them may be answered


def followed_by_newest(
    ids: np.ndarray, scores: np.ndarray, k: int, request: Request, newest: np.ndarray, index: ItemIndex
) -> tuple[np.ndarray, np.ndarray]:
    """An answer, then the newest other items that may be answered, so that there are k if so many exist.

    Args:
        ids, scores: int64 and float32 of the answer.
        k: how many are asked for.
        request: whose category and exclusions hold.
        newest: int64, every item, the newest first.
        index: says which items may be answered.

    Returns:
        ids and scores; those added score 0.
    """
    known, added = np.union1d(ids, request.exclude), np.empty(0, np.int64)
    for start in range(0, len(newest), AT_ONCE):
        some = newest[start : start + AT_ONCE]
        some = some[index.contains(some, request.category) & ~np.isin(some, known)]
        added = np.append(added, some)[: max(k - len(ids), 0)]
        if len(ids) + len(added) >= k:
            break
    return np.append(ids, added), np.append(scores, np.zeros(len(added), scores.dtype))
