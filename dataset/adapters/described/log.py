"""Events of described tables, batch by batch: what a batch becomes takes a fixed number of bytes per event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import NO_CLOCK, SECOND_US, flat, scoped_ids, under
from dataset.adapters.described.cells import Cell, Reader, read
from dataset.adapters.described.description import IGNORE, Events
from dataset.adapters.described.entities import columns_of, files_of
from dataset.adapters.described.files import PACKED, Batch
from dataset.adapters.described.firsts import Firsts
from dataset.adapters.described.names import Names
from dataset.adapters.described.rows import beside
from dataset.adapters.described.sql import literal
from dataset.contracts import EVENT_TYPES, EVENTS, TIME
from dataset.identity import IMPORTED, event_key
from dataset.long_log import FEW, LongLog
from dataset.order import hashed
from dataset.text import clean_column
from run.progress import track

LOWEST, HIGHEST = 1.0, 5.0  # rating, on the scale of LIKED_RATING
LARGE, UNPACKED = 1 << 28, 5  # bytes above which a log is not held in memory; how much larger .gz is unpacked
SCOPE = "scope "  # prefix
CONTEXT = "context "  # prefix
TOLD = (("clicked", "click", True), ("skipped", "click", False), ("bought", "purchase", True))
# key of Events, the event that a row has beside it, and the flag that tells so


@dataclass
class Searches:
    """Queries by their id, or by their words where they have none.

    Attributes:
        names: of those with an id of their own.
        words: int64 id -> text.
        unnamed: ids that were made of the words.
    """

    names: Names
    words: dict[int, str] = field(default_factory=dict)
    unnamed: set[int] = field(default_factory=set)

    def ids(self, batch: Batch, query: str | None, text: str | None) -> pa.Array:
        """Int64 ids of the queries of a batch, from its columns ``query`` and ``query_text``.

        Args:
            batch: rows with these columns.
            query, text: the columns of the file, None: it has no such.
        """
        words = flat(clean_column(batch.table.column("query_text")))
        words = pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)
        if query is None:
            made = Batch(batch.file, batch.start, batch.table.append_column("words", words))
            ids = Names("query", "different").ids(made, "words", text or "")
            self.unnamed.update(pc.unique(ids).drop_null().to_pylist())
        else:
            ids = self.names.ids(batch, "query", query)
        if text is not None:
            said = pa.table({"id": ids, "text": words}).filter(pc.and_(ids.is_valid(), words.is_valid()))
            first = said.group_by("id", use_threads=False).aggregate([("text", "first")])
            for one, word in zip(
                first.column("id").to_pylist(), first.column("text_first").to_pylist(), strict=True
            ):
                self.words.setdefault(one, word)
        return ids


@dataclass
class EventLog:
    """The log while it is read.

    Attributes:
        root: the folder.
        sections: its tables.
        items, users: their ids; the log may bring new ones.
        searches: its queries.
        seen: when each item, and each user, was first seen; where a table has no times, at the start of the log.
        returned: rows that took something back, left out.
        unlisted: how many rows are of each type that ``types`` does not list; the contract refuses them.
    """

    root: Path
    sections: Sequence[Events]
    items: Names
    users: Names
    searches: Searches
    seen: dict[str, Firsts] = field(default_factory=lambda: {"item": Firsts(), "user": Firsts()})
    returned: int = 0
    unlisted: Counter[str] = field(default_factory=Counter)

    def is_long(self) -> bool:
        """Whether it is not held in memory: large files, and nothing in them that was shown in slates."""
        files = [path for one in self.sections for path in files_of(self.root, one).paths()]
        sizes = [path.stat().st_size * (UNPACKED if path.name.endswith(PACKED) else 1) for path in files]
        shown = any("impression" in (one.type, *one.types.values()) for one in self.sections)
        return sum(sizes) > LARGE and not shown

    @property
    def is_named(self) -> bool:
        """Whether its events have ids of their own."""
        return any(one.id is not None for one in self.sections)

    def left_out(self) -> list[str]:
        """The columns that a log is kept without when it is long: of its sessions, places and context."""
        found = [
            column
            for one in self.sections
            for column in (one.id, one.request, *one.request_scope, one.position, *one.context)
            if column is not None
        ]
        return list(dict.fromkeys(found))

    def batches(self) -> Iterator[pa.Table]:
        """The columns of EVENTS, event_id if the log says it, and CONTEXT columns, in the order of the files."""
        row = 0
        for section in self.sections:
            wanted = columns_of(section)
            for batch in read(files_of(self.root, section), section, wanted, partial(_cells, section)):
                events = self._events(section, batch, row)
                row += len(events)
                events = self._kept(section, events, batch.table)
                moments = events.column("event_time")
                if section.time is None:  # places in a file, often sorted by user, are no times of arrival
                    moments = pa.repeat(pa.scalar(NO_CLOCK, TIME), len(events))
                for entity, firsts in self.seen.items():
                    firsts.see(events.column(f"{entity}_id"), moments)
                yield events

    def short(self) -> tuple[pa.Table, pa.Table]:
        """EVENTS, by time, and the context of each (event_id, CONTEXT columns)."""
        return events_table(self.batches())

    def long(self) -> LongLog:
        """The same on disk. Sessions and context are left out; events of equal time are in order of a hash."""
        log = LongLog()
        with log.removed_if_it_fails():
            for part in track(self.batches(), "read events", unit="parts"):
                more = {name: part.column(name) for name in FEW}
                columns = [part.column(name) for name in ("type", "user_id", "item_id", "event_time")]
                kind, user, item, time = columns
                log.add(kind, user, item, time, more=more)
        return log

    def _kept(self, section: Events, events: pa.Table, table: pa.Table) -> pa.Table:
        """The rows that count, and after them the clicks and purchases that they tell of."""
        left = pc.fill_null(pc.equal(events.column("type"), IGNORE), False)
        back = pc.fill_null(pc.less(flat(table.column("quantity")), 0), False)
        self.returned += pc.sum(back).as_py() or 0
        kept = pc.invert(pc.or_(left, back))
        made = [events.filter(kept)]
        for name, kind, said in TOLD:
            if getattr(section, name) is not None:
                told = pc.fill_null(pc.equal(flat(table.column(name)), said), False)
                made.append(_told(section, kind, events, pc.and_(kept, told), table))
        return pa.concat_tables(made)

    def _events(self, section: Events, batch: Batch, row: int) -> pa.Table:
        rows, table = len(batch.table), batch.table
        kind = _types(section, flat(table.column("type")))
        strange = kind.filter(pc.invert(pc.is_in(kind, pa.array([*EVENT_TYPES, IGNORE])))).drop_null()
        for one in pc.value_counts(strange).to_pylist():
            self.unlisted[one["values"]] += one["counts"]
        if section.unrated is not None:
            unrated = pc.equal(flat(table.column("value")), section.unrated)
            kind = pc.if_else(pc.fill_null(pc.and_(pc.equal(kind, "rating"), unrated), False), "click", kind)
        sequence = pa.nulls(rows, pa.int64()) if section.whole_days else pa.array(np.arange(row, row + rows))
        scope = [flat(table.column(SCOPE + column)) for column in section.request_scope]
        request = flat(table.column("request"))
        if section.is_answered and section.request is None:  # what a user was shown at one time
            scope, request = [flat(table.column("user"))], flat(table.column("time"))
        asked = section.query is not None or section.query_text is not None
        event_us, known_us = (flat(table.column(name)) for name in ("time", "known"))
        if section.time is None:  # in the order of the rows
            event_us = pa.array((np.arange(row, row + rows) + int(NO_CLOCK.timestamp())) * SECOND_US)
            known_us = pc.add(event_us, SECOND_US)
        columns = {
            "user_id": self.users.ids(batch, "user", section.user),
            "item_id": self.items.ids(batch, "item", section.item),
            "type": kind,
            "event_time": event_us.cast(TIME),
            "available_time": known_us.cast(TIME),
            "query_id": self.searches.ids(batch, section.query, section.query_text)
            if asked
            else pa.nulls(rows, pa.int64()),
            "position": pc.subtract(flat(table.column("position")), section.first_position),
            "request_id": scoped_ids(request, scope)
            if section.request or section.is_answered
            else pa.nulls(rows, pa.int64()),
            "value": _ratings(section, kind, flat(table.column("value"))),
            "sequence": sequence,
        }
        if section.id is not None:
            columns["event_id"] = _event_ids("", flat(table.column("id")))
        context = {CONTEXT + column: flat(table.column(CONTEXT + column)) for column in section.context}
        return pa.table({**columns, **context})


def _told(section: Events, kind: str, events: pa.Table, rows: pa.Array, table: pa.Table) -> pa.Table:
    """Events of another kind beside those of ``rows`` (bool), at the same time and place."""
    made = events.filter(rows)
    columns = {"type": pa.repeat(pa.scalar(kind), len(made))}
    if section.id is not None:
        columns["event_id"] = _event_ids(kind, flat(table.column("id")).filter(rows))
    for name, values in columns.items():
        made = made.set_column(made.column_names.index(name), name, values)
    return made


def _event_ids(sender: str, own: pa.Array) -> pa.Array:
    """What events are stored under, int64, from their own ids; null where they have none."""
    return pa.array([None if one is None else event_key(sender, one) for one in own.to_pylist()], pa.int64())


def events_table(batches: Iterator[pa.Table]) -> tuple[pa.Table, pa.Table]:
    """EVENTS, by time, and the context of each (event_id, CONTEXT columns).

    Events without an id of their own are numbered from ``IMPORTED`` on.
    """
    found = list(batches)
    if not found:
        return EVENTS.empty_table(), pa.table({"event_id": pa.array([], pa.int64())})
    together = pa.concat_tables(found, promote_options="permissive").combine_chunks()
    users, items, times = (
        together.column(name).cast(pa.int64()).fill_null(-1).to_numpy()
        for name in ("user_id", "item_id", "event_time")
    )
    ties = hashed(users, items)
    if together.column("sequence").null_count == 0:
        ties = together.column("sequence").to_numpy()
    ordered = together.take(pa.array(np.lexsort([ties, times])))
    number: pa.Array | pa.ChunkedArray = pa.array(np.arange(1, len(ordered) + 1) + IMPORTED)
    if "event_id" in ordered.column_names:
        number = ordered.column("event_id")
    columns = {name: ordered.column(name) for name in ordered.column_names if name in EVENTS.names}
    context = {
        name.removeprefix(CONTEXT): ordered.column(name)
        for name in ordered.column_names
        if name.startswith(CONTEXT)
    }
    return under(EVENTS, {**columns, "event_id": number}), beside("event_id", number, context)


def _cells(section: Events, reader: Reader) -> list[Cell]:
    return [
        reader.id("id", section.id),
        _user(section, reader),
        reader.id("item", section.item),
        reader.time("time", section.time, section.time_format),
        reader.known("known", section.time, section.time_format, section.whole_days),
        reader.text("type", section.type_column),
        reader.number("value", section.value),
        *(reader.flag(name, getattr(section, name)) for name, _, _ in TOLD),
        reader.number("quantity", section.quantity),
        reader.id("request", section.request),
        *(reader.id(SCOPE + column, column) for column in section.request_scope),
        reader.whole("position", section.position),
        reader.id("query", section.query),
        reader.text("query_text", section.query_text),
        *(Cell(CONTEXT + column, reader.raw(column)) for column in section.context),
    ]


def _user(section: Events, reader: Reader) -> Cell:
    """Whose the row is: its user, or, where it names none, its visitor."""
    cell = reader.id("user", section.user)
    if section.visitor is None:
        return cell
    visitor = f"{literal(section.visitor + ' ')} || ({reader.id('visitor', section.visitor).sql})"
    return replace(cell, sql=f"CASE WHEN ({cell.raw}) IS NULL THEN {visitor} ELSE {cell.sql} END")


def _types(section: Events, said: pa.Array) -> pa.Array:
    """The type of each event; of a value that is not listed the value itself, which the contract refuses."""
    if section.type is not None:
        return pa.repeat(section.type, len(said))
    encoded = said.dictionary_encode()
    types = [section.types.get(text, text) for text in encoded.dictionary.to_pylist()]
    return pa.array(types, pa.string()).take(encoded.indices)


def _ratings(section: Events, kind: pa.Array, value: pa.Array) -> pa.Array:
    """The rating of each rating, on the scale from 1 to 5; null for other events."""
    if section.value_scale is not None:
        low, high = section.value_scale
        value = pc.add(pc.multiply(pc.subtract(value, low), (HIGHEST - LOWEST) / (high - low)), LOWEST)
    rated = pc.if_else(pc.fill_null(pc.equal(kind, "rating"), False), value, pa.scalar(None, pa.float64()))
    return rated.cast(pa.float32())
