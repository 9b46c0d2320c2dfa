"""Calibration: what a model's logits must become so that a predicted probability is how often it comes true.

Every method gives an increasing map of the logit, so calibrated scores have the order of the scores:

    temperature    logit' = a logit,        a > 0    (Guo, ICML 2017)
    platt          logit' = a logit + b,    a > 0    (Platt 1999)
    isotonic       logit' interpolates the pooled violators, at the mean logit and the log-odds of each pool, so that
                   no two logits become one (centred isotonic regression: Oron and Flournoy 2017)

A map is kept as points with straight lines between them. It is fitted to the validation impressions, which the model
did not learn from, and applied where every score is made (``Ranker.score``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from dataset.contracts import DataError

LEAST_SLOPE = 1e-3  # of a logit: a model that knows nothing keeps an order
POOLED = (
    1.0  # impressions at the rate of all that every pool has besides: one without clicks has finite log-odds
)


@dataclass(frozen=True)
class Calibration:
    """An increasing map of logits.

    Attributes:
        method: ``temperature``, ``platt`` or ``isotonic``.
        logit: the points, ascending; at least two.
        calibrated: what they become, ascending. Beyond the first and last point of ``isotonic`` the slope is 1,
            beyond those of the others that between them.
    """

    method: str
    logit: tuple[float, ...]
    calibrated: tuple[float, ...]

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits of float32 or float64 logits of any shape, float32."""
        x, y = np.asarray(self.logit), np.asarray(self.calibrated)
        slopes = np.diff(y) / np.diff(x)
        first, last = (1.0, 1.0) if self.method == "isotonic" else (slopes[0], slopes[-1])
        given = np.asarray(logits, np.float64)
        inside: np.ndarray = np.interp(given, x, y)
        inside += first * np.minimum(given - x[0], 0) + last * np.maximum(given - x[-1], 0)
        return inside.astype(np.float32)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """Of the attributes by name.

        Raises:
            ValueError: the points are no increasing map, or something is missing or unknown.
        """
        try:
            made = cls(content["method"], tuple(content["logit"]), tuple(content["calibrated"]))
            x, y = np.asarray(made.logit, float), np.asarray(made.calibrated, float)
            steps = np.concatenate([np.diff(x), np.diff(y)])
            is_map = made.method in METHODS and set(content) == set(vars(made)) and len(x) == len(y) >= 2
            if not is_map or not np.isfinite(steps).all() or not (steps > 0).all():
                raise ValueError(f"{len(x)} and {len(y)} points of {made.method!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected an increasing map of logits by {', '.join(METHODS)}: {error}"
            ) from None
        return made


def calibrated(method: str, logits: np.ndarray, label: np.ndarray) -> Calibration:
    """Fit a map to logits float32 [C] and labels [C], 1 or 0.

    Raises:
        DataError: there are not both clicks and non-clicks among the labels.
        ValueError: unknown method.
    """
    require_method(method)
    require_both(label)
    return METHODS[method](np.asarray(logits, np.float64), np.asarray(label, np.float64))


def require_method(method: str) -> None:
    """Refuse a method that nobody knows.

    Raises:
        DataError: naming those that there are.
    """
    if method not in METHODS:
        raise DataError(f"unknown calibration {method!r}: expected one of {', '.join(METHODS)}")


def require_both(label: np.ndarray) -> None:
    """Refuse labels of one kind.

    Raises:
        DataError: with how many there are of which.
    """
    clicks = int(np.asarray(label).sum())
    if not 0 < clicks < len(label):
        raise DataError(
            f"expected clicks and non-clicks among the validation impressions to calibrate with, found {clicks} "
            f"clicks of {len(label)} impressions. Train without --calibrate."
        )


def _temperature(logits: np.ndarray, label: np.ndarray) -> Calibration:
    (scale,) = _least_loss(lambda a: a[0] * logits, logits[:, None], label, [1.0])
    return _line("temperature", scale, 0.0)


def _platt(logits: np.ndarray, label: np.ndarray) -> Calibration:
    columns = np.stack([logits, np.ones_like(logits)], axis=1)
    scale, offset = _least_loss(lambda a: a[0] * logits + a[1], columns, label, [1.0, 0.0])
    return _line("platt", scale, offset)


def _line(method: str, scale: float, offset: float) -> Calibration:
    return Calibration(method, (-1.0, 1.0), (offset - scale, offset + scale))


def _least_loss(
    map_: Callable[[np.ndarray], np.ndarray], columns: np.ndarray, label: np.ndarray, start: list[float]
) -> list[float]:
    """The parameters of a linear map of least log loss; the first is a slope, at least ``LEAST_SLOPE``."""

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        made = map_(parameters)
        value = np.logaddexp(0, made) - label * made
        return float(value.mean()), columns.T @ (expit(made) - label) / len(label)

    bounds = [(LEAST_SLOPE, None), *[(None, None)] * (len(start) - 1)]
    return [float(one) for one in minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x]


def _isotonic(logits: np.ndarray, label: np.ndarray) -> Calibration:
    chance = IsotonicRegression().fit_transform(logits, label)
    _, pool = np.unique(chance, return_inverse=True)
    size = np.bincount(pool)
    centre = np.bincount(pool, logits) / size
    clicks = np.bincount(pool, label)
    extra = POOLED * label.mean()
    odds = np.log(clicks + extra) - np.log(size - clicks + POOLED - extra)
    # What is added may turn the order of small pools around: those are left to their neighbours.
    kept = np.concatenate([[True], odds[1:] > np.maximum.accumulate(odds)[:-1]])
    if kept.sum() < 2:
        return _line("isotonic", 1.0, float(odds[0] - centre[0]))
    return Calibration("isotonic", tuple(centre[kept].tolist()), tuple(odds[kept].tolist()))


METHODS: Mapping[str, Callable[[np.ndarray, np.ndarray], Calibration]] = {
    "temperature": _temperature,
    "platt": _platt,
    "isotonic": _isotonic,
}
