"""Tables that say more of each other: a log and its catalogue, lines and orders, items and what they refer to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from dataset.adapters.described.files import Files
from dataset.adapters.described.joined import Joined
from dataset.adapters.guessing.opening import item_fields
from dataset.adapters.guessing.profile import pairs, profiles, values_of
from dataset.adapters.guessing.tables import LINKED, Seen, percent
from dataset.adapters.guessing.words import IDS, is_bare_id, names_id_of, tokens

SAME = 0.95  # share of ids that are in the other table, above which no better pair of columns is looked for
COUNTED = 0.9  # share of the users whose rows are counted 1, 2, 3, ...


def is_dense(values: set[str]) -> bool:
    """Whether the ids are 1, 2, 3, ...: any column of small numbers is among those."""
    if not all(one.isascii() and one.isdigit() and len(one) < 10 for one in values):
        return False
    return max(map(int, values)) <= 2 * len(values)


def is_log(table: Seen) -> bool:
    """Whether a row says an item and whose it is."""
    return "item" in table.refs and bool({"user", "session"} & set(table.refs))


def _is_catalogue(table: Seen) -> bool:
    item = table.refs.get("item")
    return item is not None and not is_log(table) and table.is_key(item)


def match(tables: list[Seen]) -> None:
    """Take, of several columns that may hold the items of a log and of a catalogue, the two that share most ids."""
    for log in (one for one in tables if is_log(one)):
        best: tuple[str, str, Seen | None, float] = ("", "", None, 0.0)
        now = 0.0
        for home in (one for one in tables if _is_catalogue(one)):
            for key in _keys(home):
                values = values_of(home.found, key) or set()
                for name in _item_columns(log):
                    ids = log.columns[name].values.keys()
                    share = len(ids & values) / max(len(ids), 1)
                    if (name, key) == (log.refs["item"], home.refs["item"]):
                        now = max(now, share)
                    if share > best[3]:
                        best = name, key, home, share
        name, key, found, share = best
        if found is not None and share >= LINKED and now < min(share, SAME):
            log.refs["item"], found.refs["item"] = name, key
            log.why["item"] = f"{percent(share)} are in {found.name} ({key})"
            found.why["item"] = f"a row each; has {percent(share)} of those in {log.name}"


def _keys(home: Seen) -> Iterator[str]:
    for name, one in home.columns.items():
        if one.is_id and home.is_key(name) and (is_bare_id(name) or names_id_of(name, "item")):
            yield name


def _item_columns(log: Seen) -> Iterator[str]:
    taken = {name for entity, name in log.refs.items() if entity != "item"}
    for name in item_fields(log):
        if log.columns[name].is_id and name not in taken and names_id_of(name, "item"):
            yield name


def with_user(table: Seen, tables: list[Seen]) -> Seen:
    """The table, joined to one that says whose its rows are, where it does not: lines of orders, and the orders."""
    item, files = table.refs.get("item"), table.found.files
    if item is None or "user" in table.refs or table.is_key(item) or not isinstance(files, Files):
        return table
    for other in tables:
        theirs = other.found.files
        if (
            other is table
            or "user" not in other.refs
            or "item" in other.refs
            or not isinstance(theirs, Files)
            or files.each is not None
        ):
            continue
        for on, key in _both(table, other):
            held = values_of(other.found, key) if other.is_key(key) else None
            ids = set(table.columns[on].values)
            if held and ids and len(ids & held) / len(ids) >= LINKED and key != other.refs["user"]:
                joined = Joined(files, theirs, on, None if key == on else key)
                found = replace(table.found, files=joined, columns=joined.columns(files.paths()[0]))
                whole = Seen(found, profiles(found), dict(table.refs), dict(table.why))
                whole.refs["user"] = other.refs["user"]
                whole.why["user"] = f"by {on}, in {other.name}"
                if whole.time() is None:
                    whole.counter = _counter(other)
                other.aside = f"joined to {table.name}, which it says more of"
                return whole
    return table


def _both(table: Seen, other: Seen) -> Iterator[tuple[str, str]]:
    """Columns of two tables that may hold the same ids: of one name, or an id of the other's rows by its name."""
    for name in (name for name, one in table.columns.items() if one.is_id):
        if name in other.columns:
            yield name, name
    session = table.refs.get("session")
    own = [name for name in other.columns if is_bare_id(name) or tokens(name) == ("entity", "id")]
    if session is not None and session not in other.columns:
        yield from ((session, name) for name in own)


