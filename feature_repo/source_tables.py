"""Canonical tables to the rows of every feature source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import TIME
from dataset.months import Month, start_us
from feature_repo.event_log import LOG_VERSION, EventLog
from feature_repo.event_log_growth import Behaviours
from feature_repo.sources import TIMESTAMP
from feature_repo.statistics import daily_stats
from feature_repo.vectors import VectorTable
from feature_repo.views import Embedding


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


def user_events(
    log: EventLog, months: Sequence[Month], since: str = ""
) -> Iterator[tuple[str, list[pa.Table]]]:
    """One row per user and time at which a behaviour became available: the count of behaviours from then on.

    Each row also names the version of the log that it points into: that of the log up to the end of its month, which
    a log that grew still holds. A table's metadata has the same.

    Args:
        log: the event log of these months.
        months: of all events.
        since: the month from which rows are wanted.

    Yields:
        the name of each month and its rows, ascending by (user_id, event_timestamp).
    """
    count = log.positions_before(start_us(since)) if since else np.zeros(len(log.users), np.int64)
    for month in months:
        if month.name < since:
            continue
        found = Behaviours.of(month)
        place = np.searchsorted(log.users, found.user)
        position = count[place] + found.rank() + 1
        np.add.at(count, place, 1)
        user, available = found.user, found.columns["available_us"]
        last = np.append((user[1:] != user[:-1]) | (available[1:] != available[:-1]), True)[: len(user)]
        version = log.months[month.name]
        table = pa.table(
            {
                "user_id": pa.array(user[last], pa.int64()),
                "position": pa.array(position[last], pa.int64()),
                "log_version": pa.repeat(version, int(last.sum())),
                TIMESTAMP: pa.array(available[last], pa.int64()).cast(TIME),
            }
        )
        yield month.name, [table.replace_schema_metadata({LOG_VERSION: version})]


def query_stats(
    months: Sequence[Month], since: str = "", state: Path | None = None
) -> Iterator[tuple[str, Iterator[pa.Table]]]:
    """``daily_stats`` of queries, columns renamed as in their view."""
    for month, parts in daily_stats(months, "query_id", since, state):
        yield month, map(_of_query, parts)


def _of_query(stats: pa.Table) -> pa.Table:
    return stats.rename_columns(
        [name if name in ("query_id", TIMESTAMP) else f"query_{name}" for name in stats.column_names]
    )


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
