"""The numbers of a side of a frame in one matrix, those that are only standardised at a stroke.

A call of numpy costs more than the few hundred values of a column of a batch; its slow twin, a rule after the other,
is ``one_by_one``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from ranker.inputs.rules.numbers import CLIP, Number
from ranker.inputs.rules.rule import NumberRule, finite, numbers_of


class SideBySide:
    """Computes W numbers of each row of a table.

    Args:
        rules: feature -> (its column, its rule), in the order of the numbers.
    """

    def __init__(self, rules: Mapping[str, tuple[str, NumberRule]]) -> None:
        ends = np.cumsum([len(rule.names) for _, rule in rules.values()], dtype=np.int64)
        self.width = int(ends[-1]) if len(ends) else 0
        placed = [
            (column, rule, int(end) - len(rule.names))
            for (column, rule), end in zip(rules.values(), ends, strict=True)
        ]
        alike = [(column, rule, place) for column, rule, place in placed if isinstance(rule, Number)]
        alike.sort(key=lambda one: one[1].transform != "log")
        self._alike = [(column, rule.feature) for column, rule, _ in alike]
        self._others = [one for one in placed if not isinstance(one[1], Number)]
        self._places = np.array([place for _, _, place in alike], np.int64)
        self._logs = sum(rule.transform == "log" for _, rule, _ in alike)
        self._unit, self._mean, self._deviation = (
            np.array([getattr(rule, name) for _, rule, _ in alike])[:, None]
            for name in ("unit", "mean", "deviation")
        )
        self._absent = np.array([rule.absent for _, rule, _ in alike], bool)
        stands_for = [np.nan if rule.null is None else rule.null for _, rule, _ in alike]
        self._null = np.array(stands_for)[:, None]
        self._least, self._most = (
            np.array([other if bound is None else bound for bound in bounds])[:, None]
            for other, bounds in (
                (-np.inf, [rule.least for _, rule, _ in alike]),
                (np.inf, [rule.most for _, rule, _ in alike]),
            )
        )

    def numbers(self, table: pa.Table, time_us: np.ndarray) -> np.ndarray:
        """Float32 [N, W]; ``time_us`` int64 [N]: the moment of each row.

        Raises:
            DataError: a number is infinite.
        """
        out = np.empty((len(table), self.width), np.float32)
        for column, rule, place in self._others:
            found = rule.numbers(table[column].combine_chunks(), time_us)
            out[:, place : place + found.shape[1]] = found
        if len(self._alike):
            self._standardise(table, out)
        return out

    def _standardise(self, table: pa.Table, out: np.ndarray) -> None:
        """Fill in those of the rules of kind ``Number``, the logarithms first."""
        values = np.empty((len(self._alike), len(table)))
        for row, (column, _) in enumerate(self._alike):
            values[row] = numbers_of(table[column].combine_chunks())
        if np.isinf(values).any():
            for column, feature in self._alike:
                finite(table[column].combine_chunks(), feature)
        values = np.where(np.isnan(values), self._null, values)
        logs = values[: self._logs]
        np.copysign(np.log1p(np.abs(logs) / self._unit[: self._logs]), logs, out=logs)
        missing = np.isnan(values)
        values = values.clip(self._least, self._most)
        even = ((values - self._mean) / self._deviation).clip(-CLIP, CLIP)
        even[missing] = 0
        out[:, self._places] = even.T
        if self._absent.any():
            out[:, self._places[self._absent] + 1] = missing[self._absent].T


def one_by_one(
    rules: Mapping[str, tuple[str, NumberRule]], table: pa.Table, time_us: np.ndarray
) -> np.ndarray:
    """The same numbers, a rule after the other."""
    parts = [rule.numbers(table[column].combine_chunks(), time_us) for column, rule in rules.values()]
    return np.concatenate([np.empty((len(table), 0), np.float32), *parts], axis=1)
