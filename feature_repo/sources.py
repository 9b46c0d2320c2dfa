"""The offline sources: one parquet file per view in the ``data`` folder of the store, or a folder of one a month.

What is derived from the log lies in months, so that a log that grows leaves the months before as they are. Every
source has its entity's key, ``event_timestamp`` (timestamp[us, UTC]: when a system could first have known
the row) and no two rows with the same key and timestamp, so a point-in-time join has one answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FileSource
from feast.data_format import ParquetFormat

from dataset.months import parts_of
from feature_repo import dead_letters
from feature_repo.dead_letters import DATA
from moonstore.disk import writing
from moonstore.files import link, replacing
from moonstore.readable import readable

TIMESTAMP = "event_timestamp"
CONTEXT = "event_context.parquet"  # left-over columns of events, within DATA
# Within DATA: the journal of received events, the log it is folded into, the lock of both, received items.
JOURNAL, LOG, LOCK, NEW_ITEMS = "events", "events/log.parquet", "lock", dead_letters.NEW_ITEMS
STATES_FILE = "item_states.db"


def replace_source(path: Path, table: pa.Table) -> None:
    """Write the file of a source atomically."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def replace_source_in_parts(path: Path, parts: Iterable[pa.Table]) -> None:
    """Write the file of a source atomically from parts of one schema, at least one, that never are all in memory."""
    rest = iter(parts)
    first = next(rest)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, first.schema) as writer:
        for part in chain([first], rest):
            writer.write_table(part)


def replace_months(
    path: Path, months: Iterable[tuple[str, Iterable[pa.Table]]], since: str, previous: Path
) -> None:
    """Write the months of a source from one on, each at once; the others stay, or are linked.

    Args:
        path: of the source, a folder; what is there of another layout becomes part of it first.
        months: the name of each month from ``since`` on, ascending, and its rows in parts.
        since: a month.
        previous: the source that holds the months before, perhaps ``path`` itself.
    """
    as_folder(path)
    before = [one for one in parts_of(previous) if one.stem < since]
    for one in before if previous != path else ():
        link(one, path / one.name)
    kept = {one.name for one in before}
    for month, parts in months:
        name = f"{month}.parquet"
        replace_source_in_parts(path / name, parts)
        kept.add(name)
    for one in path.iterdir():
        if one.name not in kept:
            one.unlink()


def as_folder(path: Path) -> None:
    """Make a folder at ``path``; a file of an earlier release that lies there becomes its first part."""
    if path.is_dir():
        return
    building = path.with_name(path.name + ".parts")
    with writing(path):
        if path.exists():
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            link(path, building / path.name)
            path.unlink()
        elif not building.exists():  # it does after a kill in the line above
            building.mkdir(parents=True)
        building.rename(path)


def read_source(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a source, or these columns of it, month after month.

    Raises:
        StoreError: it is missing or damaged.
    """
    tables = []
    for part in parts_of(path) or [path / "*.parquet"]:
        with readable(part, "Run 'moon store' to make it again."):
            tables.append(pq.read_table(part, columns=columns))
    return pa.concat_tables(tables)


def source(view: str) -> FileSource:
    """The source of ``view``; its path is relative to the repository (see ``moonstore.duckdb_store``)."""
    return FileSource(
        name=view,
        path=f"{DATA}/{view}.parquet",
        timestamp_field=TIMESTAMP,
        file_format=ParquetFormat(),
    )
