"""Checks of the canonical tables: wrong columns or types raise, wrong rows go to quarantine.

No row disappears silently. Each refused row is an entry of the quarantine table with the first rule it breaks; so is
each optional cell (an item's missing picture, an impossible age) that had to be emptied. The rules of a record are
those of ``dataset.records``, applied to whole columns; those of a whole dataset, references and repeats, are here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import EVENT_TYPES, QUARANTINE, SCHEMAS, DataError, Tables
from dataset.identity import event_content
from dataset.pictures import NOT_OPENED, inspect_pictures
from dataset.records import MOST_PARTS, MOST_TEXT, MOST_VALUE, MOST_WORD, OLDEST, Rule
from dataset.shop_ids import FOLDERS, NAMED
from dataset.sieve import AGAIN, Sieve, mistyped
from dataset.slates import refuse_mixed_requests
from dataset.text import clean_column
from moonstore.clock import CLOCK_SKEW

TEXTS = {
    "items": {"title": MOST_TEXT, "description": MOST_TEXT, "category": MOST_WORD, "attributes": MOST_VALUE},
    "users": {"segment": MOST_WORD},
    "queries": {"text": MOST_WORD},
}  # texts that are cleaned, and their most characters


def check(tables: Tables, now: datetime | None = None, known: Tables | None = None) -> Tables:
    """Check the tables against the contract.

    Args:
        tables: ``quarantine`` holds what the importer itself refused.
        now: upper bound of times, plus the clock skew; default: the current time.
        known: rows that passed before, which these may refer to; of events the caller then says whether most pass.

    Returns:
        Tables in which every row obeys every rule, columns in the order of the schema, and all refused rows in
        ``quarantine``. Valid rows keep their order and content.

    Raises:
        DataError: unknown, missing or mistyped columns; no items; more than half of a table refused.
    """
    latest = (now or datetime.now(UTC)) + CLOCK_SKEW
    sieve = {
        name: Sieve(
            name, _cleaned(name, conform(name, getattr(tables, name))), known and getattr(known, name)
        )
        for name in SCHEMAS
    }
    for one in sieve.values():
        one.refuse_nulls()
        _check_texts(one)
    for field, name in NAMED.items():
        own = sieve[name].column("external_id")
        sieve[name].refuse(Rule.FOLDER.format(field), pc.is_in(own, pa.array(FOLDERS)), own)
    _check_images(
        sieve["images"], _shown_by(sieve["images"].column("image_id"), sieve["items"], sieve["queries"])
    )
    _check_items(sieve["items"], sieve["images"], latest)
    _check_users(sieve["users"], latest)
    _check_queries(sieve["queries"], sieve["images"])
    _check_events(sieve["events"], sieve, latest)
    _check_judgements(sieve["judgements"], sieve)

    given = tables.quarantine.cast(QUARANTINE)
    judged = [one for one in sieve.values() if known is None or one.name != "events"]
    for one in sorted(judged, key=lambda one: one.name != "images"):  # a picture's fault is its item's, too
        one.require_most(given.filter(pc.equal(given.column("table"), one.name)))
    if sieve["items"].table.num_rows == 0 and known is None:
        raise DataError(f"items: expected at least one item, found 0 rows. {AGAIN}")
    entries = [QUARANTINE.empty_table(), *(entry for one in sieve.values() for entry in one.entries)]
    kept = {name: one.kept() for name, one in sieve.items()}
    beside: dict[str, Any] = {
        name: None if table is None else table.filter(pc.is_in(table["event_id"], kept["events"]["event_id"]))
        for name, table in (("truth", tables.truth), ("propensities", tables.propensities))
    }
    refused = by_own_ids(pa.concat_tables(entries), *(one for one in (tables, known) if one is not None))
    quarantine = pa.concat_tables([given, refused]).combine_chunks()
    return replace(tables, **kept, **beside, quarantine=quarantine)


def by_own_ids(entries: pa.Table, *known: Tables) -> pa.Table:
    """QUARANTINE entries with the shop's own ids in the place of the integers that stand for them, where known.

    Args:
        entries: where an id is unknown or a duplicate, or a query has no content, their value is this id.
        known: tables that say which integer stands for which id.
    """
    rules, values = entries.column("rule"), entries.column("value").combine_chunks()
    first = pc.struct_field(pc.extract_regex(rules, r"^(?:unknown|duplicate) (?P<field>\w+)"), "field")
    first = pc.if_else(pc.equal(rules, Rule.NO_QUERY), "query_id", first)
    for field, name in NAMED.items():
        rows = np.flatnonzero(pc.fill_null(pc.equal(first, field), False).to_numpy(zero_copy_only=False))
        for table in (getattr(one, name) for one in known) if len(rows) else ():
            ids = table.column(field).cast(pa.string())
            own = table.column("external_id").take(pc.index_in(values, value_set=ids)).combine_chunks()
            hit = np.zeros(len(values), dtype=bool)
            hit[rows] = True
            values = pc.if_else(pc.and_(pa.array(hit), own.is_valid()), own, values)
    return entries.set_column(3, QUARANTINE.field("value"), values)


def check_events(events: pa.Table, known: Tables, now: datetime | None = None) -> Sieve:
    """Check some events of a long log by the rules of ``check``; their ids are unique and they are in no slate.

    Args:
        events: EVENTS.
        known: tables that passed, which the events may refer to.
        now: as in ``check``.
    """
    sieve = Sieve("events", conform("events", events))
    sieve.refuse_nulls()
    parents = {name: Sieve(name, getattr(known, name)) for name in ("items", "users", "queries")}
    _check_events(sieve, parents, (now or datetime.now(UTC)) + CLOCK_SKEW)
    return sieve


def quarantine_counts(quarantine: pa.Table) -> dict[str, dict[str, int]]:
    """Number of quarantine entries by table and rule."""
    counts: dict[str, dict[str, int]] = {}
    pairs = zip(quarantine.column("table").to_pylist(), quarantine.column("rule").to_pylist(), strict=True)
    for (table, rule), rows in sorted(Counter(pairs).items()):
        counts.setdefault(table, {})[rule] = rows
    return counts


def conform(name: str, table: pa.Table) -> pa.Table:
    """The table with its columns in the order of the schema called ``name``.

    Raises:
        DataError: columns unknown, missing, repeated or of another type; lists all of them.
    """
    schema = SCHEMAS[name]
    faults = []
    if unknown := [column for column in table.column_names if column not in schema.names]:
        faults += [Rule.UNKNOWN_FIELD.format(column) for column in unknown[:3]]
    if missing := [column for column in schema.names if column not in table.column_names]:
        faults.append(f"found {len(missing)} missing columns {missing[:3]}")
    if twice := [column for column, times in Counter(table.column_names).items() if times > 1]:
        faults.append(f"found {len(twice)} columns more than once {twice[:3]}")
    for column in schema:
        if table.column_names.count(column.name) == 1 and table.field(column.name).type != column.type:
            found = table.column(column.name)
            first = [str(value)[:40] for value in found.slice(0, 3).to_pylist()]
            faults.append(f"{mistyped(column)}: expected {column.type}, found {found.type} {first}")
    if faults:
        raise DataError(f"{name}: expected columns {schema.names}; {'; '.join(faults)}. {AGAIN}")
    return table.select(schema.names)


def _cleaned(name: str, table: pa.Table) -> pa.Table:
    """The table with its texts normalized (``dataset.text``)."""
    for column in TEXTS.get(name, {}):
        place = table.column_names.index(column)
        table = table.set_column(place, table.field(column), clean_column(table.column(column)))
    return table


def _shown_by(image_id: pa.ChunkedArray, *owners: Sieve) -> pa.ChunkedArray:
    """For each picture the shop's id of the first item, or else query, that shows it; its own where none does."""
    shown_by = image_id
    for one in reversed(owners):
        place = pc.index_in(image_id, value_set=one.column("image_id"), skip_nulls=True)
        shown_by = pc.coalesce(one.column("external_id").take(place), shown_by)
    return shown_by


