"""Items and users of described tables: one row per id, and ids alone where a log knows more than the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import attributes, flat, ids_of, under
from dataset.adapters.described.cells import Cell, Reader, read
from dataset.adapters.described.description import Events, Items, Section, Users
from dataset.adapters.described.files import Batch, Files, connection
from dataset.adapters.described.firsts import Firsts
from dataset.adapters.described.joined import Joined
from dataset.adapters.described.names import Names
from dataset.adapters.described.nested import opened_list
from dataset.adapters.described.rows import (
    EXTRA,
    KEY,
    PROPERTY,
    UPDATED,
    VALUE,
    extra_cells,
    extras,
    filled,
    latest,
    pivoted,
)
from dataset.adapters.described.sql import quoted
from dataset.contracts import ITEMS, TIME, USERS
from dataset.extra import GONE
from dataset.sieve import sane
from moonstore.clock import CLOCK_SKEW

ATTRIBUTE = "attribute "  # prefix of a column that becomes one
MOST_PROPERTIES = 50  # that become attributes: an item may have a hundred (``records.MOST_PARTS``)


@dataclass(frozen=True)
class Described:
    """What tables say of an entity.

    Attributes:
        rows: KEY int64 and typed columns, one row per id.
        extra: columns that are nobody's, row by row.
        changed: rows that a later row of their id replaced with another content.
        rare: properties beyond the most frequent ones, left out.
    """

    rows: pa.Table
    extra: dict[str, pa.Array]
    changed: int
    rare: int = 0


def files_of(root: Path, section: Section) -> Files | Joined:
    """The files that a section of ``moon.toml`` names."""
    layout = (section.delimiter, section.quote, section.header, section.encoding, section.escape)
    each = opened_list(columns_of(section), section.files[0])
    own = Files(root, tuple(section.files), *layout, each, tuple(section.separators))
    if isinstance(section, Events) and section.join_on is not None:
        return Joined(own, Files(root, tuple(section.join), *layout), section.join_on, section.join_key)
    found: Files | Joined = own
    for column, (file, key) in section.lookup.items() if isinstance(section, Items) else ():
        found = Joined(found, Files(root, (file,), *layout), column, key, f"{column}.")
    return found


def described_items(root: Path, sections: Sequence[Items], names: Names) -> Described:
    """The rows of all tables of items; columns: title, description, category, price, product, first_seen, ..."""

    def cells(section: Items, reader: Reader) -> list[Cell]:
        return [
            reader.id("external", section.id),
            reader.text("title", section.title),
            reader.text("description", section.description),
            reader.parts("category", section.category, section.category_separator, section.category_levels),
            reader.number("price", section.price),
            reader.id("product", section.product),
            reader.time("first_seen", section.first_seen, section.time_format),
            *(reader.text(ATTRIBUTE + column, column) for column in section.attributes),
            *_property(section, reader),
            *_updated(section, reader),
            *([reader.time(EXTRA + GONE, section.gone, section.time_format)] if section.gone else []),
        ]

    found = _described(root, sections, names, cells)
    return replace(found, rows=_of_their_product(found.rows)) if len(found.rows) else found


def described_users(root: Path, sections: Sequence[Users], names: Names) -> Described:
    """The rows of all tables of users; columns: age, segment, first_seen."""

    def cells(section: Users, reader: Reader) -> list[Cell]:
        return [
            reader.id("external", section.id),
            reader.number("age", section.age),
            reader.text("segment", section.segment),
            reader.time("first_seen", section.first_seen, section.time_format),
            *_updated(section, reader),
        ]

    return _described(root, sections, names, cells)


def _property(section: Items, reader: Reader) -> list[Cell]:
    """Name and value of a property, where the table has a row for each."""
    if section.property is None:
        return []
    return [reader.id(PROPERTY, section.property), reader.text(VALUE, section.value)]


def _updated(section: Items | Users, reader: Reader) -> list[Cell]:
    """When the row was written, where the table says so."""
    return [] if section.updated is None else [reader.time(UPDATED, section.updated, section.time_format)]


def _of_their_product(rows: pa.Table) -> pa.Table:
    """Fill texts that only one variant of a product has: exports write them in the product's first row alone.

    Title, description and category are a product's. An attribute is one if no product has it in two of its rows:
    what several variants say (their colours) another may leave out.
    """
    cursor = connection().cursor().register("rows", rows)
    product = "coalesce(product, CAST(key AS VARCHAR))"
    described = [quoted(name) for name in rows.column_names if name.startswith(ATTRIBUTE)]
    counts = "".join(f", count({name})" for name in described)
    most = cursor.execute(
        f"SELECT max(COLUMNS(*)) FROM (SELECT count(*){counts} FROM rows GROUP BY {product})"
    ).fetchall()[0]
    shared = [name for name, rows_of_one in zip(described, most[1:], strict=True) if rows_of_one == 1]
    texts = {name: name for name in ("title", "description", *shared)} | {"category": "nullif(category, [])"}
    made = [
        f"coalesce({text}, first_value({text} IGNORE NULLS) OVER product, {name}) AS {name}"
        for name, text in texts.items()
    ]
    window = (
        f"WINDOW product AS (PARTITION BY {product} ORDER BY key "
        "ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)"
    )
    return cursor.sql(
        f"SELECT * REPLACE ({', '.join(made)}) FROM rows {window} ORDER BY key"
    ).to_arrow_table()


def columns_of(section: Section) -> list[str]:
    """The columns of its files that a section names, in order, each once."""
    found: list[str] = []
    for name in COLUMN_KEYS:
        value = getattr(section, name, None)
        found += [value] if isinstance(value, str) else value or []
    return list(dict.fromkeys(found))


COLUMN_KEYS = (
    "id", "user", "visitor", "item", "time", "type_column", "value", "clicked", "skipped", "bought", "quantity",
    "request", "request_scope", "position", "query", "query_text", "text", "title", "description", "category",
    "price", "product", "attributes", "picture", "first_seen", "updated", "gone", "age", "segment", "relevance",
    "part", "features", "vectors", "context", "property",
)  # fmt: skip


def _described(
    root: Path,
    sections: Sequence[Items] | Sequence[Users],
    names: Names,
    cells: Callable[[Any, Reader], list[Cell]],
) -> Described:
    tables, changed, rare = [], 0, 0
    for section in sections:
        used = set(columns_of(section)) - {*section.features, getattr(section, "vectors", None)}

        def made(reader: Reader, section: Section = section, used: set[str] = used) -> list[Cell]:
            extra = [] if getattr(section, "property", None) else extra_cells(reader, used)
            return [*cells(section, reader), *extra]

        rows = _keyed(read(files_of(root, section), section, columns_of(section), made), names, section.id)
        if getattr(section, "property", None):
            table, left_out = pivoted(latest(rows, (KEY, PROPERTY)).table, ATTRIBUTE, MOST_PROPERTIES)
            tables.append(table)
            rare += left_out
        else:
            merged = latest(rows)
            tables.append(merged.table)
            changed += merged.changed
    if not tables:
        return Described(pa.table({KEY: pa.array([], pa.int64())}), {}, 0)
    rows = filled(
        [table.drop_columns([name for name in (UPDATED,) if name in table.column_names]) for table in tables]
    )
    return Described(rows, extras(rows), changed, rare)


def _keyed(batches: Iterator[Batch], names: Names, column: str) -> Iterator[tuple[Batch, pa.Array]]:
    for batch in batches:
        ids = names.ids(batch, "external", column)
        yield Batch(batch.file, batch.start, batch.table.drop_columns(["external"])), ids


def items_table(
    found: Described, names: Names, firsts: Firsts, pictured: pa.Table, keep_unknown: bool
) -> pa.Table:
    """ITEMS: the described ones in order of their id, then those of which only the id is known.

    Args:
        found: of the tables.
        names: of all items, those of the log included.
        firsts: of the log.
        pictured: columns ``id`` and ``image_id`` of all items that may have a picture.
        keep_unknown: whether items that no table has are made.
    """
    rows, named = found.rows, names.table()
    known = rows.column(KEY)
    product = rows.column("product") if "product" in rows.column_names else pa.nulls(len(rows), pa.string())
    parts = []
    if len(rows):
        described = [name for name in rows.column_names if name.startswith(ATTRIBUTE)]
        columns = {
            "item_id": known,
            **{name: rows.column(name) for name in ("title", "description", "category")},
            "price": pc.cast(rows.column("price"), pa.float32()),
            "spu": _products(product, known),
            "image_id": _pictures(known, pictured),
            "first_seen": _first(rows, firsts),
        }
        if described:
            columns["attributes"] = attributes(
                {name.removeprefix(ATTRIBUTE): rows.column(name) for name in described}
            )
        parts.append(under(ITEMS, {**columns, "external_id": _external(known, named)}))
    if keep_unknown:
        fresh = named.filter(pc.invert(pc.is_in(named.column("id"), known.combine_chunks())))
        ids = flat(fresh.column("id"))
        seen = pc.fill_null(firsts.of(ids), pa.scalar(firsts.start(), TIME))
        columns = {"item_id": ids, "external_id": fresh.column("external"), "spu": ids, "first_seen": seen}
        columns["image_id"] = _pictures(ids, pictured)
        parts.append(under(ITEMS, columns))
    return pa.concat_tables([ITEMS.empty_table(), *parts]).combine_chunks()


def users_table(found: Described, names: Names, firsts: Firsts, keep_unknown: bool) -> pa.Table:
    """USERS, as ``items_table`` makes ITEMS."""
    rows, named = found.rows, names.table()
    known = rows.column(KEY)
    parts = []
    if len(rows):
        columns = {
            "user_id": known,
            "external_id": _external(known, named),
            "age": pc.cast(rows.column("age"), pa.float32()),
            "segment": rows.column("segment"),
            "first_seen": _first(rows, firsts),
        }
        parts.append(under(USERS, columns))
    if keep_unknown:
        fresh = named.filter(pc.invert(pc.is_in(named.column("id"), known.combine_chunks())))
        seen = pc.fill_null(firsts.of(fresh.column("id")), pa.scalar(firsts.start(), TIME))
        columns = {"user_id": fresh.column("id"), "external_id": fresh.column("external"), "first_seen": seen}
        parts.append(under(USERS, columns))
    return pa.concat_tables([USERS.empty_table(), *parts]).combine_chunks()


def _external(ids: pa.ChunkedArray, named: pa.Table) -> pa.Array:
    return flat(named.column("external").take(pc.index_in(flat(ids), value_set=flat(named.column("id")))))


def _pictures(ids: pa.ChunkedArray | pa.Array, pictured: pa.Table) -> pa.Array:
    """The picture of each item, null where it has none."""
    return flat(
        pictured.column("image_id").take(pc.index_in(flat(ids), value_set=flat(pictured.column("id"))))
    )


def _products(product: pa.ChunkedArray | pa.Array, own: pa.ChunkedArray) -> pa.Array:
    """The product's id, of an item without one its own."""
    given = ids_of(product) if product.null_count < len(product) else pa.nulls(len(product), pa.int64())
    return pc.coalesce(given, flat(own))


def _first(rows: pa.Table, firsts: Firsts) -> pa.Array:
    """When each row's entity was first there: as its table says, or its first event if that is earlier.

    A time outside the bounds of dates (a film of 1937, an announcement) says nothing about this shop.
    """
    seen, said = firsts.of(rows.column(KEY)), flat(rows.column("first_seen")).cast(TIME)
    is_sane = pc.fill_null(sane(said, datetime.now(UTC) + CLOCK_SKEW), False)
    kept = pc.if_else(is_sane, said, pa.scalar(None, TIME))
    is_earlier = pc.fill_null(pc.less(seen, kept), False)
    return pc.coalesce(pc.if_else(is_earlier, seen, kept), seen, pa.scalar(firsts.start(), TIME))