def _counter(orders: Seen) -> str | None:
    """The column that counts the orders of each user from 1 on."""
    user = orders.columns[orders.refs["user"]]
    for name, one in orders.columns.items():
        if not one.is_number or not set(tokens(name)) & IDS or orders.is_key(name):
            continue
        counts: dict[str, set[int]] = defaultdict(set)
        for owner, number in pairs(user, one):
            counts[owner].add(int(float(number)))
        whole = list(counts.values())[:-1]  # the last user's may be cut off by the end of the sample
        several = [numbers for numbers in whole if len(numbers) > 1]
        counted = [numbers == set(range(1, len(numbers) + 1)) for numbers in several]
        if several and sum(counted) >= COUNTED * len(several):
            return name
    return None


def with_lookups(tables: list[Seen]) -> list[Seen]:
    """The tables; a row per author or aisle is none of items, but may say what an id of the items stands for."""
    logs, homes = [one for one in tables if is_log(one)], [one for one in tables if _is_catalogue(one)]
    if not logs or not homes:
        return tables
    log = max(logs, key=lambda one: one.found.bytes)
    asked = set(log.columns[log.refs["item"]].values)
    ids = {home.name: values_of(home.found, home.refs["item"]) or set() for home in homes}
    main = max(homes, key=lambda one: (len(asked & ids[one.name]), _is_named_as(one, log)))
    if not asked & ids[main.name]:
        return tables
    for home in (one for one in tables if "item" in one.refs and not is_log(one)):
        own = values_of(home.found, home.refs["item"]) or set()
        shared = len(own & (asked | ids[main.name])) / max(len(own), 1)
        if home is main or _is_named_as(home, log) or _is_named_as(home, main):
            continue
        if shared < LINKED or is_dense(own) or is_referred_to(home.refs["item"], tables):
            home.aside = f"a row per {home.refs.pop('item')}, of which the log says nothing"
    for table in tables:
        if not table.refs:
            tables = [_looked_up(one, table) if one.name == main.name else one for one in tables]
    return tables


def _is_named_as(one: Seen, other: Seen) -> bool:
    return tokens(one.refs["item"]) == tokens(other.refs["item"])


def is_referred_to(key: str, tables: list[Seen]) -> bool:
    """Whether one of the tables has a column of this name that is not its item."""
    return any(key in other.columns and other.refs.get("item") != key for other in tables)


def _looked_up(items: Seen, home: Seen) -> Seen:
    """The items with what ``home`` says of a column of theirs; as they are if it says nothing of any."""
    files, theirs = items.found.files, home.found.files
    texts = [one for one in home.columns.values() if one.is_text]
    if not isinstance(theirs, Files) or len(theirs.patterns) > 1 or not texts:
        return items
    for key in (name for name, one in home.columns.items() if one.is_id and home.is_key(name)):
        values = values_of(home.found, key) or set()
        for name in (name for name, one in items.columns.items() if one.is_id and one.cells):
            own = set(items.columns[name].values)
            is_named = (
                name == key or is_bare_id(key) and tokens(name)[:-1] == tokens(home.name.partition(".")[0])
            )
            is_other_id = items.is_key(name) and bool(set(tokens(name)) & IDS) and not is_dense(values)
            if (
                (is_named or is_other_id)
                and name != items.refs["item"]
                and len(own & values) / len(own) >= SAME
            ):
                joined = Joined(files, theirs, name, key, f"{name}.")
                found = replace(items.found, files=joined, columns=joined.columns(files.paths()[0]))
                home.aside = f"says what {name} of {items.name} stands for"
                return replace(items, found=found, columns=profiles(found))
    return items
