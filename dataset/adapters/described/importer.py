"""From a folder and its ``moon.toml`` to canonical tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from dataset.adapters.canonical import attach_pictures
from dataset.adapters.described.description import Description, open_description, present
from dataset.adapters.described.entities import (
    Described,
    described_items,
    described_users,
    items_table,
    users_table,
)
from dataset.adapters.described.judged import described_queries, judgements_table, queries_table
from dataset.adapters.described.log import EventLog, Searches
from dataset.adapters.described.names import DIFFERENT, Names
from dataset.adapters.described.pictures import Pictures
from dataset.adapters.described.rows import KEY, beside
from dataset.append import GIVEN
from dataset.contracts import Tables
from dataset.extra import GONE
from dataset.first_seen import LOG, START

KEEP = "keep"


def described(path: Path, new: Path | None = None) -> tuple[Tables, dict[str, Any]]:
    """The tables that the description at ``path`` describes, and the configuration to record.

    Catalogue, users and queries are read first, then the log in batches, then the pictures.

    Args:
        path: of the description.
        new: a folder of new files under the same names, of which any may be missing; None: the described folder.

    Raises:
        DataError: the description or the data are wrong; names file, row and column.
    """
    whole, digest = open_description(path)
    root = (path.parent / whole.data.folder if new is None else new).resolve()
    description = whole if new is None else present(whole, root)
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
    log = EventLog(root, description.events, items, users, searches)
    is_long = log.is_long()
    events, context = (log.long(), None) if is_long else log.short()
    data, vectors = description.data, next((one.vectors for one in whole.items if one.vectors), None)
    known = found["item"].rows.column(KEY).to_pylist()
    if data.unknown_items == KEEP:
        known += sorted(set(items.table().column("id").to_pylist()) - set(known))
    pictures = Pictures(root, items, set(known))
    keys = [str(one) for one in known]
    shown = ((str(one), content) for one, content in pictures.of(description.items, description.images))
    image_id, images, quarantine = attach_pictures(keys, shown)
    pictured = pa.table({"id": pa.array(known, pa.int64()), "image_id": image_id})
    seen = log.seen
    timed = any(one.time for one in whole.events)
    tables = Tables(
        items=items_table(found["item"], items, seen["item"], pictured, data.unknown_items == KEEP),
        images=images,
        users=users_table(found["user"], users, seen["user"], data.unknown_users == KEEP),
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
        **description.split.model_dump(exclude_none=True),
        **({} if timed or not whole.events else {"timed": False}),
        **({"vectors": vectors} if vectors else {}),
        **({GONE: True} if any(one.gone for one in whole.items) else {}),
        **({"event_ids": GIVEN} if log.is_named and not is_long else {}),
        **({"ids": {f"{name}_id": kind for name, kind in data.ids.items()}} if data.ids else {}),
        "first_seen": {
            name: LOG if timed else START
            for name, sections in (("items", whole.items), ("users", whole.users))
            if not any(one.first_seen for one in sections)
        },
        "merged": {name: one.changed for name, one in found.items() if one.changed},
        "unlisted": _unlisted(description, listed, (len(items), len(users))),
        "pictures": dict(sorted(pictures.counts.items())),
        "features": _features(description),
        **({"rare_properties": found["item"].rare} if found["item"].rare else {}),
        "left_out": log.left_out() if is_long else [],
        **({"returned": log.returned} if log.returned else {}),
        **({"unlisted_types": dict(log.unlisted.most_common())} if log.unlisted else {}),
    }


def _extra(found: dict[str, Described], context: pa.Table | None) -> dict[str, pa.Table]:
    """The columns that are nobody's, beside the id of their entity."""
    tables = {
        name: beside(f"{name}_id", one.rows.column(KEY), one.extra)
        for name, one in found.items()
        if one.extra
    }
    return tables | ({"event": context} if context is not None and len(context.column_names) > 1 else {})


def _features(description: Description) -> dict[str, list[str]]:
    """The left-over columns that ``moon.toml`` switches on, by entity."""
    on = {
        "item": [column for section in description.items for column in section.features],
        "user": [column for section in description.users for column in section.features],
        "query": [column for section in description.queries for column in section.features],
    }
    return {name: columns for name, columns in on.items() if columns}


def _unlisted(description: Description, listed: tuple[int, int], all_ids: tuple[int, int]) -> dict[str, int]:
    """How many ids only the log has, where a table could have listed them."""
    names = ("items", "users")
    counts = {name: whole - some for name, some, whole in zip(names, listed, all_ids, strict=True)}
    return {name: rows for name, rows in counts.items() if rows and getattr(description, name)}
