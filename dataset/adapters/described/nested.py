"""Cells that hold more than one value: an object becomes columns, and each part of a list a row of its own.

A field of an object is called by its path, ``customer.id``. Of one list at a time the parts can be rows:
``line_items[].sku`` is a field of each object of the list ``line_items``, ``items[]`` each value of a list of values.
A text that lists values between separators is such a list, too: of ``N1-1 N2-0``, cut by a space and a hyphen,
``shown[].1`` are N1 and N2, and ``shown[].2`` are 1 and 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from duckdb import DuckDBPyConnection
from duckdb.sqltypes import DuckDBPyType

from dataset.adapters.described.sql import literal, quoted
from dataset.adapters.source import NEXT
from dataset.contracts import DataError

PART = "[]"  # behind the name of a list: each of its parts
MOST_FIELDS = 100  # of an object that becomes columns: one with more is a dictionary, kept as it is
DEPTH = 5  # of objects in objects that are looked at
LISTED = "the part"  # the name of a part of a list in SQL


def opened_list(columns: Iterable[str], file: str) -> str | None:
    """The list whose parts are the rows, by the columns that are asked for; None: the rows are those of the file.

    Raises:
        DataError: they are fields of two lists.
    """
    lists = sorted({name.partition(PART)[0] for name in columns if PART in name})
    if len(lists) > 1:
        raise DataError(
            f"{file}: expected columns of one list, found some of {lists}: a row would be any pair of their parts. "
            f"Write two tables in moon.toml, one for each list. {NEXT}"
        )
    return lists[0] if lists else None


@dataclass(frozen=True)
class Kind:
    """What a column holds.

    Attributes:
        fields: of an object, by name; empty: it is none.
        part: what each part of a list is; None: it is none.
    """

    fields: Mapping[str, Kind] = field(default_factory=dict)
    part: Kind | None = None

    @property
    def holds_objects(self) -> bool:
        """Whether the values are objects, or lists of objects."""
        return bool(self.fields) or self.part is not None and self.part.holds_objects


def kinds_of(connection: DuckDBPyConnection, scan: str) -> dict[str, Kind]:
    """Names and kinds of the columns of a table function."""
    found = connection.sql(f"SELECT * FROM {scan}")
    return {name: _kind(one) for name, one in zip(found.columns, found.types, strict=True)}


def _kind(found: DuckDBPyType) -> Kind:
    if found.id not in ("struct", "list"):
        return Kind()
    inner = {str(name): _kind(one) for name, one in found.children if isinstance(one, DuckDBPyType)}
    return Kind(inner) if found.id == "struct" else Kind(part=next(iter(inner.values())))


def lists_of(kinds: Mapping[str, Kind]) -> dict[str, list[str]]:
    """The lists in a row, by their path: the names of the fields of their objects; none: a list of values."""
    return {
        name: list(kind.part.fields) for name, (kind, _) in _spread(kinds).items() if kind.part is not None
    }


def rows(
    scan: str,
    kinds: Mapping[str, Kind],
    is_json: bool,
    each: str | None = None,
    separators: Sequence[str] = (),
) -> str:
    """SQL of the rows of a table, objects as columns; with ``each`` a row per part of that list.

    Args:
        scan: a table function.
        kinds: of its columns; of JSON as it is understood, although objects are read as JSON and all else as text.
        is_json: whether it is JSON.
        each: path of the list.
        separators: of a list that is a text: between its parts, and, if there are two, between the values of a part.

    Raises:
        DataError: ``each`` is no list.
    """
    columns = _spread(kinds)
    if each is None and not any(kind.holds_objects for kind in kinds.values()):
        return scan
    cells = {name: _cell(path, is_json) for name, (_, path) in columns.items() if name != each}
    if each is None:
        return f"(SELECT {_select(cells)} FROM {scan})"
    if each not in columns:
        raise DataError(
            f"expected a list {each!r}, found the lists {list(lists_of(kinds))}, the columns {list(columns)[:20]}. "
            f"Correct moon.toml. {NEXT}"
        )
    kind, path = columns[each]
    if kind.part is not None:
        made, parts = _parts(kind.part, path, each, is_json)
    else:
        made, parts = _cut(f"CAST({_cell(path, is_json)} AS VARCHAR)", each, separators)
    opened = f"SELECT *, unnest({made}) AS {quoted(LISTED)} FROM {scan}"
    return f"(SELECT {_select({**cells, **parts})} FROM ({opened}))"


def _parts(part: Kind, path: list[str], each: str, is_json: bool) -> tuple[str, dict[str, str]]:
    """A list, and the values of each of its parts."""
    fields = {
        each + PART + name.removeprefix(LISTED): _cell(inner, is_json)
        for name, (_, inner) in _spread({LISTED: part}).items()
    }
    if not is_json:
        return _typed(path), fields
    column, inner = _json(path)
    if not part.fields:
        fields = {each + PART: f"json_extract_string({quoted(LISTED)}, '$')"}  # without the quotes of JSON
    return f"json_extract({column}, {literal(inner + '[*]')})", fields


def _cut(text: str, each: str, separators: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The list that a text is, and the values of each of its parts."""
    if not separators:
        raise DataError(
            f'expected separators for the parts of {each!r}, which is a text: separators = [" "] in moon.toml. {NEXT}'
        )
    between = literal(separators[0])
    made = f"list_filter(list_transform(str_split({text}, {between}), lambda x: trim(x)), lambda x: x <> '')"
    if len(separators) == 1:
        return made, {each + PART: quoted(LISTED)}
    values = f"str_split({quoted(LISTED)}, {literal(separators[1])})"
    first = f"array_to_string({values}[1:greatest(len({values}) - 1, 1)], {literal(separators[1])})"
    last = f"CASE WHEN len({values}) > 1 THEN {values}[-1] END"
    return made, {f"{each}{PART}.1": first, f"{each}{PART}.2": last}


def _spread(kinds: Mapping[str, Kind]) -> dict[str, tuple[Kind, list[str]]]:
    """Every column, and every field of objects, by its path: its kind, and the path in parts."""
    found: dict[str, tuple[Kind, list[str]]] = {}

    def add(name: str, kind: Kind, path: list[str]) -> None:
        if not 0 < len(kind.fields) <= MOST_FIELDS or any('"' in one for one in kind.fields):
            found.setdefault(name, (kind, path))
            return
        for one, inner in kind.fields.items():
            add(f"{name}.{one}", inner, [*path, one])

    for name, kind in kinds.items():
        add(name, kind, [name])
    return found


def _cell(path: list[str], is_json: bool) -> str:
    """SQL of a value: of JSON its text."""
    if not is_json:
        return _typed(path)
    if len(path) == 1:
        return f"CAST({quoted(path[0])} AS VARCHAR)"
    column, inner = _json(path)
    return f"json_extract_string({column}, {literal(inner)})"


def _json(path: list[str]) -> tuple[str, str]:
    """The column, as JSON, and the path in it."""
    return f"CAST({quoted(path[0])} AS JSON)", "$" + "".join(f'."{field}"' for field in path[1:])


def _typed(path: list[str]) -> str:
    return ".".join(map(quoted, path))


def _select(cells: Mapping[str, str]) -> str:
    return ", ".join(f"{sql} AS {quoted(name)}" for name, sql in cells.items())
