"""Is the difference between two encoders larger than the variation over seeds? Differences, margins, a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evaluation.science.encoders.table import Cell

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The difference between two encoders in one measurement.

    Attributes:
        value: first minus second.
        margin: half-width of its confidence interval over seeds; None where an encoder has one seed.
    """

    value: float
    margin: float | None

    @property
    def real(self) -> bool:
        """Whether it is larger than its margin."""
        return self.margin is not None and abs(self.value) > self.margin


@dataclass(frozen=True)
class Judged:
    """Comparison of two encoders.

    Attributes:
        what: what is compared, e.g. the idea that only the first has.
        differences: by heading of the measurement; more is better in each.
    """

    what: str
    differences: Mapping[str, Difference]

    @property
    def word(self) -> str:
        """The verdict in a word: "better", "worse", "mixed", "no difference" or "not judged"."""
        if not self._judged:
            return "not judged"
        found = {one.value > 0 for one in self.differences.values() if one.real}
        return {(): "no difference", (True,): "better", (False,): "worse"}.get(tuple(found), "mixed")

    @property
    def sentence(self) -> str:
        """The verdict in a sentence."""
        if not self._judged:
            return "A single seed says nothing about chance."
        if self.word == "no difference":
            return f"None of {self._judged} measures moves by more than chance."
        return f"Better in {self._count(1)}; worse in {self._count(-1)}."

    @property
    def _judged(self) -> int:
        return sum(one.margin is not None for one in self.differences.values())

    def _count(self, sign: int) -> str:
        moved = {
            label: one.value for label, one in self.differences.items() if one.real and one.value * sign > 0
        }
        if not moved:
            return "none"
        most = max(moved, key=lambda label: abs(moved[label]))
        among = "" if len(moved) == 1 else "most in "
        return f"{len(moved)} of {self._judged} measures, {among}{most} ({moved[most]:+.3f})"


def difference(first: Cell, second: Cell) -> Difference:
    """First minus second, with Welch's interval over seeds (Welch 1947).

    margin = t * sqrt(v1 + v2), v = sd^2 / seeds, t the two-sided 95 % quantile of Student's distribution with
    (v1 + v2)^2 / (v1^2 / (n1 - 1) + v2^2 / (n2 - 1)) degrees of freedom. Only training seeds vary, not the choice of
    held-out items.
    """
    value = first.mean - second.mean
    if first.sd is None or second.sd is None:
        return Difference(value, None)
    one, other = first.sd**2 / first.seeds, second.sd**2 / second.seeds
    if one + other == 0:
        return Difference(value, 0.0)
    freedom = (one + other) ** 2 / (one**2 / (first.seeds - 1) + other**2 / (second.seeds - 1))
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    return Difference(value, quantile * float(np.sqrt(one + other)))


def judge(
    what: str, first: Mapping[str, Cell], second: Mapping[str, Cell], columns: Mapping[str, str]
) -> Judged:
    """Compare two encoders in the measurements that both have; in every column more is better.

    Args:
        what: see ``Judged``.
        first, second: measurement -> cell.
        columns: measurement -> its heading.
    """
    found = {
        label: difference(first[name], second[name])
        for name, label in columns.items()
        if name in first and name in second
    }
    return Judged(what, found)