def _check_images(images: Sieve, owner: pa.ChunkedArray) -> None:
    contents = (scalar.as_py() or b"" for scalar in images.column("bytes"))
    seen = list(inspect_pictures(contents, images.table.num_rows))
    name = images.column("image_id")
    problem = pa.array([one.problem for one in seen], pa.string())
    shown = pc.binary_join_element_wise(owner, problem, ": ")
    other = pc.match_substring(problem, NOT_OPENED)
    images.refuse("picture of a format that is not opened", other, shown)
    images.refuse("broken or too large picture", problem.is_valid(), shown)
    content_id = pa.array([one.image_id for one in seen], pa.string())
    images.refuse("image_id is not the content hash", pc.not_equal(name, content_id), name)
    for side in ("width", "height"):
        found = pa.array([getattr(one, side) for one in seen], pa.int32())
        images.refuse(f"wrong {side}", pc.not_equal(images.column(side), found), images.column(side))
    images.refuse_repeats("image_id")


def _check_texts(table: Sieve) -> None:
    """Texts that are too long, and missing or empty parts of categories and attributes."""
    for name, most in TEXTS.get(table.name, {}).items():
        column = table.column(name)
        if pa.types.is_string(column.type):
            table.refuse(Rule.LONG.format(name), pc.greater(pc.utf8_length(column), most), column)
            continue
        table.refuse(Rule.PARTS.format(name), pc.greater(_sizes(column), MOST_PARTS), column)
        for rule, is_bad in (
            (Rule.NULL_INSIDE, pc.is_null),
            (Rule.EMPTY_INSIDE, lambda parts: pc.equal(parts, "")),
            (Rule.LONG_INSIDE, lambda parts: pc.greater(pc.utf8_length(parts), most)),  # noqa: B023
        ):
            table.refuse(rule.format(name), _holds(column, is_bad), column)


