"""Growing a dataset: the tables of a new day's files join those that are there.

Items, users, queries and judgements are replaced or added by their ids, events are added. What is there has passed
the contract and is not checked again; new rows may refer to it. The result has the tables that an import of all files
at once would have; what that means where files overlap is said at ``dataset.upsert`` and ``already_there``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.checks import check
from dataset.contracts import EVENTS, TIME, DataError, Tables
from dataset.extra import extra_types, merged_extra
from dataset.first_seen import first_seen_of_all
from dataset.identity import IMPORTED, event_content, stable_hash
from dataset.long_log import LongLog
from dataset.order import HASH, SOURCE, hashed, sequence_of, sequenced
from dataset.shop_ids import NAMED
from dataset.sieve import require_most
from dataset.tables import Dataset, write_checked
from dataset.upsert import upserted
from run.artifacts import Artifact, open_artifact, remove_leftovers

GIVEN = "given"  # ``event_ids`` of a source that names its events; others are numbered by their importer
KEYS = {
    "items": ("item_id",),
    "users": ("user_id",),
    "queries": ("query_id",),
    "judgements": ("query_id", "item_id"),
    "images": ("image_id",),
}
KEPT = {"items": ("image_id", "first_seen"), "users": ("age", "segment", "first_seen")}


@dataclass(frozen=True)
class Appended:
    """What an append did.

    Attributes:
        artifact: the dataset, with the new files' rows.
        already_there: events of the files that the dataset had.
        refused: rows of the files that broke a rule.
        added, changed: rows by table.
        rules: the rules that rows broke, and how many each.
        said: what else to know.
    """

    artifact: Artifact
    already_there: int
    refused: int
    added: dict[str, int]
    changed: dict[str, int]
    rules: Mapping[str, int] = field(default_factory=dict)
    said: str = ""

    @property
    def is_nothing(self) -> bool:
        """Whether the files hold nothing new, so that the dataset is as it was."""
        return not any((*self.added.values(), *self.changed.values()))

    def told(self) -> str:
        """One line for the person who appended the files."""
        new = [f"{rows:,} new {name}" for name, rows in self.added.items() if rows]
        new += [f"{rows:,} changed {name}" for name, rows in self.changed.items() if rows]
        kinds = ", ".join(f"{rows:,} {rule}" for rule, rows in self.rules.items())
        aside = f"; {self.refused:,} rows set aside, in quarantine.parquet: {kinds}" if self.refused else ""
        more = f"; {self.said}" if self.said else ""
        return f"{', '.join(new) or 'nothing new'}; {self.already_there:,} events already there{aside}{more}"


def append(before: Dataset, tables: Tables, config: Mapping[str, Any], source: str) -> Appended:
    """Write the dataset again, with the rows of ``tables``; nothing is written if there is nothing new in them.

    Args:
        before: the dataset.
        tables: of an importer, unchecked, from files in the format of the dataset's own.
        config: of that importer.
        source: what the files are called, recorded in the artifact.

    Raises:
        DataError: a table breaks its schema, more than half of its rows would be quarantined, an id stands for two
            names, or the dataset is a simulated one.
    """
    if before.truth is not None:
        raise DataError(
            f"{before.artifact.path}: expected imported data to append to, found a simulated shop. "
            f"Import yours with 'moon dataset --data FORMAT:FOLDER'."
        )
    tables = _in_memory(tables)
    given = config.get("event_ids") == GIVEN
    if not given:
        tables = _numbered_on(before, tables)
    events = tables.events
    there = already_there(before.events, events, by_id=given)
    fresh = replace(tables, events=_in_order_of(before, events.filter(pa.array(~there))))
    checked = _checked(before, fresh, int(there.sum()))
    old = _tables(before)
    checked = replace(checked, items=_with_content(checked.items, old.items))
    merged, added, changed = {}, {}, {}
    for name, keys in KEYS.items():
        merged[name], added[name], changed[name] = upserted(
            getattr(old, name), getattr(checked, name), keys, KEPT.get(name, ())
        )
    merged = first_seen_of_all(merged, old, fresh.events, config.get("first_seen", {}))
    merged["images"] = _shown(merged, old)
    extra, changed["left-over columns"] = merged_extra(old.extra, checked.extra)
    added["events"] = checked.events.num_rows
    rules = Counter(checked.quarantine.column("rule").to_pylist())
    refused = checked.quarantine.num_rows
    done = Appended(before.artifact, int(there.sum()), refused, added, changed, dict(rules.most_common()))
    if done.is_nothing:  # perhaps because an append was killed when all was written
        remove_leftovers(before.artifact.path)
        return done
    new, ties = checked.events, before.artifact.config.get("ties")
    if ties is None and len(new):  # the first events of this dataset
        new, ties = sequenced(new, merged["items"])
    quarantine = pa.concat_tables([old.quarantine, checked.quarantine])
    written = Tables(**merged, events=_joined(old.events, new), extra=extra, quarantine=quarantine)
    grown = _grown(before, done, source) | ({} if ties is None else {"ties": ties})
    grown |= {"extra": extra_types(extra)} if extra else {}
    grown |= {"last_event_id": number} if (number := last_number(before, events)) else {}
    write_checked(before.artifact.path, written, grown)
    return replace(done, artifact=open_artifact(before.artifact.path, "dataset"))


def _grown(before: Dataset, done: Appended, source: str) -> dict[str, Any]:
    """The configuration of the dataset with a record of what was appended."""
    kept = before.artifact.config
    record = {
        "source": source,
        "before": before.artifact.id,
        "items_before": before.items.num_rows,
        "already_there": done.already_there,
        "added": {name: rows for name, rows in done.added.items() if rows},
        "changed": {name: rows for name, rows in done.changed.items() if rows},
    }
    # Of a table that was empty nothing is known of its ids; others stay as clients know them.
    ids = {
        field: kind
        for field, kind in kept.get("ids", {}).items()
        if field not in NAMED or len(getattr(before, NAMED[field]))
    }
    return {**kept, "appended": [*kept.get("appended", []), record], "ids": ids}


def items_since(dataset: Dataset, artifact_id: str) -> np.ndarray | None:
    """The items that were added since the dataset was the artifact ``artifact_id``, int64; None: it never was."""
    for record in dataset.artifact.config.get("appended", []):
        if record["before"] == artifact_id:
            return dataset.items.column("item_id").slice(record["items_before"]).to_numpy()
    return None


def already_there(old: pa.Table, new: pa.Table, by_id: bool) -> np.ndarray:
    """Which events of ``new`` are in ``old``: the same, as often as it is there.

    A source that does not name its events can hold equal ones (two of an article in one purchase), so they are
    counted: of three in a file of which two are there, one is new. A file that is sent again, or that begins before
    the last one ended, adds what was not there.

    Args:
        old, new: EVENTS.
        by_id: the source names its events: the same one has the same id, time and content. Otherwise the same time
            and content.

    Returns:
        bool, a flag for each row of ``new``.
    """
    if not len(new) or not len(old):
        return np.zeros(len(new), bool)
    first, last = (pc.cast(one, TIME) for one in pc.min_max(new.column("event_time")).values())
    if not first.is_valid:
        return np.zeros(len(new), bool)
    time = old.column("event_time")
    old = old.filter(pc.and_(pc.greater_equal(time, first), pc.less_equal(time, last)))
    known, found = np.sort(_content(old, by_id)), _content(new, by_id)
    order = np.argsort(found, kind="stable")
    found = found[order]
    copy = np.arange(len(found)) - np.searchsorted(found, found)
    times = np.searchsorted(known, found, side="right") - np.searchsorted(known, found)
    there = np.zeros(len(found), bool)
    there[order] = copy < times
    return there


def _content(events: pa.Table, by_id: bool) -> np.ndarray:
    time_us = pc.fill_null(events.column("event_time").cast(pa.int64()), -1).to_numpy()
    names = [pc.fill_null(events.column("event_id"), -1).to_numpy()] if by_id else []
    return stable_hash(event_content(events), time_us, *names)


def last_number(before: Dataset, events: pa.Table) -> int:
    """The largest number of an event so far; an importer numbers refused ones as well."""
    numbers = (pc.max(table.column("event_id")).as_py() or 0 for table in (before.events, events))
    return max(before.artifact.config.get("last_event_id", 0), *numbers)


def _in_memory(tables: Tables) -> Tables:
    """The tables, their events in memory if the file was so large that they are not."""
    if not isinstance(tables.events, LongLog):
        return tables
    log = tables.events
    with log.removed_if_it_fails():
        events = pa.concat_tables([EVENTS.empty_table(), *log.chunks()])
    log.close()
    return replace(tables, events=events)


def _numbered_on(before: Dataset, tables: Tables) -> Tables:
    """The events numbered on from those that are there, whose numbers never change."""
    shift = max(last_number(before, tables.events.slice(0, 0)), IMPORTED) - IMPORTED

    def numbered(table: pa.Table) -> pa.Table:
        place = table.column_names.index("event_id")
        return table.set_column(place, table.field(place), pc.add(table.column(place), shift))

    extra = {name: numbered(table) if name == "event" else table for name, table in tables.extra.items()}
    return replace(tables, events=numbered(tables.events), extra=extra)


def _with_content(new: pa.Table, old: pa.Table) -> pa.Table:
    """The items without those that are there already and of which the new files say nothing but that they exist."""
    said = [new.column(name).is_valid() for name in ("title", "description", "price", "image_id")]
    said += [pc.greater(pc.list_value_length(new.column("category")), 0)]
    said += [
        pa.chunked_array([np.diff(one.offsets) > 0 for one in new.column("attributes").chunks], pa.bool_())
    ]
    known = pc.is_in(new.column("item_id"), old.column("item_id"))
    return new.filter(reduce(pc.or_, said, pc.invert(known)))


def _in_order_of(before: Dataset, events: pa.Table) -> pa.Table:
    """The events with what orders equal times in the dataset (``dataset.order``)."""
    numbers = events.column("sequence")
    if not len(before.events):
        return events
    if before.artifact.config.get("ties", HASH) != SOURCE:
        user, item = (pc.fill_null(events.column(name), -1).to_numpy() for name in ("user_id", "item_id"))
        numbers = pa.array(hashed(user, item))
    else:
        numbers = pc.add(numbers, int(sequence_of(before.events).max()) + 1)  # a later file's rows come later
    return events.set_column(events.column_names.index("sequence"), events.field("sequence"), numbers)


def _checked(before: Dataset, tables: Tables, repeated: int) -> Tables:
    """The new rows that obey every rule, together with what is there; ``repeated`` other events are there already.

    Events are checked together with those there of the same id or request: of two with one id the one that is there
    stays, a request that both have must be of one user and moment.
    """
    ids, requests = (tables.events.column(name) for name in ("event_id", "request_id"))
    old = before.events
    same = pc.or_(
        pc.is_in(old.column("event_id"), ids), pc.is_in(old.column("request_id"), requests.drop_null())
    )
    others = old.filter(same)
    together = replace(tables, events=pa.concat_tables([others, tables.events]))
    checked = check(together, known=_tables(before))
    entries = checked.quarantine
    row, of_events = entries.column("row").to_numpy(), pc.equal(entries.column("table"), "events").to_numpy()
    own = ~of_events | (row >= len(others))
    given = len(tables.quarantine)  # the importer's own entries count rows of its own
    shift = np.where(of_events & (np.arange(len(row)) >= given), len(others), 0)
    own[:given] = True
    entries = entries.set_column(2, entries.schema.field(2), pa.array(row - shift)).filter(pa.array(own))
    about = entries.filter(pc.equal(entries.column("table"), "events"))
    unread = int(of_events[:given].sum())
    require_most("events", [about], unread, unread + len(tables.events) + repeated)
    stays = ~pc.is_in(checked.events.column("event_id"), others.column("event_id")).to_numpy()
    return replace(checked, events=checked.events.filter(pa.array(stays)), quarantine=entries)


def _joined(old: pa.Table, new: pa.Table) -> pa.Table:
    """All events in order of time, those of equal time in their sequence."""
    events = pa.concat_tables([old, new])
    time_us = events.column("event_time").cast(pa.int64()).to_numpy()
    if (np.diff(time_us) > 0)[len(old) - 1 : len(old)].all() and (np.diff(time_us) >= 0).all():
        return events  # the new ones begin after the last one ended
    return events.take(pa.array(np.lexsort((sequence_of(events), time_us))))


def _shown(merged: Mapping[str, pa.Table], old: Tables) -> pa.Table:
    """The pictures without those that a change has left without an item or a query."""
    before, after = (
        pa.chunked_array([*items.column("image_id").chunks, *queries.column("image_id").chunks], pa.string())
        for items, queries in ((old.items, old.queries), (merged["items"], merged["queries"]))
    )
    images = merged["images"]
    names = images.column("image_id")
    left = pc.and_(pc.is_in(names, before), pc.invert(pc.is_in(names, after)))
    return images.filter(pc.invert(left)) if pc.any(left).as_py() else images


def _tables(dataset: Dataset) -> Tables:
    names = ("items", "images", "users", "events", "queries", "judgements", "quarantine")
    return Tables(**{name: getattr(dataset, name) for name in names}, extra=dataset.extra)
