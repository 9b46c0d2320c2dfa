"""NDCG of graded judgements (Järvelin and Kekäläinen, 2002), with the grade itself as gain."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def ndcg(ranked: np.ndarray, judged: Mapping[int, float], k: int) -> float:
    """Discounted gain of the first k answers over that of the best order of all judged items.

    Args:
        ranked: int64, best first; an item that nobody judged gains nothing.
        judged: item -> grade, at least one above 0.
        k: how many answers count.
    """
    gains = np.array([judged.get(item, 0.0) for item in ranked[:k].tolist()])
    ideal = np.sort(np.fromiter(judged.values(), float, len(judged)))[::-1][:k]
    discount = 1 / np.log2(np.arange(2, k + 2))
    return float(gains @ discount[: len(gains)] / (ideal @ discount[: len(ideal)]))
