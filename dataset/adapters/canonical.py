"""Building blocks of importers: canonical tables from whole columns; nulls stay null.

Missing values of a source stay null here and are counted by ``dataset.checks``, never guessed or dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import (
    EVENTS,
    IMAGES,
    ITEMS,
    QUARANTINE,
    TIME,
    USERS,
    DataError,
    content_hash,
)
from dataset.identity import IMPORTED
from dataset.order import hashed
from dataset.pictures import picture_size
from dataset.records import Rule
from dataset.shop_ids import stable_ids
from dataset.sieve import AGAIN, Column, mistyped, sane
from moonstore.clock import CLOCK_SKEW

NO_CLOCK = datetime(2000, 1, 1, tzinfo=UTC)  # first_seen if the source has no times
SECOND_US = 1_000_000
SOME = 1 << 16  # names held as Python's texts at once
FAR_US = 200_000 * 365 * 86_400 * SECOND_US  # outside every bound of dates, within int64


def flat(column: Column) -> pa.Array:
    """The column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def ids_of(external: Column) -> pa.Array:
    """Int64 ids of the source's string ids (``stable_ids``), null where they are null."""
    encoded = flat(external.dictionary_encode())  # the text of 30 million rows does not fit one array
    names = encoded.dictionary
    parts = (stable_ids(names.slice(start, SOME).to_pylist()) for start in range(0, len(names), SOME))
    ids = np.concatenate([np.zeros(0, np.int64), *parts])
    if len(np.unique(ids)) < len(ids):
        raise DataError(
            f"expected an integer for each of {len(ids)} external ids, found one of two: ids collide"
        )
    return pa.array(ids, pa.int64()).take(encoded.indices)


def times(column: Column, per_second: int) -> pa.Array:
    """Times from numbers since 1970 UTC in units of 1 / ``per_second`` s; clipped to FAR_US, still out of bounds."""
    unit_us = SECOND_US // per_second
    number = flat(column).cast(pa.int64())
    bound = FAR_US // unit_us
    clipped = pc.max_element_wise(
        pc.min_element_wise(number, bound, skip_nulls=False), -bound, skip_nulls=False
    )
    return pc.multiply(clipped, unit_us).cast(TIME)


def after(moments: Column, seconds: int = 1) -> pa.Array:
    """Each time plus ``seconds``: the available time where the source does not give one."""
    return pc.add(flat(moments).cast(pa.int64()), seconds * SECOND_US).cast(TIME)


def paths(levels: Sequence[Column]) -> pa.Array:
    """Category path of each row, from one column per level, broadest first; empty levels are left out."""
    offsets, _, values = _ragged(levels)
    return pa.ListArray.from_arrays(offsets, values)


def attributes(columns: Mapping[str, Column]) -> pa.Array:
    """Attribute map of each row, from one column per attribute; nulls and empty strings are left out."""
    offsets, source, values = _ragged(list(columns.values()))
    return pa.MapArray.from_arrays(offsets, pa.array(list(columns), pa.string()).take(source), values)


