"""Booleans: 1 for true and 0 for false."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ranker.inputs.rules.rule import Rule, finite


@dataclass(frozen=True)
class Boolean:
    """1, 0, and an indicator of null where the training data hold nulls.

    Attributes:
        feature: its column.
        absent: whether the training data hold nulls.
    """

    feature: str
    absent: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The truth, and whether there is none."""
        return (self.feature, f"no {self.feature}") if self.absent else (self.feature,)

    def numbers(self, column: pa.Array, time_us: np.ndarray) -> np.ndarray:
        """1 where true, 0 where false or null; and the indicator."""
        values = finite(column, self.feature)
        missing = np.isnan(values)
        both = np.stack([np.where(missing, 0, values), missing], axis=1)
        return both[:, : 1 + self.absent].astype(np.float32)


class BooleanLearner:
    """Notes whether there are nulls."""

    def __init__(self, feature: str) -> None:
        self.feature, self.values, self.nulls = feature, 0, 0

    def see(self, column: pa.Array, time_us: np.ndarray) -> None:
        """Count values and nulls."""
        missing = int(np.isnan(finite(column, self.feature)).sum())
        self.values, self.nulls = self.values + len(column) - missing, self.nulls + missing

    def learned(self) -> Rule:
        """Whether there were values and nulls."""
        return Boolean(self.feature, bool(self.nulls and self.values))
