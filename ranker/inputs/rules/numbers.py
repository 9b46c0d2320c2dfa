"""Numbers: the logarithm or the value itself, standardised; or the bucket between learned borders.

What is null enters as the average and, where the training data hold nulls, as a 1 in an indicator of its own. Without
nulls in training there is no indicator: the weight behind it would never have been learned. A field may say instead
which number a null stands for: then it is that number (docs/log/ranker.md#never-shown-is-not-average).

A number beyond all that the training data hold enters as the most extreme of them. Some only ever grow, such as the
age of items that are as old as the log: they are clocks, and what a model learned of the days that it saw would be
carried on to days that it did not (docs/log/ranker.md#ages-are-clocks).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ranker.inputs.rules.rule import Rule, finite

CLIP = 5.0  # standardised numbers are cut here: an old item must not drown the other inputs
BUCKETS = 16  # of equal frequency, unless a tag says how many
SAMPLE = 1 << 18  # values kept to find the borders


@dataclass(frozen=True)
class Number:
    """A number as itself (``standard``) or as sign · log(1 + |x| / unit) (``log``), then standardised.

    Attributes:
        feature: its column.
        transform: ``log`` or ``standard``.
        mean, deviation: after the transform, over the values of the training data.
        unit: what counts as small to the logarithm.
        absent: whether the training data hold nulls, which then have an indicator.
        null: the number that a null stands for; None: none.
        least, most: after the transform, over the values of the training data; None: not known.
    """

    feature: str
    transform: str
    mean: float
    deviation: float
    unit: float = 1.0
    absent: bool = False
    null: float | None = None
    least: float | None = None
    most: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The number, and whether there is none."""
        return (self.feature, f"no {self.feature}") if self.absent else (self.feature,)

    def values(self, column: pa.Array, time_us: np.ndarray) -> np.ndarray:
        """After the transform, before they are standardised: float64, NaN where null."""
        return transformed(filled(finite(column, self.feature), self.null), self.transform, self.unit)

    def numbers(self, column: pa.Array, time_us: np.ndarray) -> np.ndarray:
        """Within what training saw, standardised and cut at CLIP deviations, 0 where null; and the indicator."""
        values = within(self.values(column, time_us), self.least, self.most)
        return standardised(values, self.mean, self.deviation, self.absent)


def filled(values: np.ndarray, null: float | None) -> np.ndarray:
    """Float64 values with NaN replaced by what a null stands for."""
    return values if null is None else np.where(np.isnan(values), null, values)


def transformed(values: np.ndarray, transform: str, unit: float) -> np.ndarray:
    """Float64 values as they are, or their logarithm with their sign."""
    return np.copysign(np.log1p(np.abs(values) / unit), values) if transform == "log" else values


def within(values: np.ndarray, least: float | None, most: float | None) -> np.ndarray:
    """Float64 values, those beyond a bound replaced by it; NaN stays."""
    return values if least is None or most is None else values.clip(least, most)


def standardised(values: np.ndarray, mean: float, deviation: float, absent: bool) -> np.ndarray:
    """Float32 [N, 1], or [N, 2] with the indicator of null, of float64 values with NaN for null."""
    even = ((values - mean) / deviation).clip(-CLIP, CLIP)
    missing = np.isnan(values)
    even[missing] = 0
    return (np.stack([even, missing], axis=1) if absent else even[:, None]).astype(np.float32)


