"""A profile for Feast's validation: are the rows of a join like those of a saved data set?

``get_historical_features(...).to_df(validation_reference=...)`` asks a *profile* of the saved rows whether the
joined ones pass. Feast's own profiler needs an old release of Great Expectations and keeps its rules as pickled code;
this one needs neither, and learns its rules from the rows::

    usual = saved.as_reference("usual", UsualProfiler(["discount", "brand"]))
    job.to_df(validation_reference=usual)  # feast.dqm.errors.ValidationFailed names what has changed

Feast's registry stores profilers of Great Expectations only, so such a reference is made from its saved data set
where it is used.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pandas as pd
from feast.dqm.profilers.profiler import Profile, Profiler, ValidationError, ValidationReport


@dataclass(frozen=True)
class Column:
    """What a feature was like in the saved rows.

    Attributes:
        nulls: share of the rows without a value.
        low, high: smallest and largest number, or length of a list; None for a category, or where all were null.
        values: the categories; empty for numbers and lists.
    """

    nulls: float
    low: float | None
    high: float | None
    values: frozenset[object]

    def __str__(self) -> str:
        if self.low is None:
            return f"one of {len(self.values):,} categories"
        return f"{self.low:g} to {self.high:g}"


class Unregistered:
    """What Feast's registry cannot hold."""

    def to_proto(self) -> NoReturn:
        """Refuse.

        Raises:
            TypeError: always; says what to do instead.
        """
        raise TypeError(
            "Feast's registry keeps profilers of Great Expectations only, expected one that is not applied. Make the "
            "reference where it is used: store.get_saved_dataset(name).as_reference(name, UsualProfiler(features))"
        )

    @classmethod
    def from_proto(cls, proto: object) -> NoReturn:
        """Refuse, as ``to_proto`` does."""
        raise TypeError(f"expected nothing to read: this profile is never stored in a registry, got {proto}")


class Findings(ValidationReport):
    """What does not pass; its text has a line for each."""

    def __init__(self, found: list[tuple[ValidationError, str]]) -> None:
        self._found = found

    @property
    def is_success(self) -> bool:
        """Whether nothing was found."""
        return not self._found

    @property
    def errors(self) -> list[ValidationError]:
        """One error for each check and column that does not pass."""
        return [error for error, _ in self._found]

    def __str__(self) -> str:
        return "\n".join(text for _, text in self._found)

    __repr__ = __str__


class UsualProfile(Unregistered, Profile):
    """The columns as they were; a value is unusual where it is out of their range, or none of their categories."""

    def __init__(self, columns: dict[str, Column], share: float) -> None:
        self.columns, self.share = columns, share

    def validate(self, dataset: pd.DataFrame) -> Findings:
        """Compare joined rows with the saved ones.

        A column fails ``present`` where it is missing, ``nulls`` where the share of nulls has grown by more than
        ``share``, and ``usual`` where more than ``share`` of its values are unusual.
        """
        return Findings([one for name in self.columns for one in self._found(name, dataset)])

    def _found(self, name: str, dataset: pd.DataFrame) -> Iterator[tuple[ValidationError, str]]:
        if name not in dataset:
            missing = ValidationError("present", name, missing_count=len(dataset))
            yield missing, f"{name}: expected the column, found none"
            return
        known, values = self.columns[name], dataset[name]
        held = values.dropna()
        empty = len(values) - len(held)
        if empty > (known.nulls + self.share) * len(values):
            percent = 100 * empty / len(values)
            error = ValidationError("nulls", name, missing_count=empty, missing_percent=percent)
            yield (
                error,
                f"{name}: expected {known.nulls:.1%} nulls, as in the saved rows, found {empty:,} in {len(values):,}",
            )
        odd = held[_unusual(held, known)]
        if len(odd) > self.share * len(held):
            percent, first = 100 * len(odd) / len(held), odd.iloc[0]
            error = ValidationError(
                "usual", name, observed_value=first, unexpected_count=len(odd), unexpected_percent=percent
            )
            yield (
                error,
                f"{name}: expected {known}, found {len(odd):,} others in {len(held):,}, such as {_said(first)}",
            )


class UsualProfiler(Unregistered, Profiler):
    """Learns from saved rows what each feature is usually like.

    Args:
        features: columns to look at, as they are called in the joined frame.
        share: share of the rows that may differ before a column fails.
    """

    def __init__(self, features: Sequence[str], share: float = 0.05) -> None:
        self.features, self.share = tuple(features), share

    def analyze_dataset(self, dataset: pd.DataFrame) -> UsualProfile:
        """Profile the saved rows.

        Raises:
            ValueError: there are no rows, or a feature is none of their columns.
        """
        missing = [name for name in self.features if name not in dataset]
        if missing or dataset.empty:
            raise ValueError(
                f"expected saved rows with the features {', '.join(self.features)}, got {len(dataset)} rows "
                f"with the columns {', '.join(map(str, dataset.columns))}"
            )
        return UsualProfile({name: _column(dataset[name]) for name in self.features}, self.share)


def _column(values: pd.Series) -> Column:
    held = values.dropna()
    nulls = 1 - len(held) / len(values)
    numbers = _numbers(held)
    if numbers is None or not len(numbers):
        return Column(nulls, None, None, frozenset(held))
    return Column(nulls, float(numbers.min()), float(numbers.max()), frozenset())


def _numbers(held: pd.Series) -> np.ndarray | None:
    """Numbers as they are, lists by their length; None for categories."""
    if pd.api.types.is_bool_dtype(held):
        return None
    if pd.api.types.is_numeric_dtype(held):
        return held.to_numpy(np.float64)
    if len(held) and all(isinstance(value, list | tuple | np.ndarray) for value in held):
        return np.array([len(value) for value in held], np.float64)
    return None


def _unusual(held: pd.Series, known: Column) -> np.ndarray:
    numbers = _numbers(held)
    if numbers is not None and known.low is not None:
        return (numbers < known.low) | (numbers > known.high)
    return np.array([not isinstance(value, Hashable) or value not in known.values for value in held], bool)


def _said(value: object) -> str:
    """A single precision number without the digits that double precision adds."""
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)
