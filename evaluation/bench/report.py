"""The page of ``moon bench store``: all lines, the cost of a frame by size, comparisons with Feast and the floor."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from evaluation.bench.lines import OURS, Line, goal_of
from evaluation.plots import Curve
from evaluation.report import Comparison, Plot, render_page

MILLION = 1_000_000


def render_store_report(out: Path, lines: Sequence[Line]) -> Path:
    """Write the page to ``out``, a single self-contained file, and return the path.

    Args:
        out: path of the page.
        lines: from ``evaluation.bench.store``; those with ``drawn`` are also drawn, a measure's bars side by side,
            its points as a curve.
    """
    goals = [one for one in lines if one.goal is not None]
    return render_page(
        out,
        "store_template.html",
        facts={
            "cores": os.cpu_count() or 1,
            "Python": platform.python_version(),
            "Feast": version("feast"),
            "goals met": f"{sum(bool(one.met) for one in goals)} of {len(goals)}",
        },
        lines=[(one, *goal_of(one)) for one in lines],
        growths=growths(lines),
        comparisons=[(one, times(one)) for one in comparisons(lines)],
    )


def growths(lines: Sequence[Line]) -> list[tuple[Plot, str]]:
    """For each measure: its plot over the amount of work with the best line through the origin, and a sentence."""
    found = []
    for measure in dict.fromkeys(one.drawn.measure for one in lines if one.drawn and one.drawn.x is not None):
        points = [(one.drawn.x, one.value) for one in lines if one.drawn and one.drawn.measure == measure]
        x, y = np.array(sorted(points), dtype=float).T
        slope = float(x @ y / (x @ x))  # least squares
        ends = np.array([0.0, x[-1]])
        above = y - slope * x
        far = int(np.argmax(np.abs(above)))
        curves = [
            Curve("measured", (x / MILLION).tolist(), y.tolist()),
            Curve("through the origin", (ends / MILLION).tolist(), (slope * ends).tolist(), fitted=True),
        ]
        said = (
            f"Best line through the origin: {slope * MILLION:.3g} per million. "
            f"Largest deviation: {above[far]:+.2g} at {x[far]:,.0f}."
        )
        found.append((Plot(measure, "impressions, millions", measure, curves, markers=True), said))
    return found


def comparisons(lines: Sequence[Line]) -> list[Comparison]:
    """Our value and those of the other sides, for every measure that is drawn as bars."""
    sides: dict[str, list[tuple[Line, str]]] = {}
    for one in lines:
        if one.drawn is not None and one.drawn.x is None:
            sides.setdefault(one.drawn.measure, []).append((one, one.drawn.side))
    found = []
    for measure, drawn in sides.items():
        (ours,) = (line for line, side in drawn if side == OURS)
        others = {side: line.value for line, side in drawn if side != OURS}
        higher = ours.drawn is not None and ours.drawn.higher_is_better
        found.append(Comparison(measure, ours.value, others, ours.n, "medians of this run", higher))
    return found


def times(one: Comparison) -> str:
    """How many times more or less our value is than that of the best other side, as text."""
    best = one.baselines[one.best]
    ratio = max(one.value, best) / min(one.value, best)
    return f"{ratio:.3g} times {'more' if one.value > best else 'less'}"
