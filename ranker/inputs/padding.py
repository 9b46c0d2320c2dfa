"""Rows of different lengths as padded rows."""

from __future__ import annotations

import numpy as np


def slots(counts: np.ndarray, left: bool) -> np.ndarray:
    """Which slots of a padded row hold something, filled from the left or right.

    Returns:
        bool [R, max(counts)], at least one slot wide: TorchRec cannot hold a jagged tensor without bags.
    """
    width = int(counts.max(initial=1))
    place = np.arange(width)
    return place < counts[:, None] if left else place >= width - counts[:, None]


def placed(values: np.ndarray, where: np.ndarray, empty: float = 0) -> np.ndarray:
    """Values [T, ...] in the slots of ``where`` bool [R, L] in order, and ``empty`` in the others: [R, L, ...]."""
    out = np.full((*where.shape, *values.shape[1:]), empty, dtype=values.dtype)
    out[where] = values
    return out
