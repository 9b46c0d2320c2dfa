"""The offline sources: one parquet file per view in the ``data`` folder of the store.

Every file has its entity's key, ``event_timestamp`` (timestamp[us, UTC]: when a system could first have known
the row) and no two rows with the same key and timestamp, so a point-in-time join has one answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FileSource
from feast.data_format import ParquetFormat

from feature_repo import dead_letters
from feature_repo.dead_letters import DATA
from moonstore.files import replacing
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


def read_source(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read the file of a source, or these columns of it.

    Raises:
        StoreError: it is missing or damaged.
    """
    with readable(path, "Run 'moon store' to make it again."):
        return pq.read_table(path, columns=columns)


def source(view: str) -> FileSource:
    """The source of ``view``; its path is relative to the repository (see ``moonstore.duckdb_store``)."""
    return FileSource(
        name=view,
        path=f"{DATA}/{view}.parquet",
        timestamp_field=TIMESTAMP,
        file_format=ParquetFormat(),
    )
