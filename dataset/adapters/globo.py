"""Globo.com news clicks: a large log of ids and times, without text or pictures; tests sequences and scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import event_table, first_seen, times, under, user_table
from dataset.adapters.source import choose_layout, read_parquet
from dataset.contracts import IMAGES, ITEMS, JUDGEMENTS, QUARANTINE, QUERIES, Tables
from dataset.first_seen import LOG

FILES = ("clicks.parquet",)
CONTEXT = ("session_size", "environment", "device", "os", "country", "region", "referrer")
SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("session_id", pa.int64()),
        ("article_id", pa.int64()),
        ("timestamp_ms", pa.int64()),
        *((name, pa.int64()) for name in CONTEXT),
    ]
)
RULES = {"items": LOG, "users": LOG}


def scale_globo(folder: Path) -> tuple[Tables, dict[str, Any]]:
    """Clicks, with sessions as requests; the items are the clicked articles.

    Raises:
        DataError: files, columns or types are not those of the pack.
    """
    choose_layout(folder, {"pack": FILES})
    clicks = read_parquet(folder / FILES[0], SCHEMA)
    events = event_table(
        "click",
        clicks.column("user_id"),
        clicks.column("article_id"),
        times(clicks.column("timestamp_ms"), per_second=1000),
        request=clicks.column("session_id"),
        sequence=pa.array(np.arange(len(clicks))),  # the log is written as clicks happen
    )
    item = pc.unique(events.column("item_id")).drop_null().sort()
    items = {
        "item_id": item,
        "external_id": item.cast(pa.string()),
        "spu": item,
        "first_seen": first_seen(item, events.column("item_id"), events.column("event_time")),
    }
    tables = Tables(
        items=under(ITEMS, items),
        images=IMAGES.empty_table(),
        users=user_table(events),
        events=events,
        queries=QUERIES.empty_table(),
        judgements=JUDGEMENTS.empty_table(),
        quarantine=QUARANTINE.empty_table(),
    )
    source = "Globo.com news clicks (Moreira et al. 2018), pack layout"
    return tables, {"name": "scale_globo", "source": source, "first_seen": RULES}
