"""Quality of click probabilities: ranking (AUC, GAUC), normalised entropy (NE) and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from dataset.auc import NoData, auc
from evaluation.metrics import (
    Measurement,
    calibration_ratio,
    expected_calibration_error,
    gauc,
    log_loss,
    normalized_entropy,
)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits to probabilities, float64, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))


def ctr_quality(
    label: np.ndarray,
    probability: np.ndarray,
    user: np.ndarray,
    slices: Mapping[str, np.ndarray] | None = None,
    split: str = "test",
    prefix: str = "ctr/full",
) -> Iterator[Measurement]:
    """Measure predicted click probabilities of C impressions.

    Args:
        label: float or int of shape (C), 1 clicked, 0 not.
        probability: float of shape (C), in [0, 1] (see ``probabilities`` for logits).
        user: int64 of shape (C), whose impression it was.
        slices: name -> bool mask of shape (C), e.g. ``cold`` items, ``new`` items, ``no_image``,
            ``new_user``.
        split: the part of the data that the impressions are from.
        prefix: first part of the names, e.g. ``ctr/full`` or ``ctr/id_only``.

    Yields:
        auc, ne, logloss (nats), calibration (sum p / sum y), ece (10 bins of equal count), n = impressions; gauc,
        n = users with both classes. Then auc, gauc and ne of each slice. Undefined metrics are not yielded.

    Raises:
        ValueError: arrays of different lengths, or probabilities outside [0, 1] or not finite.
    """
    _check(label, probability, user)
    yield from _order(label, probability, user, split, prefix)
    rows = len(label)
    yield from _present(f"{prefix}/logloss", lambda: (log_loss(label, probability), rows), split)
    yield from _present(f"{prefix}/calibration", lambda: (calibration_ratio(label, probability), rows), split)
    yield from _present(
        f"{prefix}/ece", lambda: (expected_calibration_error(label, probability), rows), split
    )
    for name, mask in (slices or {}).items():
        yield from _order(label[mask], probability[mask], user[mask], split, f"{prefix}/{name}")


def _order(
    label: np.ndarray, probability: np.ndarray, user: np.ndarray, split: str, prefix: str
) -> Iterator[Measurement]:
    yield from _present(f"{prefix}/auc", lambda: (auc(label, probability), len(label)), split)
    yield from _present(f"{prefix}/gauc", lambda: gauc(label, probability, user), split)
    yield from _present(f"{prefix}/ne", lambda: (normalized_entropy(label, probability), len(label)), split)


def _present(name: str, measure: Callable[[], tuple[float, int]], split: str) -> Iterator[Measurement]:
    """The measurement, or nothing where it is undefined."""
    try:
        value, n = measure()
    except NoData:
        return
    yield Measurement(name, value, n, split)


def _check(label: np.ndarray, probability: np.ndarray, user: np.ndarray) -> None:
    if not len(label) == len(probability) == len(user):
        raise ValueError(
            f"expected one label, probability and user per impression, "
            f"found {len(label)}, {len(probability)}, {len(user)}"
        )
    bad = np.flatnonzero(~((probability >= 0) & (probability <= 1)))
    if len(bad):
        raise ValueError(
            f"expected probabilities in [0, 1], found {len(bad)} of {len(probability)} outside "
            f"(rows {bad[:3].tolist()}, values {np.asarray(probability)[bad[:3]].tolist()})"
        )
