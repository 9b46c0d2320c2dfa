"""From a folder and its ``moon.toml`` to canonical tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import attach_pictures
from dataset.adapters.described.description import Description, open_description
from dataset.adapters.described.entities import (
    Described,
    described_items,
    described_users,
    items_table,
    users_table,
)
from dataset.adapters.described.judged import described_queries, judgements_table, queries_table
from dataset.adapters.described.log import Searches, event_batches, events_table
from dataset.adapters.described.names import DIFFERENT, Names
from dataset.adapters.described.pictures import Pictures
from dataset.adapters.described.rows import KEY
from dataset.contracts import Tables

KEEP = "keep"
FEW_DAYS = 30  # a clock of days that counts fewer of them is too coarse to cut the log in time


def described(path: Path) -> tuple[Tables, dict[str, Any]]:
    """The tables that the description at ``path`` describes, and the configuration to record.

    Catalogue, users and queries are read first, then the log in batches, then the pictures.

    Raises:
        DataError: the description or the data are wrong; names file, row and column.
    """
    description, digest = open_description(path)
    root = (path.parent / description.data.folder).resolve()
    items = Names("item", description.data.similar_ids)
    users = Names("user", description.data.similar_ids)
    searches = Searches(Names("query", DIFFERENT))
    found = {
        "item": described_items(root, description.items, items),
        "user": described_users(root, description.users, users),
        "query": described_queries(root, description.queries, searches),
    }
    judgements = judgements_table(root, description.judgements, items, searches)
    listed = len(items), len(users)
    events, context = events_table(event_batches(root, description.events, items, users, searches))
    data = description.data
    pictures = Pictures(root, items, set(found["item"].rows.column(KEY).to_pylist()))
    keys = [str(one) for one in found["item"].rows.column(KEY).to_pylist()]
    shown = ((str(one), content) for one, content in pictures.of(description.items, description.images))
    image_id, images, quarantine = attach_pictures(keys, shown)
    tables = Tables(
        items=items_table(found["item"], items, events, image_id, data.unknown_items == KEEP),
        images=images,
        users=users_table(found["user"], users, events, data.unknown_users == KEEP),
        events=events,
        queries=queries_table(searches),
        judgements=judgements,
        quarantine=quarantine,
        extra=_extra(found, context),
    )
    return tables, {
        "name": data.name,
        "source": f"described by moon.toml, {digest}",
        "description": digest,
        "protocol": _protocol(description, events),
        "merged": {name: one.changed for name, one in found.items() if one.changed},
        "unlisted": _unlisted(description, listed, (len(items), len(users))),
        "pictures": dict(sorted(pictures.counts.items())),
        "features": _features(description),
    }


def _extra(found: dict[str, Described], context: pa.Table) -> dict[str, pa.Table]:
    """The columns that are nobody's, beside the id of their entity."""
    tables = {
        name: pa.table({f"{name}_id": one.rows.column(KEY), **one.extra})
        for name, one in found.items()
        if one.extra
    }
    return tables | ({"event": context} if len(context.column_names) > 1 else {})


def _features(description: Description) -> dict[str, list[str]]:
    """The left-over columns that ``moon.toml`` switches on, by entity."""
    sections = {"item": description.items, "user": description.users, "query": description.queries}
    on = {name: [column for one in listed for column in one.features] for name, listed in sections.items()}
    return {name: columns for name, columns in on.items() if columns}


def _unlisted(description: Description, listed: tuple[int, int], all_ids: tuple[int, int]) -> dict[str, int]:
    """How many ids only the log has, where a table could have listed them."""
    names = ("items", "users")
    counts = {name: whole - some for name, some, whole in zip(names, listed, all_ids, strict=True)}
    return {name: rows for name, rows in counts.items() if rows and getattr(description, name)}


def _protocol(description: Description, events: pa.Table) -> str:
    """As ``moon.toml`` says; else by time, or held out where the clock knows days only."""
    if description.split.protocol is not None:
        return description.split.protocol
    if not len(events):
        return "none"
    days = pc.count_distinct(pc.floor_temporal(events.column("event_time"), unit="day")).as_py()
    is_coarse = all(one.whole_days or one.time is None for one in description.events)
    return "holdout" if is_coarse and days < FEW_DAYS else "time"
