"""Lists inside the rows of a table whose parts are the rows that matter: events of a session, lines of an order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dataset.adapters.described.files import Files
from dataset.adapters.described.nested import PART
from dataset.adapters.guessing.folder import Found
from dataset.adapters.guessing.profile import Profile, profiles
from dataset.adapters.guessing.tables import SURE, Seen
from dataset.adapters.guessing.words import (
    IDS,
    NOUNS,
    OTHERS,
    OWN_IDS,
    is_bare_id,
    is_unnamed,
    names_id_of,
    tokens,
)

BETWEEN = (" ", ",", "|", ";")  # the parts of a list that is written in a cell
WITHIN = ("", "-", ":")  # a part and what is said of it
CERTAIN = 0.9  # score of a name that says an id, and of what
LISTED = 0.5  # share of the parts that are ids of items
REPEATED = 0.8  # distinct values per value, below which a column repeats
SEVERAL = 1.5  # parts of a cell, on average


def opened(base: Seen) -> Iterator[Seen]:
    """The table with a row for each part of a list of a row, for each of its lists that seems to hold items."""
    files = base.found.files
    if not isinstance(files, Files) or files.each is not None:
        return
    for each, fields in files.lists(files.paths()[0]).items():
        named = any(_names_item(each, field) for field in fields)
        if named or not fields and set(tokens(each)) & NOUNS["item"]:
            yield _open(base, each)


def _names_item(each: str, field: str) -> bool:
    if is_bare_id(field):
        return not numbers_parts(field) and names_id_of(f"{each.rpartition('.')[2]}_{field}", "item") >= SURE
    return names_id_of(field, "item") >= CERTAIN or tokens(field) in (("item",), ("product",))


def numbers_parts(field: str) -> bool:
    """Whether a field of the objects in a list is named like their number in it."""
    return set(tokens(field)) <= {"index", "idx", "no", "nr", "num", "number"}


def _open(base: Seen, each: str, separators: tuple[str, ...] = ()) -> Seen:
    assert isinstance(base.found.files, Files)
    files = replace(base.found.files, each=each, separators=separators)
    found: Found = replace(base.found, files=files, columns=files.columns(files.paths()[0]), rows=None)
    return Seen(found, profiles(found), base=base)


def item_fields(table: Seen) -> list[str]:
    """The columns that may hold the items of a table: of an opened one the fields of its list, else all."""
    if table.base is None:
        return list(table.columns)
    return [name for name in table.columns if PART in name]


def of_their_row(tables: list[Seen]) -> list[Seen]:
    """The tables without those opened ones that are no logs; the row of a log's list is what its parts belong to."""
    kept, logs = [], [one for one in tables if one.base is not None and _is_log(one)]
    for table in tables:
        if table.base is not None and table not in logs:
            continue
        log = next((one for one in logs if one.base is table), None)
        if log is not None and "item" in table.refs and table.is_key(table.refs["item"]):
            del table.refs["item"]
        if log is not None and "item" not in table.refs:
            table.aside = f"its lists hold the rows: {log.name}"
        if table.base is not None and "session" not in table.refs:
            _request(table, table.base)
        kept.append(table)
    return kept


def _is_log(table: Seen) -> bool:
    item = table.refs.get("item")
    if item is None or PART not in item or table.base is None:
        return False
    if {"user", "session"} & set(table.refs):
        return True
    return table.columns[item].unique < REPEATED and bool(_numbers(table, table.base))


def _request(table: Seen, base: Seen) -> None:
    """The column that numbers the rows whose parts these are: an order, a slate, a playlist."""
    if numbers := _numbers(table, base):
        table.refs["session"] = numbers[0]
        table.why["session"] = "a value of its own in every row whose parts these are"


def _numbers(table: Seen, base: Seen) -> list[str]:
    """The columns that number the rows of ``base``, whose parts those of ``table`` are; the surest first."""
    keys = [
        name
        for name, one in base.columns.items()
        if one.is_id and one.clock is None and base.is_key(name) and name not in table.refs.values()
    ]
    return sorted(
        [
            name
            for name in keys
            if is_unnamed(name) or set(tokens(name)) & (IDS | OWN_IDS) and not set(tokens(name)) & OTHERS
        ],
        key=lambda name: not is_bare_id(name),
    )


def opened_texts(table: Seen, items: set[str]) -> Seen | None:
    """The table with a row for each id of a cell that lists ids of items; None: no cell does.

    Args:
        table: without a column of items.
        items: all their ids.
    """
    if not items or not isinstance(table.found.files, Files):
        return None
    best: tuple[float, float, str, tuple[str, ...]] | None = None
    for name, one in table.columns.items():
        if not one.is_text or one.clock is not None:
            continue
        for separators in ((one_of, *([inner] if inner else [])) for one_of in BETWEEN for inner in WITHIN):
            share, several, labelled = _shares(one, separators, items)
            if share >= LISTED and several >= SEVERAL and (best is None or (labelled, share) > best[:2]):
                best = labelled, share, name, separators
    if best is None:
        return None
    _, share, name, separators = best
    found = _open(table, name, separators)
    for column in list(found.columns):  # what was shown or taken before, again in every row
        if column in table.columns and table.columns[column].is_text and _lists(table.columns[column], items):
            del found.columns[column]
    column = f"{name}{PART}" + (".1" if len(separators) > 1 else "")
    found.refs = {entity: one for entity, one in table.refs.items() if entity != "item"}
    found.why = dict(table.why)
    found.refs["item"], found.why["item"] = column, f"each cell of {name!r} lists ids of items"
    repeated = [one for one, each in table.columns.items() if _repeats(each) and one != name]
    if not {"user", "session"} & set(found.refs) and repeated:
        found.refs["user"] = max(repeated, key=lambda one: table.columns[one].distinct)
        found.why["user"] = "nothing names it; its values repeat"
    _request(found, table)
    table.aside = f"its lists hold the rows: {found.name}"
    return found


def _lists(one: Profile, items: set[str]) -> bool:
    """Whether the cells list ids of items."""
    found = (_shares(one, (separator,), items) for separator in BETWEEN)
    return any(share >= LISTED and several >= SEVERAL for share, several, _ in found)


def _repeats(one: Profile) -> bool:
    return one.is_id and one.distinct > 10 and 0 < one.unique < REPEATED and one.full > 0.5


def _shares(one: Profile, separators: tuple[str, ...], items: set[str]) -> tuple[float, float, bool]:
    """Share of the parts that are items, parts of a cell on average, and whether each says 0 or 1 beside its item."""
    cells = [str(cell) for cell in one.cells[:500]]
    parts = [part for cell in cells for part in cell.split(separators[0]) if part]
    labelled = False
    ids = parts
    if len(separators) > 1:
        both = [part.rpartition(separators[1]) for part in parts]
        ids, labelled = [first for first, _, _ in both], {last for _, _, last in both} == {"0", "1"}
    return sum(id in items for id in ids) / max(len(ids), 1), len(parts) / max(len(cells), 1), labelled
