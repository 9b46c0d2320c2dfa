"""Seconds and memory of a large log, in files in the shape of the raw H&M competition: its import and what follows.

Each stage runs in a process of its own, whose peak memory is then that of the stage and of nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dataset.adapters.hm import RAW_SCHEMAS
from evaluation.bench.lines import Line, line
from moonstore.disk import make_folder
from run.progress import track

EVENTS_PER_ITEM, EVENTS_PER_USER = 30, 20
FIRST_DAY, DAYS = 17_794, 733  # 2018-09-20, as days since 1970; of the competition's log
AT_ONCE = 500_000  # rows written at once
STAGES = {
    "import": """
made = import_dataset("hm_fashion", folder / "raw", folder / "dataset")
rows = made.config["rows"]
""",
    "split": """
dataset = Dataset.open(open_artifact(folder / "dataset", "dataset"))
rows = split_dataset(dataset, folder / "split").config
""",
    "event log and statistics": """
rows = len(write_behaviour(folder / "data", Split.open(open_artifact(folder / "split", "split")).months))
""",
}  # what is measured, each in a process of its own
MEASURED = """
import json, os, resource, sys, time
from dataclasses import replace
from pathlib import Path
from dataset.importers import append_files, import_dataset
from dataset.split import Split, split_dataset
from dataset.tables import Dataset
from feature_repo.behaviour import write_behaviour
from feature_repo.create import create_store
from feature_repo.frames.logged import logged_source
from feature_repo.frames.shards import write_frame
from run.artifacts import open_artifact
from run.sizes import size
folder, began, started = Path(sys.argv[1]), time.monotonic(), time.process_time()
(folder / "data").mkdir(exist_ok=True)
rows = None
{}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds = {{"seconds": time.monotonic() - began, "cpu": time.process_time() - started}}
print(json.dumps({{**seconds, "mib": peak / 1024, "rows": rows}}), flush=True)
os._exit(0)  # DuckDB's bindings list every object alive at a normal exit
"""  # without the seconds that it takes to load the libraries


def bench_import(events: int) -> list[Line]:
    """Import ``events`` purchases with their articles and customers, and a tenth of them with all of these.

    Both are then split, and the store's event log and statistics are written. The files are written into a temporary
    folder.

    Returns:
        lines of the seconds and of the peak memory of each stage, and of the peak memory with a tenth of the events.
    """
    small, large = (_measured(count, events) for count in (max(events // 10, 1), events))
    said = "{events:,} events, {items:,} items, {users:,} users".format(**large["import"]["rows"])
    lines = []
    for name, cost in large.items():
        title = f"{name} of {said}"
        lines += [
            line(f"{title}, seconds", [cost["seconds"]]),
            line("the same, CPU seconds", [cost["cpu"]]),
            line("the same, peak memory, MiB", [cost["mib"]]),
            line("a tenth of the events, peak memory, MiB", [small[name]["mib"]]),
        ]
    return lines


def _measured(events: int, of: int) -> dict[str, dict[str, Any]]:
    """Seconds, CPU seconds, peak MiB and rows of every stage with so many purchases of the catalogue for ``of``."""
    with tempfile.TemporaryDirectory(prefix="moon-import-") as folder:
        write_hm(Path(folder) / "raw", events, of)
        return {name: cost(code, Path(folder)) for name, code in STAGES.items()}


def cost(code: str, folder: Path) -> dict[str, Any]:
    """Seconds, CPU seconds, peak MiB and ``rows`` of code that runs in a process of its own, in a folder."""
    command = [sys.executable, "-c", MEASURED.format(code), str(folder)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(said.splitlines()[-1]))  # after DuckDB's progress


def write_hm(folder: Path, events: int, of: int | None = None, seed: int = 0) -> None:
    """Write articles.csv, customers.csv and transactions_train.csv: popular articles, busy customers, days in order.

    Args:
        folder: where to write.
        events: number of purchases.
        of: there are an item for every 30 and a customer for every 20 of so many; default: ``events``.
        seed: of everything drawn.
    """
    make_folder(folder)
    rng = np.random.default_rng(seed)
    items, users = (max((of or events) // each, 2) for each in (EVENTS_PER_ITEM, EVENTS_PER_USER))
    _write(folder, "articles.csv", items, (_articles(first, last) for first, last in _spans(items)))
    _write(folder, "customers.csv", users, (_customers(first, last) for first, last in _spans(users)))
    sales = (_sales(first, last, events, items, users, rng) for first, last in _spans(events))
    _write(folder, "transactions_train.csv", events, sales)


def _spans(count: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, AT_ONCE):
        yield first, min(first + AT_ONCE, count)


def _write(folder: Path, name: str, count: int, tables: Iterator[pa.Table]) -> None:
    with pa.csv.CSVWriter(folder / name, RAW_SCHEMAS[name]) as writer:
        for table in track(tables, f"write {name}", total=-(-count // AT_ONCE), unit="parts"):
            writer.write_table(table)


def _under(name: str, columns: dict[str, pa.Array]) -> pa.Table:
    """The columns of a raw file; those that are not given are empty."""
    rows = len(next(iter(columns.values())))
    schema = RAW_SCHEMAS[name]
    made = [columns.get(field.name, pa.nulls(rows)).cast(field.type) for field in schema]
    return pa.table(made, schema=schema)


def _numbered(prefix: str, number: np.ndarray, width: int) -> pa.Array:
    digits = pc.utf8_lpad(pa.array(number).cast(pa.string()), width, "0")
    return pc.binary_join_element_wise(pa.scalar(prefix), digits, "")


def _articles(first: int, last: int) -> pa.Table:
    number = np.arange(first, last)
    return _under(
        "articles.csv",
        {
            "article_id": _numbered("0", number, 9),
            "product_code": pa.array(number // 3),
            "prod_name": _numbered("Top ", number // 3, 7),
            "product_type_name": _numbered("Type ", number % 130, 3),
            "product_group_name": _numbered("Group ", number % 19, 2),
            "index_group_name": _numbered("Index ", number % 5, 1),
            "colour_group_name": _numbered("Colour ", number % 50, 2),
            "detail_desc": _numbered('Soft, "ribbed" jersey,\nlong sleeves, length ', number % 97, 2),
        },
    )


def _customer_ids(number: np.ndarray) -> pa.Array:
    """64 hex digits each, as in the source."""
    mixed = number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _numbered("", mixed, 64)


def _customers(first: int, last: int) -> pa.Table:
    number = np.arange(first, last)
    columns = {"customer_id": _customer_ids(number), "age": pa.array(18.0 + number % 60)}
    status = pa.array(["ACTIVE", "PRE-CREATE", None]).take(pa.array(number % 3))
    return _under("customers.csv", {**columns, "club_member_status": status})


def _sales(first: int, last: int, events: int, items: int, users: int, rng: np.random.Generator) -> pa.Table:
    count = last - first
    day = FIRST_DAY + np.arange(first, last) * DAYS // events
    item, user = (np.floor(most * rng.random(count) ** 3).astype(np.int64) for most in (items, users))
    return _under(
        "transactions_train.csv",
        {
            "t_dat": pa.array(day, pa.int32()).cast(pa.date32()),
            "customer_id": _customer_ids(user),
            "article_id": _numbered("0", item, 9),
            "price": pa.array(np.round(rng.random(count) / 10, 6)),
            "sales_channel_id": pa.array(1 + rng.integers(0, 2, count)),
        },
    )
