"""When the rows of a grown dataset were first seen: as an import of all files at once would say.

An importer whose source does not say it derives it from the log, by one of two rules. Both are of the whole log, so
they are applied again when it grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import TIME, Tables
from dataset.sieve import sane
from moonstore.clock import CLOCK_SKEW

START = "start of the log"  # of every item or user
LOG = "first event"  # of each; of those without one, the start of the log
IDS = {"items": "item_id", "users": "user_id"}
NEVER = np.iinfo(np.int64).max


def first_seen_of_all(
    merged: Mapping[str, pa.Table], old: Tables, events: pa.Table, rules: Mapping[str, str]
) -> dict[str, pa.Table]:
    """The merged tables, ``first_seen`` of items and users by the importer's rules.

    Args:
        merged: old and new rows by table.
        old: the tables before.
        events: EVENTS of the new files, refused ones included, as importers count them.
        rules: START or LOG by table; a table without a rule says itself when its rows were first seen.
    """
    time_us = pc.fill_null(events.column("event_time").cast(pa.int64()), 0).to_numpy()
    known = pc.fill_null(sane(events.column("event_time"), datetime.now(UTC) + CLOCK_SKEW), False)
    valid = known.to_numpy()
    starts = [int(time_us[valid].min())] if valid.any() else []
    if len(old.events):
        starts += [_us(getattr(old, name)).min() for name in IDS if len(getattr(old, name))]
    made = dict(merged)
    for name, rule in rules.items():
        table, key = made[name], IDS[name]
        if not starts:
            continue
        start = int(min(starts))
        if rule == START:
            seen = np.full(len(table), start)
        else:
            new = _first_times(table.column(key), events.column(key), time_us, valid)
            seen = np.minimum(_known(table.column(key), getattr(old, name), old.events, key), new)
            seen = np.where(seen == NEVER, start, seen)
        place = table.column_names.index("first_seen")
        made[name] = table.set_column(place, table.field("first_seen"), pa.array(seen).cast(TIME))
    return made


def _known(ids: pa.ChunkedArray, old: pa.Table, events: pa.Table, key: str) -> np.ndarray:
    """When each id was first seen by the log so far, NEVER if it was not."""
    if not len(events):
        return np.full(len(ids), NEVER)
    seen_us = _us(old)
    acted = pc.is_in(old.column(key), events.column(key)).to_numpy()
    seen_us = np.where(
        acted | (seen_us > seen_us.min()), seen_us, NEVER
    )  # the others have the start of the log
    row = pc.fill_null(pc.index_in(ids, value_set=old.column(key)), -1).to_numpy()
    return np.where(row >= 0, seen_us[row], NEVER)


def _first_times(
    ids: pa.ChunkedArray, seen: pa.ChunkedArray, time_us: np.ndarray, valid: np.ndarray
) -> np.ndarray:
    """The first of the valid times of each id, NEVER if it has none; int64 microseconds."""
    row = pc.fill_null(pc.index_in(seen, value_set=ids), -1).to_numpy()
    hit = valid & (row >= 0)
    first = np.full(len(ids), NEVER)
    np.minimum.at(first, row[hit], time_us[hit])
    return first


def _us(table: pa.Table) -> np.ndarray:
    return np.asarray(table.column("first_seen").cast(pa.int64()).to_numpy())
