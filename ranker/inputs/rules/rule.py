"""The contract of a rule: how the column of one feature becomes an input of a model.

A rule is what was learned about a feature from the training data, part of every model's configuration. A null
means that the store has nothing; every rule gives it a meaning of its own.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from dataset.contracts import DataError


@runtime_checkable
class IdRule(Protocol):
    """A feature that enters as rows of a table of embeddings: none, one, or several that are summed.

    Attributes:
        rows: how many rows its table has.
    """

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    def ids(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the table one after the other, int64, and how many belong to each value of N, int32 [N]."""
        ...


@runtime_checkable
class NumberRule(Protocol):
    """A feature that enters as numbers of about unit size."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its W numbers, for people."""
        ...

    def numbers(self, column: pa.Array, time_us: np.ndarray) -> np.ndarray:
        """The numbers of N values, float32 [N, W].

        Args:
            column: N values.
            time_us: int64 [N], the moment of each one (of its request or behaviour), microseconds since 1970 UTC.
        """
        ...


Rule = IdRule | NumberRule


class Learner(Protocol):
    """Learns a rule from the training data, a column at a time."""

    def see(self, column: pa.Array, time_us: np.ndarray) -> None:
        """Take note of N values and the times of their requests."""
        ...

    def learned(self) -> Rule:
        """The rule."""
        ...


def numbers_of(column: pa.Array) -> np.ndarray:
    """A column of numbers or booleans as float64, NaN where null; large integers are rounded."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.float64())
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def finite(column: pa.Array, name: str) -> np.ndarray:
    """A column of numbers or booleans as float64, NaN where there is none; a stored NaN counts as none.

    Raises:
        DataError: a value is infinite.
    """
    values = numbers_of(column)
    if np.isinf(values).any():
        infinite = np.flatnonzero(np.isinf(values))
        raise DataError(
            f"column {name}: {len(infinite)} of {len(values)} values are infinite (rows {infinite[:3].tolist()}). "
            f"Write null where there is no number, then run 'moon store'."
        )
    return values