class Moments:
    """Count, mean, deviation and bounds of values that come in pieces (Chan et al., 1979).

    Args:
        count, mean, squares: of the values before: how many, their mean, and the sum of squared differences from it.
        least, most: of the values before.
    """

    def __init__(
        self,
        count: int = 0,
        mean: float = 0.0,
        squares: float = 0.0,
        least: float = math.inf,
        most: float = -math.inf,
    ) -> None:
        self.count, self.mean, self.squares, self.nulls = count, mean, squares, 0
        self._least, self._most = least, most

    def add(self, values: np.ndarray) -> None:
        """Add float64 values; NaN counts as null."""
        known = values[~np.isnan(values)]
        self.nulls += len(values) - len(known)
        if not len(known):
            return
        mean = float(known.mean())
        total, step = self.count + len(known), mean - self.mean
        self.squares += float(np.square(known - mean).sum()) + step * step * self.count * len(known) / total
        self.mean += step * len(known) / total
        self.count = total
        self._least, self._most = min(self._least, float(known.min())), max(self._most, float(known.max()))

    @property
    def state(self) -> tuple[int, float, float, float, float]:
        """What another one goes on from."""
        return self.count, self.mean, self.squares, self._least, self._most

    @property
    def least(self) -> float | None:
        """The smallest value; None where there was none."""
        return self._least if self.count else None

    @property
    def most(self) -> float | None:
        """The largest value; None where there was none."""
        return self._most if self.count else None

    @property
    def deviation(self) -> float:
        """Of the values; 1 where they hardly differ."""
        found = float(np.sqrt(self.squares / max(self.count, 1)))
        return found if found > 1e-6 else 1.0

    @property
    def absent(self) -> bool:
        """Whether there were values and nulls."""
        return bool(self.nulls and self.count)


class NumberLearner:
    """Measures a number after its transform; arguments as the attributes of ``Number``."""

    def __init__(self, feature: str, transform: str, unit: float = 1.0, null: float | None = None) -> None:
        self.feature, self.transform, self.unit, self.null = feature, transform, unit, null
        self.moments = Moments()

    def see(self, column: pa.Array, time_us: np.ndarray) -> None:
        """Add the values of a column."""
        values = filled(finite(column, self.feature), self.null)
        self.moments.add(transformed(values, self.transform, self.unit))

    def learned(self) -> Rule:
        """Mean, deviation, bounds, and whether there were nulls."""
        found = self.moments
        scale, bounds = (found.mean, found.deviation), (found.least, found.most)
        return Number(self.feature, self.transform, *scale, self.unit, found.absent, self.null, *bounds)


@dataclass(frozen=True)
class Buckets:
    """A number as the bucket it falls into, each with an embedding: row 0 is null, bucket b is row b + 1.

    Attributes:
        feature: its column.
        borders: ascending; bucket b holds the values from border b - 1 up to, not including, border b.
    """

    feature: str
    borders: tuple[float, ...]

    @property
    def rows(self) -> int:
        """One more bucket than borders, and null."""
        return len(self.borders) + 2

    def ids(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """One row per value."""
        values = finite(column, self.feature)
        bucket = np.searchsorted(np.array(self.borders), values, side="right") + 1
        return np.where(np.isnan(values), 0, bucket), np.ones(len(values), dtype=np.int32)


class BucketLearner:
    """Finds borders between which the training values are equally frequent, from an even sample of them."""

    def __init__(self, feature: str, buckets: int = BUCKETS) -> None:
        self.feature, self.buckets = feature, buckets
        self.sample, self.every, self.seen = np.empty(0), 1, 0

    def see(self, column: pa.Array, time_us: np.ndarray) -> None:
        """Keep every k-th value; k doubles whenever the sample is full."""
        values = finite(column, self.feature)
        values = values[~np.isnan(values)]
        kept = values[(-self.seen) % self.every :: self.every]
        self.seen += len(values)
        self.sample = np.concatenate([self.sample, kept])
        while len(self.sample) > SAMPLE:
            self.sample, self.every = self.sample[::2], self.every * 2

    def learned(self) -> Rule:
        """Distinct quantiles; a value that is very frequent takes several, so there may be fewer."""
        if not len(self.sample):
            return Buckets(self.feature, ())
        share = np.arange(1, self.buckets) / self.buckets
        borders = np.unique(np.quantile(self.sample, share, method="inverted_cdf"))
        return Buckets(self.feature, tuple(borders[borders > self.sample.min()].tolist()))
