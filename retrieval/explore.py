"""Places of an answer that are kept for items that almost nobody acted on.

A ranker that learned from a log is right to prefer what was taken before, so that nobody ever sees the others and
nothing is learned about them. How many places a shop gives to learning is its own choice
(docs/log/ranker.md#exploring-is-a-choice).

Legend: C candidates, k places.
"""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-9  # so that a tenth of ten places is one


def with_rare(
    ids: np.ndarray, scores: np.ndarray, rare: np.ndarray, k: int, share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k best candidates, of whose first n places, for every n, at least ``share`` x n hold rare items.

    A place is given away only where too few rare items stand before it by their own score: the best of the others
    takes it, while there are any. The first k of a longer answer are the answer of length k.

    Args:
        ids: int64 [C], distinct.
        scores: float32 [C].
        rare: bool [C].
        k: how many at most.
        share: from 0 to 1, rounded down to whole places; 0: the order of the scores.

    Returns:
        ids and scores of at most k, and which of them stand before a better one, bool.
    """
    order = np.lexsort((ids, -scores))
    waiting = np.flatnonzero(rare[order]).tolist()[::-1]  # places in ``order``, the best last
    left = np.ones(len(order), dtype=bool)
    chosen: list[int] = []
    explored: list[bool] = []
    best, found = 0, 0
    for length in range(1, min(k, len(order)) + 1):
        while not left[best]:
            best += 1
        while waiting and not left[waiting[-1]]:
            waiting.pop()
        gives = bool(waiting) and found < int(share * length + ROUNDING)
        place = waiting[-1] if gives else best
        left[place] = False
        found += int(rare[order[place]])
        chosen.append(int(order[place]))
        explored.append(place != best)
    rows = np.array(chosen, dtype=np.int64)
    return ids[rows], scores[rows], np.array(explored, dtype=bool)
