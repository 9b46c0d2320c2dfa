"""Plots of the report as inline SVG in the page's text colour, for light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS, LETTERS = 3, 42  # most columns of a legend, and most letters in one row of it
INK = "#010203"  # replaced by currentColor: the page decides
PALETTE = ("#3b6ef6", "#e4803a", "#1f9d76", "#b657c9", "#8b8f98", "#c9a227", "#d1495b", "#4aa8c0")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Curve:
    """One named line: x and y of equal length; dashed and without dots if it was fitted, not measured."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    fitted: bool = False


def line_plot(
    curves: Sequence[Curve], xlabel: str, ylabel: str, markers: bool = False, steps: bool = False
) -> str:
    """The curves in one set of axes, the first (ours) drawn on top and widest.

    Args:
        curves: at least one.
        xlabel, ylabel: names of the axes.
        markers: a dot at every value.
        steps: space the values of x evenly and label each, for sizes that double from one to the next.

    Returns:
        an ``<svg>`` element without links, to be put inside HTML.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"{xlabel}|{ylabel}|{[c.name for c in curves]}"}):
        figure, axes = _axes(xlabel, ylabel)
        stops = sorted({x for curve in curves for x in curve.x}) if steps else []
        for place, curve in enumerate(curves):
            axes.plot(
                [stops.index(x) for x in curve.x] if steps else curve.x,
                curve.y,
                label=curve.name,
                color=PALETTE[place % len(PALETTE)],
                linewidth=2.2 if place == 0 else 1.4,
                marker="o" if markers and not curve.fitted else None,
                markersize=4,
                linestyle=(0, (4, 4)) if curve.fitted else "-",
                zorder=len(curves) - place + 2,
            )
        if steps:
            axes.set_xticks(range(len(stops)), [f"{x:,}" for x in stops])
        if len(curves) > 1 or curves[0].name != ylabel:
            longest = max(len(curve.name) for curve in curves)
            columns = max(min(COLUMNS, LETTERS // longest), 1)
            figure.legend(loc="outside upper left", ncols=columns)  # never over a curve
        return _svg(figure)


def reliability_plot(mean_probability: np.ndarray, mean_label: np.ndarray, count: np.ndarray) -> str:
    """Observed click rate against predicted probability; the dashed diagonal is perfect calibration.

    Args:
        mean_probability: float of shape (B), from ``metrics.reliability``.
        mean_label: float of shape (B).
        count: int of shape (B); a dot's area grows with it.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": "reliability"}):
        figure, axes = _axes("predicted click probability", "observed click rate")
        top = 1.08 * float(max(np.max(mean_probability), np.max(mean_label), 1e-3))
        axes.plot([0, top], [0, top], linestyle=(0, (4, 4)), color=INK, linewidth=0.9, alpha=0.6)
        axes.plot(mean_probability, mean_label, color=PALETTE[0], linewidth=1.6)
        size = 20 + 60 * np.asarray(count) / np.max(count)
        axes.scatter(mean_probability, mean_label, s=size, color=PALETTE[0], zorder=3)
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        return _svg(figure)


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'\sxmlns(:\w+)?="[^"]*"', "", text
    )  # inside HTML the parser knows; the page stays link-free
    text = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*"(?=[^>]*>)', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*"(?=[^>]*>)', r"\1", text, count=1)
    text = re.sub(r"font:\s*([\d.]+)px[^;\"]*", r"font-size: \1px", text)  # the page's font, the plot's size
    return text.replace(INK, "currentColor")