def _check_items(items: Sieve, images: Sieve, latest: datetime) -> None:
    items.refuse_negative("item_id", "spu")
    price = items.column("price")
    items.empty(Rule.NUMBER.format("price"), pc.is_nan(price), "price")
    items.refuse(Rule.PRICE.format("price"), pc.or_(pc.less(price, 0), pc.is_inf(price)), price)
    items.refuse_times("first_seen", latest)
    items.refuse_repeats("item_id")
    shown = pc.binary_join_element_wise(items.column("external_id"), items.column("image_id"), ": ")
    items.empty("image_id without an image", items.dangling("image_id", images), "image_id", shown)


def _check_users(users: Sieve, latest: datetime) -> None:
    users.refuse_negative("user_id")
    users.refuse_times("first_seen", latest)
    users.refuse_repeats("user_id")
    age = users.column("age")
    inside = pc.and_(pc.greater_equal(age, 0), pc.less_equal(age, OLDEST))
    users.empty(Rule.AGE.format("age"), pc.invert(inside), "age")


def _check_queries(queries: Sieve, images: Sieve) -> None:
    queries.refuse_negative("query_id")
    queries.refuse_repeats("query_id")
    queries.empty("image_id without an image", queries.dangling("image_id", images), "image_id")
    wordless = pc.equal(pc.fill_null(queries.column("text"), ""), "")
    nothing = pc.and_(wordless, queries.column("image_id").is_null())
    queries.refuse(Rule.NO_QUERY, nothing, queries.column("query_id"))


def _check_events(events: Sieve, sieve: dict[str, Sieve], latest: datetime) -> None:
    kind, value = events.column("type"), events.column("value")
    events.refuse(Rule.EVENT_TYPE.format("type"), pc.invert(pc.is_in(kind, pa.array(EVENT_TYPES))), kind)
    events.refuse_negative("event_id", "user_id", "item_id", "query_id", "request_id", "position")
    events.refuse_unknown("user_id", sieve["users"])
    events.refuse_unknown("item_id", sieve["items"])
    events.refuse_unknown("query_id", sieve["queries"])
    events.refuse_times("event_time", latest)
    events.refuse_times("available_time", latest)
    early = pc.less_equal(events.column("available_time"), events.column("event_time"))
    events.refuse("available_time not after event_time", early, events.column("available_time"))
    rating = pc.equal(kind, "rating")
    missing = pc.is_null(value, nan_is_null=True)
    events.refuse(Rule.INFINITE.format("value"), pc.is_inf(value), value)
    events.refuse(Rule.NO_VALUE, pc.and_(rating, missing), value)
    events.refuse(Rule.NO_RATING, pc.invert(pc.or_(rating, missing)), value)
    events.empty(Rule.NUMBER.format("value"), pc.is_nan(value), "value")
    _check_identities(events)


def _check_identities(events: Sieve) -> None:
    """Of the events of one id the first stays; the others are duplicates of it, or other events under a used id."""
    first = events.first_rows("event_id")
    rows = np.flatnonzero(first != np.arange(len(first)))
    one, other = (events.table.take(pa.array(places)) for places in (first[rows], rows))
    differs = event_content(one) != event_content(other)
    differs |= pc.not_equal(one.column("event_time"), other.column("event_time")).to_numpy()
    used = np.zeros(len(first), bool)
    used[rows] = differs
    events.refuse(Rule.USED_ID.format("event_id"), used, events.column("event_id"))
    events.refuse_repeats("event_id")
    refuse_mixed_requests(events)


def _check_judgements(judgements: Sieve, sieve: dict[str, Sieve]) -> None:
    judgements.refuse_unknown("query_id", sieve["queries"])
    judgements.refuse_unknown("item_id", sieve["items"])
    relevance, part = judgements.column("relevance"), judgements.column("part")
    inside = pc.and_(pc.greater_equal(relevance, 0), pc.less_equal(relevance, 1))
    judgements.refuse("relevance outside 0..1", pc.invert(inside), relevance)
    judgements.refuse("unknown part", pc.invert(pc.is_in(part, pa.array(["train", "test"]))), part)
    judgements.refuse_repeats("query_id", "item_id")


def _sizes(column: pa.ChunkedArray) -> np.ndarray:
    """Number of parts of each list or map, int64; of a missing one 0."""
    return np.concatenate([np.zeros(0, np.int64), *(np.diff(chunk.offsets) for chunk in column.chunks)])


def _holds(column: pa.ChunkedArray, is_bad: Callable[[pa.Array], pa.Array]) -> np.ndarray:
    """Whether each list, or the keys and values of each map, hold a text for which ``is_bad`` is true."""
    found = []
    for chunk in column.chunks:
        bad = np.zeros(len(chunk), bool)
        for texts in (chunk.keys, chunk.items) if pa.types.is_map(chunk.type) else (chunk.values,):
            mask = pc.fill_null(is_bad(texts), False).to_numpy(zero_copy_only=False)
            count = np.concatenate([[0], np.cumsum(mask)])
            offsets = chunk.offsets.to_numpy()
            bad |= count[offsets[1:]] > count[offsets[:-1]]
        found.append(bad)
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)
