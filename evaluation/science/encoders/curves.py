"""Curves of an encoder comparison: recall by vector width, recall by negatives, loss by step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from encoder.encode import width_of
from evaluation.measurements import read_measurements
from evaluation.plots import Curve
from evaluation.report import Plot
from evaluation.science.encoders.table import Cell
from run.artifacts import Artifact

WIDTH = re.compile(r"encoder/width_(\d+)/(.+)")
SWEPT = re.compile(r"sweep_queue_(\d+)\.(\d+)\.json")


def width_curves(
    rows: Mapping[str, Mapping[str, Cell]], columns: Mapping[str, str], trained: Mapping[str, Artifact]
) -> list[Plot]:
    """Matryoshka: each measure by vector width, one curve per encoder, mean over seeds.

    Args:
        rows: encoder -> measurement -> cell; ``encoder/width_<w>/...`` and, for the full width, ``encoder/...``.
        columns: measurement -> its heading.
        trained: encoder -> artifact, whose configuration has the full width; other encoders have no curve.
    """
    plots = []
    for name, label in columns.items():
        curves = []
        for encoder, cells in rows.items():
            found = {
                int(match[1]): cell.mean
                for key, cell in cells.items()
                if (match := WIDTH.fullmatch(key)) and f"encoder/{match[2]}" == name
            }
            if found and name in cells and encoder in trained:
                widths = [*sorted(found), width_of(trained[encoder])]
                curves.append(Curve(encoder, widths, [*(found[w] for w in widths[:-1]), cells[name].mean]))
        if curves:
            plots.append(Plot(f"{label} by vector width", "width", label, curves, markers=True, steps=True))
    return plots


def negative_curves(folder: Path, columns: Mapping[str, str]) -> list[Plot]:
    """Each measure by the size of the queue of negatives, mean over seeds: one plot, empty without a sweep.

    Args:
        folder: with ``sweep_queue_<S>.<seed>.json``, written by ``write_measurements``.
        columns: measurement -> its heading.
    """
    swept: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("sweep_queue_*.json")):
        if match := SWEPT.fullmatch(path.name):
            swept.setdefault(int(match[1]), []).append(path)
    if len(swept) < 2:
        return []
    sizes = sorted(swept)
    measured = {size: [read_measurements(path) for path in paths] for size, paths in swept.items()}
    curves = [
        Curve(label, sizes, [float(np.mean([one[name].value for one in measured[size]])) for size in sizes])
        for name, label in columns.items()
        if all(name in one for seeds in measured.values() for one in seeds)
    ]
    plot = Plot("Recall by negatives", "vectors in the queue", "recall@10", curves, markers=True, steps=True)
    return [plot] if curves else []


def training_curves(trained: Mapping[str, Artifact]) -> list[Plot]:
    """Training loss of each encoder, stage after stage; losses of different stages are not comparable."""
    plots = []
    for name, artifact in trained.items():
        curves, before = [], 0.0
        for stage, curve in artifact.config["losses"].items():
            steps: Sequence[float] = [before + step for step in curve["step"]]
            curves.append(Curve(stage.split(".", 1)[-1], steps, curve["loss"]))
            before = steps[-1]
        plots.append(Plot(f"Training loss, {name}", "step", "loss", curves))
    return plots