def _ragged(columns: Sequence[Column]) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Non-empty cells row by row: int32 offsets, the column of each cell, and the cells."""
    cells = pa.concat_arrays([flat(column).cast(pa.string()) for column in columns])
    rows = len(cells) // len(columns)
    order = np.arange(len(cells)).reshape(len(columns), rows).T.ravel()
    full = pc.fill_null(pc.not_equal(cells, ""), False).to_numpy(zero_copy_only=False)
    full = full[order]
    lengths = full.reshape(rows, len(columns)).sum(axis=1)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    kept = order[full]
    return offsets, pa.array(kept // max(rows, 1)), cells.take(pa.array(kept))


def event_table(
    kind: str | Column,
    user: Column,
    item: Column,
    time: Column,
    request: Column | None = None,
    request_scope: Sequence[Column] = (),
    value: Column | None = None,
    sequence: Column | None = None,
) -> pa.Table:
    """EVENTS ordered by time and numbered from ``IMPORTED`` on, available a second after they happened.

    Args:
        kind: the type of all events, or of each (EVENT_TYPES).
        user, item: ids, int64 (``ids_of``).
        time: TIME.
        request: the source's id of the slate or session, a number or a text.
        request_scope: columns within which the source numbers its requests, e.g. the user; empty: a request has the
            same id nowhere else.
        value: the rating, of rating events.
        sequence: int64 by which the source orders events of equal time, e.g. the number of the row in a log that is
            written as things happen; None: it has no such order, and they are ordered by a hash (``dataset.order``).
    """
    moments = flat(time)
    rows = len(moments)
    users, items, times_us = (
        flat(key).cast(pa.int64()).fill_null(-1).to_numpy() for key in (user, item, moments)
    )
    ties = hashed(users, items) if sequence is None else flat(sequence).to_numpy()
    order = pa.array(np.lexsort([ties, times_us]))
    kinds = pa.repeat(kind, rows) if isinstance(kind, str) else kind
    columns = {
        "user_id": user,
        "item_id": item,
        "type": kinds,
        "event_time": moments,
        "available_time": after(moments),
        "request_id": pa.nulls(rows, pa.int64()) if request is None else scoped_ids(request, request_scope),
        "value": pa.nulls(rows, pa.float32()) if value is None else value,
        "sequence": pa.nulls(rows, pa.int64()) if sequence is None else sequence,
    }
    sorted_columns = {name: flat(column).take(order) for name, column in columns.items()}
    return under(EVENTS, {"event_id": pa.array(np.arange(1, rows + 1) + IMPORTED), **sorted_columns})


def scoped_ids(external: Column, scope: Sequence[Column] = ()) -> pa.Array:
    """Int64 ids of what the source numbers anew within each combination of the columns ``scope``."""
    if not scope and pa.types.is_integer(external.type):
        return flat(external)
    names = [flat(column).cast(pa.string()) for column in (*scope, external)]
    return ids_of(pc.binary_join_element_wise(*names, "/"))


def start_of(moments: Column) -> datetime:
    """The earliest time within the bounds of dates; NO_CLOCK if there is none."""
    kept = flat(moments).filter(sane(flat(moments), datetime.now(UTC) + CLOCK_SKEW))
    return pc.min(kept).as_py() if len(kept) else NO_CLOCK


def first_seen(ids: Column, seen: Column, moments: Column) -> pa.Array:
    """The earliest time within bounds at which each id was ``seen``; for ids never seen the earliest of all."""
    moments = flat(moments)
    known = sane(moments, datetime.now(UTC) + CLOCK_SKEW)
    log = pa.table({"id": flat(seen), "time": moments}).filter(known)
    first = log.group_by("id").aggregate([("time", "min")])
    row = pc.index_in(flat(ids), value_set=flat(first.column("id")))
    return pc.fill_null(flat(first.column("time_min")).take(row), pa.scalar(start_of(moments), TIME)).cast(
        TIME
    )


def user_table(
    events: pa.Table, profiles: Mapping[str, Column] | None = None, named: Column | None = None
) -> pa.Table:
    """USERS: users with a profile, then the other users of ``events``.

    Args:
        events: EVENTS.
        profiles: columns of USERS except first_seen; None: the source has no profiles.
        named: the source's ids of the users of its log, text, in any order, from which ``ids_of`` made ``user_id``;
            None: the source's ids are the numbers.
    """
    active = pc.unique(events.column("user_id")).drop_null().sort()
    external = active.cast(pa.string())
    if named is not None:
        names = pc.unique(flat(named)).drop_null()
        external = names.take(pc.index_in(active, value_set=ids_of(names)))
    times = events.column("event_time")
    seen = first_seen(active, events.column("user_id"), times)
    log = pa.table({"user_id": active, "external_id": external, "first_seen": seen})
    return users_of(log, profiles, start_of(times))


def users_of(active: pa.Table, profiles: Mapping[str, Column] | None, start: datetime) -> pa.Table:
    """USERS: users with a profile, then the other active ones.

    Args:
        active: user_id, external_id and first_seen of the users of a log.
        profiles: columns of USERS except first_seen; None: the source has no profiles.
        start: when users without an event, or without a sane time, were first seen.
    """
    parts = [under(USERS, {name: active.column(name) for name in ("user_id", "external_id")})]
    if profiles is not None:
        known = pc.is_in(active.column("user_id"), flat(profiles["user_id"]))
        parts = [under(USERS, profiles), parts[0].filter(pc.invert(known))]
    users = pa.concat_tables(parts)
    row = pc.index_in(users.column("user_id"), value_set=active.column("user_id"))
    seen = pc.fill_null(active.column("first_seen").take(row), pa.scalar(start, TIME))
    return users.set_column(users.schema.get_field_index("first_seen"), USERS.field("first_seen"), seen)


def under(schema: pa.Schema, columns: Mapping[str, Column]) -> pa.Table:
    """A table of ``schema``; missing columns are null, an item's category and attributes empty.

    Raises:
        DataError: an unknown column, one of another type, or an integer that its column cannot hold. Integers of any
            width and fractions of any precision are numbers; a text, a truth value or a time without a zone is not.
    """
    if unknown := [name for name in columns if name not in schema.names]:
        raise DataError(f"{Rule.UNKNOWN_FIELD.format(unknown[0])}: expected columns {schema.names}. {AGAIN}")
    rows = len(next(iter(columns.values())))
    made = []
    for field in schema:
        if field.name in columns:
            made.append(_stored(flat(columns[field.name]), field))
        elif schema is ITEMS and field.name in ("category", "attributes"):
            made.append(pa.array([[]] * rows, field.type))
        else:
            made.append(pa.nulls(rows, field.type))
    return pa.table(made, schema=schema)


def _stored(values: pa.Array, field: pa.Field) -> pa.Array:
    """The values in the type of ``field``, if they are of its kind (see ``under``)."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    found, types = values.type, pa.types
    alike = (
        types.is_null(found)
        or (types.is_integer(found) and (types.is_integer(field.type) or types.is_floating(field.type)))
        or (types.is_floating(found) and types.is_floating(field.type))
        or (types.is_timestamp(found) and types.is_timestamp(field.type) and found.tz is not None)
        or (types.is_large_string(found) and types.is_string(field.type))
        or (types.is_list(found) and types.is_list(field.type) and types.is_null(found.value_type))
    )
    try:
        if found == field.type or alike:
            return values.cast(field.type, safe=not types.is_floating(field.type))
    except pa.ArrowException:  # an integer of 64 bits for one of 32
        pass
    first = [str(value)[:40] for value in values.slice(0, 3).to_pylist()]
    raise DataError(f"{mistyped(field)}: expected {field.type}, found {found} such as {first}. {AGAIN}")


