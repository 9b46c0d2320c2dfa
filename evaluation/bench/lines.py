"""The output of a benchmark: one line per number, as text or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

OURS, FEAST = "ours", "Feast"


@dataclass(frozen=True)
class Drawn:
    """How a number is drawn on a page, together with others of the same measure.

    Attributes:
        measure: what is compared, with its unit; numbers of one measure share a plot.
        side: which side the number belongs to: ours, Feast or the floor.
        x: amount of work, for a point of a curve; None for a bar.
        higher_is_better: False for costs.
    """

    measure: str
    side: str
    x: float | None = None
    higher_is_better: bool = False


@dataclass(frozen=True)
class Line:
    """One measured number.

    Attributes:
        name: what was measured, with its unit.
        value: the median over ``n`` measurements.
        goal: least value wanted, or the most where less is better; None without a goal.
        met: whether the goal is met; None without a goal.
        n: number of measurements.
        drawn: how it is drawn on the benchmark's page, if it is.
    """

    name: str
    value: float
    goal: float | None
    met: bool | None
    n: int
    drawn: Drawn | None = None


def line(name: str, values: Sequence[float], goal: float | None = None, drawn: Drawn | None = None) -> Line:
    """The median of some measurements as a line; more is better."""
    middle = float(median(values))
    return Line(name, middle, goal, None if goal is None else middle >= goal, len(values), drawn)


def line_below(name: str, values: Sequence[float], goal: float, drawn: Drawn | None = None) -> Line:
    """The median of some measurements as a line; less is better."""
    middle = float(median(values))
    return Line(name, middle, goal, middle <= goal, len(values), drawn)


def worst(name: str, values: Sequence[float], goal: float) -> Line:
    """The largest of some measurements as a line; less is better."""
    most = float(max(values))
    return Line(name, most, goal, most <= goal, len(values))


def ratio(name: str, more: Sequence[float], less: Sequence[float], goal: float | None) -> Line:
    """The ratio of two medians as a line; more is better."""
    times = median(more) / median(less)
    return Line(name, times, goal, None if goal is None else times >= goal, min(len(more), len(less)))


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of one call, in all threads of this process."""
    started = time.process_time()
    call()
    return time.process_time() - started


def goal_of(one: Line) -> tuple[str, str]:
    """A line's goal and whether it is met, as text; empty without a goal."""
    if one.goal is None:
        return "", ""
    return f"{one.goal:g}", "yes" if one.met else "no"


def to_json(lines: Sequence[Line]) -> str:
    """A JSON list with an object per line; ``drawn`` is left out where it is None."""
    rows = [{name: value for name, value in asdict(one).items() if name != "drawn" or value} for one in lines]
    return json.dumps(rows, indent=2)


def to_text(lines: Sequence[Line]) -> str:
    """A table with a row per line."""
    wide = max((len(one.name) for one in lines), default=0)
    rows = [f"{'':{wide}}  {'value':>9}  {'goal':>6}  {'met':>3}  {'n':>2}"]
    for one in lines:
        goal, met = goal_of(one)
        rows.append(f"{one.name:{wide}}  {one.value:9.4g}  {goal:>6}  {met:>3}  {one.n:>2}")
    return "\n".join(rows)
