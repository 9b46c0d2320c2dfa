"""Timestamps: how old they are at the request, as the logarithm of seconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ranker.inputs.rules.numbers import Moments, standardised, within
from ranker.inputs.rules.rule import Rule


@dataclass(frozen=True)
class Age:
    """log(1 + seconds from the timestamp to the request), standardised; a time after the request has age 0.

    Attributes:
        feature: its column, timestamps or int64 microseconds since 1970 UTC.
        mean, deviation: of the logarithm, over the training data.
        absent: whether the training data hold nulls, which then have an indicator.
        null: the age, in seconds, that a null stands for; None: none.
        least, most: of the logarithm, over the training data; None: not known.
    """

    feature: str
    mean: float
    deviation: float
    absent: bool = False
    null: float | None = None
    least: float | None = None
    most: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The age, and whether there is none."""
        age = f"age of {self.feature}"
        return (age, f"no {self.feature}") if self.absent else (age,)

    def values(self, column: pa.Array, time_us: np.ndarray) -> np.ndarray:
        """The logarithm, before it is standardised: float64, NaN where null."""
        return log_age(column, time_us, self.null)

    def numbers(self, column: pa.Array, time_us: np.ndarray) -> np.ndarray:
        """As of a ``Number``: within what training saw, standardised and cut, 0 where null; and the indicator."""
        values = within(self.values(column, time_us), self.least, self.most)
        return standardised(values, self.mean, self.deviation, self.absent)


class AgeLearner:
    """Measures the logarithm of ages; arguments as the attributes of ``Age``."""

    def __init__(self, feature: str, null: float | None = None) -> None:
        self.feature, self.null, self.moments = feature, null, Moments()

    def see(self, column: pa.Array, time_us: np.ndarray) -> None:
        """Add the ages of a column."""
        self.moments.add(log_age(column, time_us, self.null))

    def learned(self) -> Rule:
        """Mean, deviation, bounds, and whether there were nulls."""
        found = self.moments
        return Age(
            self.feature, found.mean, found.deviation, found.absent, self.null, found.least, found.most
        )


def log_age(column: pa.Array, time_us: np.ndarray, null: float | None = None) -> np.ndarray:
    """log(1 + seconds), float64; where the timestamp is null that of the seconds ``null``, or NaN."""
    if pa.types.is_timestamp(column.type) and column.type.unit != "us":
        column = column.cast(pa.timestamp("us", column.type.tz))
    since = column.cast(pa.int64())
    known = since.fill_null(0) if since.null_count else since
    age = np.log1p(np.maximum((time_us - known.to_numpy()) / 1e6, 0))
    if since.null_count:
        age[since.is_null().to_numpy(zero_copy_only=False)] = np.nan if null is None else np.log1p(null)
    return age
