"""Rows of different lengths, one after the other: how they are found again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def owners(offsets: np.ndarray) -> np.ndarray:
    """Which of R rows each entry belongs to, int64 [T], from offsets int64 [R + 1]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def offsets_of(counts: np.ndarray | Sequence[int]) -> np.ndarray:
    """Offsets int64 [R + 1] of rows that hold ``counts`` [R] entries each."""
    return np.append(0, np.cumsum(counts)).astype(np.int64)


def entries(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries of R stretches, stretch after stretch.

    Args:
        starts: int64 [R], where each begins.
        counts: int64 [R], how many entries it has.

    Returns:
        the places of all entries, int64 [T], and their offsets, int64 [R + 1].
    """
    offsets = offsets_of(counts)
    return np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1]), offsets
