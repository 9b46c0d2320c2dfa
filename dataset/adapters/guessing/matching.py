"""Tables that say more of each other: a log and its catalogue, lines and orders, items and what they refer to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from dataset.adapters.described.files import Files
from dataset.adapters.described.joined import Joined
from dataset.adapters.guessing.opening import item_fields
from dataset.adapters.guessing.profile import Profile, pairs, profiles, values_of
from dataset.adapters.guessing.tables import LINKED, Seen, percent
from dataset.adapters.guessing.words import IDS, is_bare_id, names_id_of, tokens

SAME = 0.95  # share of ids that are in the other table, above which no better pair of columns is looked for
SEVERAL = 0.5  # ids per row of a catalogue that has rows which were written again
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
    return _tells_of_items(table) and table.is_key(table.refs["item"])


def _tells_of_items(table: Seen) -> bool:
    return "item" in table.refs and not is_log(table)


def match(tables: list[Seen]) -> None:
    """Take, of several columns that may hold the items of a log and of a catalogue, the two that share most ids."""
    for log in (one for one in tables if is_log(one)):
        best: tuple[str, str, Seen | None, float] = ("", "", None, 0.0)
        now = 0.0
        for home in (one for one in tables if _tells_of_items(one)):
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
            each = "a row each" if found.is_key(key) else "one of each in the rows that have any"
            found.why["item"] = f"{each}; has {percent(share)} of those in {log.name}"


def match_values(tables: list[Seen]) -> None:
    """Find the catalogue of a log by the values of its items alone: no name says so, or the ids are written in words.

    A catalogue that is written again when it changes has several rows of an item, but fewer than two on average.
    Where no table at all has items, any column of a log that several rows share may hold them.
    """
    is_none = not any("item" in one.refs for one in tables)
    for log in (one for one in tables if is_log(one) or is_none and {"user", "session"} & set(one.refs)):
        own = [log.refs["item"]] if "item" in log.refs else list(_shared_columns(log))
        homes = [one for one in tables if one is not log and set(one.refs) <= {"item"} and not one.base]
        if log.aside is not None or any(_known(log.columns[name], home) for name in own for home in homes):
            continue
        shares = {
            (place, key, name): _found_in(set(log.columns[name].values), home, key)
            for place, home in enumerate(homes)
            for key, one in home.columns.items()
            if (one.is_id or one.is_text) and one.unique >= SEVERAL and one.distinct > 1
            for name in own
        }
        if not shares or max(shares.values()) < LINKED:
            continue
        place, key, name = max(shares, key=lambda one: shares[one])
        home, said = homes[place], percent(shares[place, key, name])
        log.refs["item"], home.refs["item"], home.aside = name, key, None
        home.why["item"] = f"has {said} of those in {log.name} ({name})"
        log.why["item"] = f"{said} are in {home.name} ({key})"


def _shared_columns(log: Seen) -> Iterator[str]:
    """Columns that have no role yet and whose values several rows have."""
    for name, one in log.columns.items():
        is_free = name not in log.refs.values() and one.clock is None
        if is_free and (one.is_id or one.is_text) and one.distinct > 10 and one.unique < 0.8:
            yield name


def _known(items: Profile, home: Seen) -> bool:
    """Whether the table's items, as its names say, are those of the log."""
    return "item" in home.refs and _found_in(set(items.values), home, home.refs["item"]) >= LINKED


def _found_in(ids: set[str], home: Seen, key: str) -> float:
    """Share of the ids that are in the column; of 1, 2, 3, ... only where they are most of the column, too."""
    held = values_of(home.found, key) or set()
    if is_dense(ids | held) and len(ids & held) < SAME * len(held):
        return 0.0
    return len(ids & held) / max(len(ids), 1)


def _keys(home: Seen) -> Iterator[str]:
    for name, one in home.columns.items():
        if one.is_id and home.is_own(name) and (is_bare_id(name) or names_id_of(name, "item")):
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
