"""Items that almost nobody acted on, raised in an answer by as much as the shop chooses.

A ranker that learned from a log is right to prefer what was taken before, so that nobody ever sees the others and
nothing is learned about them. How much of an answer is given to learning is a shop's own choice: all of them are
raised by the same log-odds, so that they stand where they cost least, in the answers in which they nearly stood
anyway (docs/log/ranker.md#raised-not-placed). Such a bonus for what is little known is optimism in the face of
uncertainty (Lai and Robbins, Asymptotically efficient adaptive allocation rules, 1985).

Legend: C candidates, k places.
"""

from __future__ import annotations

import numpy as np


def with_rare(
    ids: np.ndarray, scores: np.ndarray, rare: np.ndarray, k: int, height: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k best candidates where rare ones count for more.

    Args:
        ids: int64 [C], distinct.
        scores: float32 [C], log-odds.
        rare: bool [C].
        k: how many at most.
        height: added to the scores of rare items, at least 0; 0: the order of the scores.

    Returns:
        ids and their own scores of at most k, and which of them stand before a better one, bool.
    """
    plainly = np.lexsort((ids, -scores))
    raised = scores[plainly] + np.float32(height) * rare[plainly]
    places = np.lexsort((ids[plainly], -raised))[:k]  # of the chosen in their own order
    rows = plainly[places]
    return ids[rows], scores[rows], rare[rows] & (places > np.arange(len(places)))
