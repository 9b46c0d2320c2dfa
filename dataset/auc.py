"""Area under the ROC curve, over all rows or per group; ties count half."""

from __future__ import annotations

import numpy as np


class NoData(ValueError):
    """The metric is undefined on this input (no rows, one class, nothing relevant): report it as absent."""


def midranks(score: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Rank each score within its group from 1; tied scores share the mean of their ranks.

    Args:
        score: float of shape (C).
        group: integer group of each row, shape (C), any order.

    Returns:
        float64 of shape (C).
    """
    order = np.lexsort((score, group))
    sorted_score, sorted_group = score[order], group[order]
    new_group = np.r_[True, sorted_group[1:] != sorted_group[:-1]]
    new_run = new_group | np.r_[True, sorted_score[1:] != sorted_score[:-1]]
    run = np.cumsum(new_run) - 1
    run_start = np.flatnonzero(new_run)
    run_end = np.r_[run_start[1:], len(score)]
    group_start = np.flatnonzero(new_group)[np.cumsum(new_group) - 1]
    rank = np.empty(len(score))
    rank[order] = (run_start[run] + 1 + run_end[run]) / 2 - group_start
    return rank


def group_auc(label: np.ndarray, score: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC of every group that has both classes, by the Mann-Whitney statistic with ties counted half.

    Returns:
        (auc float64 of shape (G), size int64 of shape (G)), in the order of the groups; one-class groups
        are left out.
    """
    if len(label) == 0:
        return np.empty(0), np.empty(0, dtype=np.int64)
    positive = np.asarray(label) > 0.5
    codes = np.unique(group, return_inverse=True)[1].reshape(-1)
    rank_sum = np.bincount(codes, weights=midranks(np.asarray(score, dtype=np.float64), codes) * positive)
    size = np.bincount(codes)
    ones = np.bincount(codes, weights=positive)
    zeros = size - ones
    both = (ones > 0) & (zeros > 0)
    ones, zeros = ones[both], zeros[both]
    return (rank_sum[both] - ones * (ones + 1) / 2) / (ones * zeros), size[both]


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: probability that a positive outscores a negative; ties count half.

    Raises:
        NoData: fewer than one row of each class.
    """
    value, _ = group_auc(label, score, np.zeros(len(label), dtype=np.int64))
    if len(value) == 0:
        raise NoData(f"AUC: expected rows of both classes, found {len(label)} rows of at most one")
    return float(value[0])
