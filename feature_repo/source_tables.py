"""Canonical tables to the rows of every feature source."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import TIME
from feature_repo.event_log import FOLDER, LOG_VERSION, EventLog, log_version, write_event_log
from feature_repo.sources import LOG, TIMESTAMP, replace_source, replace_source_in_parts
from feature_repo.statistics import daily_stats
from feature_repo.vectors import VectorTable
from feature_repo.views import HISTORY, Embedding
from moonstore.disk import make_folder

END = np.iinfo(np.int64).max


def item_profile(items: pa.Table) -> pa.Table:
    """One row per item, stamped with the time it was first seen."""
    path = items.column("category").combine_chunks()
    attributes = items.column("attributes").combine_chunks()
    named = pc.binary_join_element_wise(
        attributes.keys, attributes.items, "=", null_handling="replace", null_replacement=""
    )
    return pa.table(
        {
            "item_id": items.column("item_id"),
            "category": _level(path, -1),
            "category_top": _level(path, 0),
            "spu": items.column("spu"),
            "price": items.column("price"),
            "attributes": pa.ListArray.from_arrays(attributes.offsets, named),
            "first_seen_us": items.column("first_seen").cast(pa.int64()),
            TIMESTAMP: items.column("first_seen"),
        }
    )


def user_profile(users: pa.Table) -> pa.Table:
    """One row per user, stamped with the time they were first seen."""
    decade = pc.floor(pc.divide(users.column("age"), pa.scalar(10, pa.float32()))).cast(pa.int64())
    return pa.table(
        {
            "user_id": users.column("user_id"),
            "age_band": pc.fill_null(decade, -1),
            "segment": pc.fill_null(users.column("segment"), ""),
            TIMESTAMP: users.column("first_seen"),
        }
    )


def user_events(log: EventLog) -> pa.Table:
    """One row per user and time at which a behaviour became available: the count of behaviours from then on.

    The table's metadata also holds the version of the log that the rows refer to.
    """
    user = np.repeat(log.users, np.diff(log.starts))
    position = np.arange(len(log)) - np.repeat(log.starts[:-1], np.diff(log.starts)) + 1
    available = np.asarray(log.available_us)
    last = np.append((user[1:] != user[:-1]) | (available[1:] != available[:-1]), True)[: len(log)]
    return pa.table(
        {
            "user_id": pa.array(user[last], pa.int64()),
            "position": pa.array(position[last], pa.int64()),
            "log_version": pa.array(np.full(int(last.sum()), log.version), pa.string()),
            TIMESTAMP: pa.array(available[last], pa.int64()).cast(TIME),
        }
    ).replace_schema_metadata({LOG_VERSION: log.version})


def query_stats(log: pa.Table) -> Iterator[pa.Table]:
    """``daily_stats`` of queries, columns renamed as in their view."""
    for stats in daily_stats(log, "query_id"):
        names = [name if name in ("query_id", TIMESTAMP) else f"query_{name}" for name in stats.column_names]
        yield stats.rename_columns(names)


def write_behaviour(data: Path, events: pa.Table) -> EventLog:
    """Write ``events`` and every source derived from them into the folder ``data``.

    The pointers name the version of the event log they refer to; the previous version is kept for readers that have
    just read the old pointers.
    """
    before = log_version(data)
    log = write_event_log(data / FOLDER, events)
    tables = {
        "user_events": user_events(log),
        "user_history": log.snapshot(before_us=END, history=HISTORY),
    }
    for name, table in tables.items():
        replace_source(data / f"{name}.parquet", table)
    for name, parts in (("item_stats", daily_stats(events, "item_id")), ("query_stats", query_stats(events))):
        replace_source_in_parts(data / f"{name}.parquet", parts)
    make_folder((data / LOG).parent)
    replace_source(data / LOG, events)  # last: a kill before this line is repaired by folding again
    for other in (data / FOLDER).iterdir():
        if other.name not in (log.version, before):
            shutil.rmtree(other)
    return log


def item_embedding(vectors: VectorTable, embedding: Embedding, stamp_us: np.ndarray) -> pa.Table:
    """One row per item vector; ``stamp_us`` int64 (M): when it becomes available, microseconds since 1970 UTC."""
    return _embedding(vectors, embedding, stamp_us, "item_id", prefix="")


def query_embedding(vectors: VectorTable, embedding: Embedding, stamp_us: np.ndarray) -> pa.Table:
    """One row per query vector; ``stamp_us`` as in ``item_embedding``."""
    return _embedding(vectors, embedding, stamp_us, "query_id", prefix="query_")


def _embedding(
    vectors: VectorTable, embedding: Embedding, stamp_us: np.ndarray, key: str, prefix: str
) -> pa.Table:
    count = len(vectors.ids)
    offsets = pa.array(np.arange(count + 1) * vectors.width, pa.int32())
    vector = pa.ListArray.from_arrays(offsets, pa.array(vectors.matrix.reshape(-1), pa.float32()))
    return pa.table(
        {
            key: pa.array(vectors.ids, pa.int64()),
            f"{prefix}vector": vector,
            f"{prefix}encoder_id": pa.array([embedding.encoder_id] * count, pa.string()),
            f"{prefix}version": pa.array(np.full(count, embedding.version), pa.int64()),
            TIMESTAMP: pa.array(stamp_us, pa.int64()).cast(TIME),
        }
    )


def _level(path: pa.ListArray, level: int) -> pa.Array:
    """The broadest (0) or finest (-1) name of each category path, "" where the path is empty."""
    start, end = path.offsets.to_numpy()[:-1], path.offsets.to_numpy()[1:]
    row = pa.array(start if level == 0 else end - 1, mask=start == end)
    return pc.fill_null(path.values.take(row), "")
