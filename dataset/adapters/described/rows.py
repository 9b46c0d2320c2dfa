"""Rows of items, users and queries: one per id, from any number of tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dataset.adapters.described.cells import Cell, Reader
from dataset.adapters.described.files import Batch, connection
from dataset.adapters.described.sql import literal, quoted

KEY, UPDATED, ROW = "key", "updated", "row"
PROPERTY, VALUE = "property", "value"  # of a table with a row per item and property
EXTRA = "extra "  # prefix of columns that are nobody's
COMPACT = 500_000  # rows that are collected before those of one id are merged


@dataclass(frozen=True)
class Merged:
    """One row per id.

    Attributes:
        table: KEY int64, and the columns that were read.
        changed: rows that a later row of their id with another content replaced.
    """

    table: pa.Table
    changed: int


def extra_cells(reader: Reader, used: set[str]) -> list[Cell]:
    """The columns of a file that nothing uses, in their own type; structs as text, bytes not at all."""
    cells = []
    for column, kind in reader.types.items():
        if column in used or column in reader.section.ignore or kind == "BLOB":
            continue
        is_plain = "(" not in kind or kind.startswith("DECIMAL")
        raw = reader.raw(column)
        sql = (
            f"CAST({raw} AS DOUBLE)"
            if kind.startswith("DECIMAL")
            else raw
            if is_plain
            else f"CAST({raw} AS VARCHAR)"
        )
        cells.append(Cell(EXTRA + column, sql))
    return cells


def latest(batches: Iterator[tuple[Batch, pa.Array]], by: Sequence[str] = (KEY,)) -> Merged:
    """The last row of each id: by its time ``updated``, then by its place.

    Args:
        batches: of rows, with the int64 id of each.
        by: columns whose values together name what a row says something of; the id alone by default.
    """
    collected: list[pa.Table] = []
    waiting, row, changed = 0, 0, 0
    for batch, ids in batches:
        places = pa.array(range(row, row + len(ids)), pa.int64())
        table = batch.table.append_column(KEY, ids).append_column(ROW, places)
        collected.append(table.filter(ids.is_valid()))
        waiting, row = waiting + len(ids), row + len(ids)
        if waiting > COMPACT:
            one, more = _last(_together(collected), by)
            collected, waiting, changed = [one], 0, changed + more
    if not collected:
        return Merged(pa.table({KEY: pa.array([], pa.int64())}), 0)
    one, more = _last(_together(collected), by)
    return Merged(one.drop_columns([ROW]), changed + more)


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive")


def _last(rows: pa.Table, by: Sequence[str]) -> tuple[pa.Table, int]:
    """The last row of each key, and how many others say something else."""
    said = [quoted(name) for name in rows.column_names if name not in (*by, UPDATED, ROW)]
    key = ", ".join(map(quoted, by))
    updated = f"{UPDATED} DESC NULLS LAST, " if UPDATED in rows.column_names else ""
    cursor = connection().cursor().register("rows", rows)
    if cursor.execute(f"SELECT count(*) = count(DISTINCT ({key})) FROM rows").fetchall()[0][0]:
        return rows, 0
    ranked = (
        f"WITH ranked AS (SELECT *, row_number() OVER latest AS place, first_value(content) OVER latest AS kept "
        f"FROM (SELECT *, hash({', '.join(said) or '1'}) AS content FROM rows) "
        f"WINDOW latest AS (PARTITION BY {key} ORDER BY {updated}{ROW} DESC))"
    )
    changed = cursor.execute(
        f"{ranked} SELECT count(*) FROM ranked WHERE place > 1 AND content <> kept"
    ).fetchall()[0][0]
    names = ", ".join(quoted(name) for name in rows.column_names)
    last = cursor.sql(f"{ranked} SELECT {names} FROM ranked WHERE place = 1 ORDER BY {ROW}").to_arrow_table()
    return last.cast(rows.schema), int(changed)


def pivoted(rows: pa.Table, prefix: str, most: int) -> tuple[pa.Table, int]:
    """One row per KEY of rows that each say one property of it.

    Args:
        rows: KEY, PROPERTY and VALUE, one row of each KEY and PROPERTY, and columns that are null.
        prefix: of the columns that properties become.
        most: how many properties are kept, those that most keys have.

    Returns:
        KEY, the columns that are null, and a column per property; and how many properties are left out.
    """
    cursor = connection().cursor().register("rows", rows)
    counted = cursor.execute(
        f"SELECT {PROPERTY} FROM rows WHERE {VALUE} IS NOT NULL AND {PROPERTY} IS NOT NULL "
        f"GROUP BY {PROPERTY} ORDER BY count(*) DESC, {PROPERTY}"
    ).fetchall()
    names = [name for (name,) in counted[:most]]
    others = [name for name in rows.column_names if name not in (KEY, PROPERTY, VALUE)]
    cells = [f"any_value({quoted(name)}) AS {quoted(name)}" for name in others]
    cells += [
        f"max({VALUE}) FILTER ({PROPERTY} = {literal(name)}) AS {quoted(prefix + name)}" for name in names
    ]
    table = cursor.sql(f"SELECT {', '.join([KEY, *cells])} FROM rows GROUP BY {KEY}").to_arrow_table()
    nulls = {name: rows.schema.field(name).type for name in others}
    for name, kind in nulls.items():
        table = table.set_column(table.column_names.index(name), name, table.column(name).cast(kind))
    return table, len(counted) - len(names)


def filled(tables: Sequence[pa.Table]) -> pa.Table:
    """One row per KEY of any of the tables, in order of KEY; a cell is that of the first table that has one."""
    whole = tables[0]
    for other in tables[1:]:
        cursor = connection().cursor().register("a", whole).register("b", other)
        names = dict.fromkeys([*whole.column_names, *other.column_names])
        cells = [
            _first(name, name in whole.column_names, name in other.column_names, other) for name in names
        ]
        whole = cursor.sql(
            f"SELECT {', '.join(cells)} FROM a FULL JOIN b ON a.{KEY} = b.{KEY}"
        ).to_arrow_table()
    return whole.sort_by(KEY).combine_chunks()


def _first(name: str, in_a: bool, in_b: bool, other: pa.Table) -> str:
    cell = quoted(name)
    if not (in_a and in_b):
        return f"{'a' if in_a else 'b'}.{cell} AS {cell}"
    if pa.types.is_list(other.schema.field(name).type):
        return f"CASE WHEN len(a.{cell}) > 0 THEN a.{cell} ELSE coalesce(b.{cell}, a.{cell}) END AS {cell}"
    return f"coalesce(a.{cell}, b.{cell}) AS {cell}"


def beside(key: str, ids: pa.Array | pa.ChunkedArray, columns: Mapping[str, Any]) -> pa.Table:
    """Columns that are nobody's, beside our own id under ``key``; one of that name is called ``source_...``."""
    return pa.table(
        {key: ids, **{f"source_{name}" if name == key else name: one for name, one in columns.items()}}
    )


def extras(table: pa.Table) -> dict[str, pa.Array]:
    """The columns that are nobody's, under their own names; texts that are all numbers as numbers."""
    cursor = connection().cursor().register("rows", table)
    found = {}
    for name in table.column_names:
        if not name.startswith(EXTRA):
            continue
        column, cell = table.column(name), quoted(name)
        if pa.types.is_string(column.type):
            is_number = f"NOT regexp_matches({cell}, '^0[0-9]') AND try_cast({cell} AS DOUBLE) IS NOT NULL"
            there, whole, number = cursor.execute(
                f"SELECT count({cell}), count(CASE WHEN CAST(try_cast({cell} AS BIGINT) AS VARCHAR) = {cell} "
                f"THEN 1 END), count(CASE WHEN {is_number} THEN 1 END) FROM rows"
            ).fetchall()[0]
            kind = "BIGINT" if whole == there else "DOUBLE" if number == there else "VARCHAR"
            if there and kind != "VARCHAR":
                column = (
                    cursor.sql(f"SELECT CAST({cell} AS {kind}) AS cell FROM rows").to_arrow_table().column(0)
                )
        found[name.removeprefix(EXTRA)] = column.combine_chunks()
    return found
