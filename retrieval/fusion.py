"""Reciprocal rank fusion: one order from several whose scores are not comparable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.jagged import Retrieved, best_first, group_best, owners

FUSION = 60  # the constant of reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009)


def fuse_within(tiers: np.ndarray, ids: np.ndarray, ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reciprocal rank fusion of two orders of the same items, which leaves the tiers whole.

    Of a search: relevance to the query and worth to the user are two things, and neither may overrule the other; but
    whoever asks for mugs gets the mugs first, whatever else they would take.

    Args:
        tiers: int64 [C]; an item of a higher tier goes before all of a lower one.
        ids: int64 [C], best first in the first order.
        ranked: float32 [C], scores of the same items that make the second.

    Returns:
        ids, best first, and scores: the tier and, below 1, the fused reciprocal ranks.
    """
    rank = np.argsort(np.lexsort((ids, -ranked)))
    fused = 1.0 / (FUSION + 1 + np.arange(len(ids))) + 1.0 / (FUSION + 1 + rank)
    return best_first(ids, (tiers + fused).astype(np.float32), len(ids))


def fuse(answers: Sequence[Retrieved]) -> Retrieved:
    """Fuse the answers of several sources to the same R requests.

    An item's score is the sum over the sources that answered it of 1 / (FUSION + rank), rank counted from 1.
    """
    owner = [owners(found.offsets) for found in answers]
    rank = [np.arange(len(own)) - found.offsets[own] for own, found in zip(owner, answers, strict=True)]
    request, item_id = np.concatenate(owner), np.concatenate([found.item_id for found in answers])
    order = np.lexsort((item_id, request))
    request, item_id = request[order], item_id[order]
    fused = np.concatenate([1.0 / (FUSION + 1 + place) for place in rank])[order]
    if not len(request):
        return answers[0]
    first = np.flatnonzero(np.append(True, (request[1:] != request[:-1]) | (item_id[1:] != item_id[:-1])))
    score = np.add.reduceat(fused, first).astype(np.float32)
    return group_best(request[first], item_id[first], score, len(answers[0]), len(item_id))
