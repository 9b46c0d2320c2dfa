"""Textbook metrics over plain arrays, vectorised; ties count half, and no data is an error, never 0.0.

Ragged sets of ids are (offsets, ids): request r owns ``ids[offsets[r]:offsets[r + 1]]``. Ranked lists
are int64 of shape (R, K), best first, padded at the end with -1 where fewer than K candidates exist.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset.auc import NoData, group_auc
from dataset.jagged import owners

PADDING = -1
SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class Measurement:
    """One number of the evaluation.

    Attributes:
        name: flat name, e.g. ``retrieval/cold/recall@20``.
        value: the number; always finite.
        n: number of rows, users or requests that were averaged (the evaluator's docstring says which).
        split: the part of the data it was measured on, e.g. ``test``.
        low, high: its 95 % interval, where one was computed.
    """

    name: str
    value: float
    n: int
    split: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.value):
            raise ValueError(f"{self.name} ({self.split}): expected a finite number, found {self.value}")
        if self.n < 1:
            raise NoData(f"{self.name} ({self.split}): measured on {self.n} rows; leave it out instead")


def gauc(label: np.ndarray, score: np.ndarray, user: np.ndarray) -> tuple[float, int]:
    """Mean AUC per user weighted by the user's impressions; users with one class only are skipped.

    Returns:
        (value, how many users counted).

    Raises:
        NoData: no user has both classes.
    """
    value, size = group_auc(label, score, user)
    if len(value) == 0:
        raise NoData(f"GAUC needs a user with both classes, found none among {len(np.unique(user))} users")
    return float(np.average(value, weights=size)), len(value)


def log_loss(label: np.ndarray, probability: np.ndarray) -> float:
    """Mean negative log likelihood in nats; probabilities are clipped to [1e-7, 1 - 1e-7].

    Raises:
        NoData: no rows.
    """
    if len(label) == 0:
        raise NoData("log loss needs at least one row")
    y = np.asarray(label, dtype=np.float64)
    p = np.clip(np.asarray(probability, dtype=np.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def normalized_entropy(label: np.ndarray, probability: np.ndarray) -> float:
    """Log loss divided by the entropy of the base rate: 1 is as good as always predicting the mean.

    (He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook", section 3.)

    Raises:
        NoData: no rows, or one class only (the base rate has no entropy).
    """
    loss = log_loss(label, probability)
    rate = float(np.mean(np.asarray(label, dtype=np.float64)))
    if rate in (0.0, 1.0):
        raise NoData(f"normalized entropy needs both classes, found {len(label)} rows of one")
    return loss / float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def calibration_ratio(label: np.ndarray, probability: np.ndarray) -> float:
    """Predicted clicks over observed clicks, sum p / sum y: 1 is unbiased, above 1 over-predicts.

    Raises:
        NoData: no positive label.
    """
    observed = float(np.sum(label, dtype=np.float64))
    if observed == 0:
        raise NoData(f"the calibration ratio needs a positive label, found none in {len(label)} rows")
    return float(np.sum(probability, dtype=np.float64)) / observed


def reliability(label: np.ndarray, probability: np.ndarray, bins: int = 10) -> tuple[np.ndarray, ...]:
    """The reliability diagram: rows sorted by probability and cut into ``bins`` parts of equal count.

    Equal count instead of equal width, because most click probabilities are near zero and would share one bin. Rows
    with the same probability are in the same part, so that the diagram does not depend on the order of rows.

    Returns:
        (mean probability, mean label, count), each of shape (at most bins): empty parts are left out.

    Raises:
        NoData: no rows.
    """
    if len(label) == 0:
        raise NoData("a reliability diagram needs at least one row")
    p = np.asarray(probability, dtype=np.float64)
    below = np.searchsorted(np.sort(p), p)
    part = below * bins // len(p)
    count = np.bincount(part, minlength=bins)
    mean_p = np.bincount(part, weights=p, minlength=bins)
    mean_y = np.bincount(part, weights=np.asarray(label, dtype=np.float64), minlength=bins)
    kept = count > 0
    return mean_p[kept] / count[kept], mean_y[kept] / count[kept], count[kept]


def expected_calibration_error(label: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Mean |mean probability - mean label| over the equal-count bins of ``reliability``, weighted by count.

    Raises:
        NoData: no rows.
    """
    mean_p, mean_y, count = reliability(label, probability, bins)
    return float(np.average(np.abs(mean_p - mean_y), weights=count))


def hits(ranked: np.ndarray, offsets: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Which places of each ranked list hold a relevant item.

    Args:
        ranked: int64 of shape (R, K), -1 where the list has ended.
        offsets: int64 of shape (R + 1).
        relevant: int64 ids, ragged over requests by ``offsets``.

    Returns:
        bool of shape (R, K).

    Raises:
        ValueError: a list names an item twice (it would be counted twice).
    """
    requests, depth = ranked.shape
    known = np.unique(relevant)
    if requests == 0 or depth == 0:
        return np.zeros(ranked.shape, dtype=bool)
    by_row = np.sort(ranked, axis=1)
    twice = ((by_row[:, 1:] == by_row[:, :-1]) & (by_row[:, 1:] != PADDING)).any(axis=1)
    if twice.any():
        first = np.flatnonzero(twice)[:3].tolist()
        raise ValueError(
            f"expected distinct items in each ranked list, "
            f"found repeats in {twice.sum()} of {requests} (rows {first})"
        )
    if len(known) == 0:
        return np.zeros(ranked.shape, dtype=bool)
    # Ids can be as large as 2**63, so the keys of (request, id) pairs use the id's rank among the relevant ids.
    place = np.minimum(np.searchsorted(known, ranked), len(known) - 1)
    row = owners(offsets)
    wanted = row * len(known) + np.searchsorted(known, relevant)
    found = np.isin(np.arange(requests)[:, None] * len(known) + place, wanted)
    return found & (known[place] == ranked) & (ranked != PADDING)


def recall_at(hit: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """|top-k and relevant| / |relevant| of each request; with one relevant item this is the hit rate.

    Args:
        hit: bool of shape (R, K).
        relevant: int64 of shape (R), how many relevant items each request has, at least 1.
        k: length of the list that counts.

    Returns:
        float64 of shape (R).
    """
    return hit[:, :k].sum(axis=1) / relevant


def ndcg_at(hit: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Binary NDCG@k of each request: sum of 1 / log2(rank + 1) over hits, over the best possible sum.

    Args and returns as ``recall_at``. (Järvelin and Kekäläinen 2002, with gain 1 for relevant.)
    """
    discount = 1 / np.log2(np.arange(2, k + 2))
    top = hit[:, :k]
    ideal = np.cumsum(discount)[np.minimum(relevant, k) - 1]
    return (top * discount[: top.shape[1]]).sum(axis=1) / ideal


def reciprocal_rank(hit: np.ndarray) -> np.ndarray:
    """1 / rank of the first hit of each request, 0 where the list has none; the mean is MRR."""
    if hit.shape[1] == 0:
        return np.zeros(len(hit))
    return np.where(hit.any(axis=1), 1 / (hit.argmax(axis=1) + 1), 0.0)


def coverage_at(ranked: np.ndarray, k: int, catalogue: int) -> float:
    """Fraction of the catalogue's items that appear in at least one top-k list.

    Raises:
        NoData: no request or an empty catalogue.
    """
    if len(ranked) == 0 or catalogue == 0:
        raise NoData(f"coverage needs requests and items, found {len(ranked)} and {catalogue}")
    shown = np.unique(ranked[:, :k])
    return int((shown != PADDING).sum()) / catalogue
