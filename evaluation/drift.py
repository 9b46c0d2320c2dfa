"""What a ranker that is trained day after day predicted, each day by what was learned before it: figures, curves.

Legend: C candidates of a day.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.ctr_quality import ctr_quality
from evaluation.metrics import Measurement
from evaluation.plots import Curve
from evaluation.report import Plot, render_page
from moonstore.files import replacing, write_text
from run.artifacts import Artifact, ArtifactError, open_artifact

FOLDER, MADE_BY = "daily", "moon ranker --daily"
FIRST, LAST = "first", "ranker"  # the rankers of the first day and of the last one
DAYS, TABLE, PAGE = "days", "table.md", "drift.html"
METRICS = {"auc": "AUC", "gauc": "GAUC", "ne": "NE", "calibration": "calibration"}
WAYS = {"ranker": "daily", "first": "first day only", "logistic": "logistic"}


def write_day(
    folder: Path, date: str, label: np.ndarray, user_id: np.ndarray, chances: Mapping[str, np.ndarray]
) -> None:
    """Keep what was predicted on a day, and what became of it.

    Args:
        folder: where everything is kept.
        date: of the day.
        label: float32 (C).
        user_id: int64 (C).
        chances: of each way that predicted it, float64 (C).
    """
    table = pa.table({"user_id": user_id, "label": label, **chances})
    with replacing(path_of(folder, date)) as temporary:
        pq.write_table(table, temporary)


def path_of(folder: Path, date: str) -> Path:
    """The file of a day."""
    return folder / DAYS / f"{date}.parquet"


def figures(folder: Path) -> dict[str, dict[str, Measurement]]:
    """What each day's own requests say of those who predicted it: date -> name -> measurement."""
    return {
        path.stem: {one.name: one for one in _quality([pq.read_table(path)], path.stem)}
        for path in sorted((folder / DAYS).glob("*.parquet"))
    }


def pooled(folder: Path) -> Iterator[Measurement]:
    """The same of all days together, ``daily/<way>/<metric>``: every prediction by what was learned before its day.

    Such an evaluation is called prequential (Dawid, 1984). It is over the days on which all of the ways predicted.
    """
    found = {path.stem: pq.read_table(path) for path in sorted((folder / DAYS).glob("*.parquet"))}
    ways = {name for table in found.values() for name in table.column_names}
    days = {date: table for date, table in found.items() if set(table.column_names) == ways}
    if days:
        yield from _quality(list(days.values()), f"{min(days)} to {max(days)}", f"{FOLDER}/")


def _quality(tables: list[pa.Table], split: str, prefix: str = "") -> Iterator[Measurement]:
    table = pa.concat_tables(tables)
    label, user = table["label"].to_numpy(), table["user_id"].to_numpy()
    for way in WAYS:
        if way in table.column_names:
            yield from ctr_quality(label, table[way].to_numpy(), user, split=split, prefix=prefix + way)


def write_drift(folder: Path) -> None:
    """Write the table and the page of all days."""
    rows = [
        (date, name, {label: found.get(f"{way}/{metric}") for metric, label in METRICS.items()})
        for date, found in figures(folder).items()
        for way, name in WAYS.items()
        if any(f"{way}/{metric}" in found for metric in METRICS)
    ]
    lines = [f"| day | ranker | {' | '.join(METRICS.values())} |", "|---|---|" + "--:|" * len(METRICS)]
    for date, name, cells in rows:
        shown = (f"{one.value:.4f}" if one else "" for one in cells.values())
        lines.append(f"| {date} | {name} | {' | '.join(shown)} |")
    write_text(folder / TABLE, "\n".join(lines) + "\n")
    said = {"plots": drift(folder), "rows": rows, "labels": list(METRICS.values()), "first": began(folder)}
    render_page(folder / PAGE, "daily_template.html", **said)


def drift(folder: Path) -> list[Plot]:
    """The figures of each day as curves; none: nothing was trained day after day there."""
    measured, first = figures(folder), began(folder)
    plots = []
    for metric, label in METRICS.items():
        if some := list(_curves(measured, first, metric)):
            plots.append(Plot(label, f"day, from {first}", label, some, markers=True))
    return plots


def began(folder: Path) -> str:
    """The day that the ranker began with; nothing: there is none."""
    made = _open(folder / FIRST)
    return "" if made is None else min(made.config["days"])


def newest(folder: Path) -> Artifact | None:
    """The ranker of the last day that is over; None: there is none."""
    return next((one for name in (LAST, FIRST) if (one := _open(folder / name)) is not None), None)


def _open(path: Path) -> Artifact | None:
    """The ranker there, if it is whole and of a day."""
    try:
        found = open_artifact(path, "ranker", MADE_BY)
    except ArtifactError:
        return None
    return found if "days" in found.config else None


def _curves(measured: Mapping[str, Mapping[str, Measurement]], first: str, metric: str) -> Iterator[Curve]:
    """A metric of each ranker over the days, numbered from 1 as in the log."""
    for way, name in WAYS.items():
        name_of = f"{way}/{metric}"
        found = {
            int((np.datetime64(date) - np.datetime64(first)).astype(int)) + 1: one[name_of].value
            for date, one in measured.items()
            if name_of in one
        }
        if found:
            yield Curve(name, list(found), list(found.values()))
