"""What a new day costs: appended to a run of the days before, and as part of a run from scratch.

The files are those of ``evaluation.bench.imports``; every stage runs in a process of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dataset.adapters.hm import RAW_SCHEMAS
from evaluation.bench.imports import STAGES, cost, write_hm
from evaluation.bench.lines import Line, line
from moonstore.disk import make_folder
from moonstore.files import link

SALES = "transactions_train.csv"
IMPORT = """
import_dataset("hm_fashion", folder / "{}", folder / "dataset")
"""
APPEND = """
append_files("hm_fashion", folder / "day", Dataset.open(open_artifact(folder / "dataset", "dataset")))
"""
LATER = {
    "split": STAGES["split"],
    "store": """
dataset = Dataset.open(open_artifact(folder / "dataset", "dataset"))
create_store(folder / "store", dataset, Split.open(open_artifact(folder / "split", "split")))
""",
    "training frame": """
split = Split.open(open_artifact(folder / "split", "split"))
write_frame(logged_source(folder, split, size("small")), folder / "frame")
""",
}


def bench_last_day(events: int) -> list[Line]:
    """Import ``events`` purchases but for those of the last day, append these, and do the same from scratch.

    Returns:
        lines of CPU seconds, and of the peak memory, of each stage both ways.
    """
    with tempfile.TemporaryDirectory(prefix="moon-last-day-") as place:
        folder = Path(place)
        write_hm(folder / "raw", events)
        made = _cut(folder)
        _run(folder, {"import": IMPORT.format("before"), **LATER})
        grown = _run(folder, {"import": APPEND, **LATER})
    with tempfile.TemporaryDirectory(prefix="moon-last-day-") as place:
        write_hm(Path(place) / "raw", events)
        anew = _run(Path(place), {"import": IMPORT.format("raw"), **LATER})
    lines = []
    for name in anew:
        title = f"{name}: {made:,} events appended to {events - made:,}"
        for unit, key in (("CPU seconds", "cpu"), ("peak memory, MiB", "mib")):
            lines += [
                line(f"{title}, {unit}", [grown[name][key]]),
                line(f"the same from scratch, {unit}", [anew[name][key]]),
            ]
    for title, costs in (("all of an append", grown), ("all from scratch", anew)):
        lines.append(line(f"{title}, CPU seconds", [sum(one["cpu"] for one in costs.values())]))
    return lines


def _run(folder: Path, stages: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {name: cost(code, folder) for name, code in stages.items()}


def _cut(folder: Path) -> int:
    """Cut the raw files in two, ``before`` the last day and the ``day``; returns the number of its sales."""
    for name in ("before", "day"):
        make_folder(folder / name)
    for name in ("articles.csv", "customers.csv"):
        link(folder / "raw" / name, folder / "before" / name)
    last, made = None, 0
    options = pa.csv.ConvertOptions(column_types=RAW_SCHEMAS[SALES])
    with pa.csv.open_csv(folder / "raw" / SALES, convert_options=options) as reader:
        for batch in reader:
            last = pc.max(batch.column("t_dat"))
    with (
        pa.csv.open_csv(folder / "raw" / SALES, convert_options=options) as reader,
        pa.csv.CSVWriter(folder / "before" / SALES, RAW_SCHEMAS[SALES]) as before,
        pa.csv.CSVWriter(folder / "day" / SALES, RAW_SCHEMAS[SALES]) as day,
    ):
        for batch in reader:
            is_last = pc.equal(batch.column("t_dat"), last)
            day.write_batch(batch.filter(is_last))
            before.write_batch(batch.filter(pc.invert(is_last)))
            made += pc.sum(is_last).as_py() or 0
    return made