def refusals(table: str, rule: str, offenders: Iterable[tuple[int, str]]) -> pa.Table:
    """QUARANTINE entries of (row or picture number, value) that cannot become a canonical row."""
    found = list(offenders)
    columns = [
        pa.array([table] * len(found), pa.string()),
        pa.array([rule] * len(found), pa.string()),
        pa.array([row for row, _ in found], pa.int64()),
        pa.array([value for _, value in found], pa.string()),
    ]
    return pa.table(columns, schema=QUARANTINE)


def image_table(contents: Iterable[bytes]) -> pa.Table:
    """IMAGES of distinct pictures, in order of first appearance."""
    distinct = {content_hash(content): content for content in contents}
    sizes = [picture_size(content) for content in distinct.values()]
    columns = [
        pa.array(list(distinct), pa.string()),
        pa.array(list(distinct.values()), pa.binary()),
        pa.array([width for width, _ in sizes], pa.int32()),
        pa.array([height for _, height in sizes], pa.int32()),
    ]
    return pa.table(columns, schema=IMAGES)


def attach_pictures(
    keys: Sequence[str], pictures: Iterable[tuple[str, bytes | None]]
) -> tuple[pa.Array, pa.Table, pa.Table]:
    """Assign pictures to items.

    Args:
        keys: the source's id of each item.
        pictures: (item id, encoded bytes).

    Returns:
        image_id of each item, IMAGES, and QUARANTINE entries of pictures without an item, without bytes,
        or of an item that already has one.
    """
    known, chosen = set(keys), {}
    refused: dict[str, list[tuple[int, str]]] = {}
    for number, (key, content) in enumerate(pictures):
        if key not in known:
            refused.setdefault("picture of an unknown item", []).append((number, key))
        elif not content:
            refused.setdefault("picture without bytes", []).append((number, key))
        elif key in chosen:
            refused.setdefault("second picture of an item", []).append((number, key))
        else:
            chosen[key] = content
    entries = [refusals("images", rule, found) for rule, found in refused.items()]
    names = {key: content_hash(content) for key, content in chosen.items()}
    image_id = pa.array([names.get(key) for key in keys], pa.string())
    return image_id, image_table(chosen.values()), pa.concat_tables([QUARANTINE.empty_table(), *entries])


def numbers(column: Column, what: str) -> pa.Array:
    """Int64 from decimal strings of one length, or from integers.

    Raises:
        DataError: naming the first values that are not integers, or two texts of one number ("07" and "7").
    """
    values = flat(column)
    if pa.types.is_string(values.type):
        bad = pc.and_(values.is_valid(), pc.invert(pc.match_substring_regex(values, r"^[0-9]{1,18}$")))
        offenders = values.filter(bad)
        if len(offenders):
            raise DataError(
                f"{what}: expected integers, found {len(offenders)} others, "
                f"first {offenders[:3].to_pylist()}. Correct them, then run 'moon dataset' again."
            )
        lengths = pc.unique(pc.utf8_length(values)).drop_null()
        if len(lengths) > 1 and pc.any(pc.starts_with(values, "0")).as_py():
            raise DataError(
                f"{what}: expected numbers of one length, because some begin with 0, found lengths "
                f"{sorted(lengths.to_pylist())[:3]}: '07' and '7' would become one id. "
                f"Write them in full, then run 'moon dataset' again."
            )
    return values.cast(pa.int64())
