"""Cells that hold more than one value: an object becomes columns, and each part of a list a row of its own.

A field of an object is called by its path, ``customer.id``. Of one list at a time the parts can be rows:
``line_items[].sku`` is a field of each object of the list ``line_items``, ``items[]`` each value of a list of values.
A text that lists values between separators is such a list, too: of ``N1-1 N2-0``, cut by a space and a hyphen,
``shown[].1`` are N1 and N2, and ``shown[].2`` are 1 and 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from duckdb import DuckDBPyConnection
from duckdb.sqltypes import DuckDBPyType

from dataset.adapters.source import NEXT
from dataset.contracts import DataError

PART = "[]"  # behind the name of a list: each of its parts
MOST_FIELDS = 100  # of an object that becomes columns: one with more is a dictionary, kept as it is
DEPTH = 5  # of objects in objects that are looked at
ROW, LISTED = "the row", "the part"  # names of a row and of a part of its list in SQL


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


def types_of(connection: DuckDBPyConnection, scan: str) -> dict[str, DuckDBPyType]:
    """Names and types of the columns of a table function."""
    found = connection.sql(f"SELECT * FROM {scan}")
    return dict(zip(found.columns, found.types, strict=True))


def holds_objects(kind: DuckDBPyType) -> bool:
    """Whether the values are objects, or lists of objects."""
    return kind.id == "struct" or kind.id == "list" and holds_objects(_part(kind))


def lists_of(types: Mapping[str, DuckDBPyType]) -> dict[str, list[str]]:
    """The lists in a row, by their path: the names of the fields of their objects; none: a list of values."""
    found = {}
    for name, (kind, _) in _spread(types).items():
        if kind.id == "list":
            part = _part(kind)
            found[name] = [field for field, _ in part.children] if part.id == "struct" else []
    return found


def rows(
    scan: str,
    types: Mapping[str, DuckDBPyType],
    is_json: bool,
    each: str | None = None,
    separators: Sequence[str] = (),
) -> str:
    """SQL of the rows of a table, objects as columns; with ``each`` a row per part of that list.

    Args:
        scan: a table function.
        types: of its columns; of JSON as it is understood, although objects are read as JSON and all else as text.
        is_json: whether it is JSON.
        each: path of the list.
        separators: of a list that is a text: between its parts, and, if there are two, between the values of a part.

    Raises:
        DataError: ``each`` is no list.
    """
    columns = _spread(types)
    if each is None and len(columns) == len(types) and not any(map(holds_objects, types.values())):
        return scan
    cells = {name: _cell(path, kind, is_json) for name, (kind, path) in columns.items() if name != each}
    if each is None:
        return f"(SELECT {_select(cells)} FROM {scan})"
    if each not in columns:
        lists = [name for name, (kind, _) in columns.items() if kind.id == "list"]
        raise DataError(
            f"expected a list {each!r}, found the lists {lists} and the columns {list(columns)[:20]}"
        )
    kind, path = columns[each]
    if kind.id == "list":
        part = _part(kind)
        made = (
            f"json_extract({_json(path)[0]}, {_quote(_json(path)[1] + '[*]')})" if is_json else _typed(path)
        )
        fields = _spread({LISTED: part})
        parts = {
            each + PART + name.removeprefix(LISTED): _cell(inner, one, is_json)
            for name, (one, inner) in fields.items()
        }
        if is_json and part.id != "struct":
            parts = {each + PART: f"json_extract_string({_name(LISTED)}, '$')"}
    else:
        made, parts = _cut(f"CAST({_cell(path, kind, is_json)} AS VARCHAR)", each, separators)
    opened = f"SELECT *, unnest({made}) AS {_name(LISTED)} FROM {scan}"
    return f"(SELECT {_select({**cells, **parts})} FROM ({opened}))"


def _cut(text: str, each: str, separators: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The list that a text is, and the values of each of its parts."""
    if not separators:
        raise DataError(
            f'expected separators for the parts of {each!r}, which is a text: separators = [" "] in moon.toml. {NEXT}'
        )
    between = _quote(separators[0])
    made = f"list_filter(list_transform(str_split({text}, {between}), lambda x: trim(x)), lambda x: x <> '')"
    if len(separators) == 1:
        return made, {each + PART: _name(LISTED)}
    values = f"str_split({_name(LISTED)}, {_quote(separators[1])})"
    first = f"array_to_string({values}[1:greatest(len({values}) - 1, 1)], {_quote(separators[1])})"
    last = f"CASE WHEN len({values}) > 1 THEN {values}[-1] END"
    return made, {f"{each}{PART}.1": first, f"{each}{PART}.2": last}


def _spread(types: Mapping[str, DuckDBPyType]) -> dict[str, tuple[DuckDBPyType, list[str]]]:
    """Every column, and every field of objects, by its path: its type, and the path in parts."""
    found: dict[str, tuple[DuckDBPyType, list[str]]] = {}

    def add(name: str, kind: DuckDBPyType, path: list[str]) -> None:
        fields = kind.children if kind.id == "struct" else []
        if not 0 < len(fields) <= MOST_FIELDS or any('"' in field for field, _ in fields):
            found.setdefault(name, (kind, path))
            return
        for field, inner in fields:
            add(f"{name}.{field}", _kind(inner), [*path, field])

    for name, kind in types.items():
        add(name, kind, [name])
    return found


def _part(kind: DuckDBPyType) -> DuckDBPyType:
    return _kind(kind.children[0][1])


def _kind(child: object) -> DuckDBPyType:
    assert isinstance(child, DuckDBPyType)  # of lists and objects; of arrays there is a length as well
    return child


def _cell(path: list[str], kind: DuckDBPyType, is_json: bool) -> str:
    """SQL of a value: of JSON its text."""
    if not is_json:
        return _typed(path)
    if len(path) == 1:
        return f"CAST({_name(path[0])} AS VARCHAR)"
    column, inner = _json(path)
    return f"json_extract_string({column}, {_quote(inner)})"


def _json(path: list[str]) -> tuple[str, str]:
    """The column, as JSON, and the path in it."""
    return f"CAST({_name(path[0])} AS JSON)", "$" + "".join(f'."{field}"' for field in path[1:])


def _typed(path: list[str]) -> str:
    return ".".join(map(_name, path)) if len(path) > 1 else _name(path[0])


def _select(cells: Mapping[str, str]) -> str:
    return ", ".join(f"{sql} AS {_name(name)}" for name, sql in cells.items())


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
