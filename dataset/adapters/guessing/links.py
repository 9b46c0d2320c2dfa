"""Which columns hold ids of items, users, sessions and queries: by names, and by the ids that tables share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dataset.adapters.described.nested import PART
from dataset.adapters.guessing.folder import Listing, fault
from dataset.adapters.guessing.matching import (
    is_dense,
    is_log,
    is_referred_to,
    match,
    match_values,
    with_lookups,
    with_user,
)
from dataset.adapters.guessing.opening import item_fields, numbers_parts, of_their_row, opened, opened_texts
from dataset.adapters.guessing.profile import Profile, pairs, profiles, values_of
from dataset.adapters.guessing.tables import OF, Seen, percent
from dataset.adapters.guessing.words import (
    CATEGORY,
    IDS,
    NOISE,
    NOUNS,
    OTHERS,
    TIME,
    is_bare_id,
    is_unnamed,
    names_id_of,
    tokens,
)
from dataset.contracts import DataError

LINKED = 0.5  # share of a column's ids that are in another table, which shows what they are ids of
SURE = 0.75  # score of a name that says what its column holds
MOST_WORDS = 4  # of a person's name


def seen(listing: Listing) -> list[Seen]:
    """Profile all tables, and find the columns that hold ids of items, users, sessions and queries.

    A table that cannot be read is left to ``listing.unread``, with its fault.
    """
    tables = []
    for found in listing.tables:
        try:
            base = Seen(found, profiles(found))
            tables += [base, *opened(base)]
        except DataError as error:
            listing.unread[found.name] = fault(error)
    for table in tables:
        for entity in ("item", "user", "session", "query"):
            _by_name(table, entity)
    tables = of_their_row(tables)
    match(tables)
    _by_links(tables)
    tables = _with_listed(tables)
    _without_names(tables)
    match_values(tables)
    tables = [with_user(table, tables) for table in tables]
    return with_lookups(tables)


def _by_name(table: Seen, entity: str) -> None:
    """The column whose name says that it holds ids of the entity, and whose values can be ids."""
    scored = []
    allowed = item_fields(table) if entity == "item" else table.columns
    for place, (name, profile) in enumerate(table.columns.items()):
        if (
            name not in allowed
            or not profile.is_id
            or set(tokens(name)) & NOISE
            or profile.clock is not None
            and _is_clock(name, profile)
        ):
            continue
        score = names_id_of(name, entity)
        if is_bare_id(name) and OF.get(table.called or "") == entity:
            score = 0.85 if table.is_key(name) else 0.0
        in_list = PART in name and entity == "item" and not numbers_parts(name)
        if is_bare_id(name) and in_list:
            score = names_id_of(f"{name.partition(PART)[0].rpartition('.')[2]}_id", "item")
        if is_unnamed(name) and place == 0 and OF.get(table.called or "") == entity and table.is_key(name):
            score = 0.85
        if score:
            scored.append(
                (score + 0.2 * table.is_key(name) * (OF.get(table.called or "") == entity), -place, name)
            )
    if entity == "user" and not scored:
        scored = _persons(table)
    if entity == "item":
        scored = [
            one for one in scored if table.columns[one[2]].distinct > 1 or table.columns[one[2]].rows == 1
        ]
    if entity == "item" and (table.called == "events" or table.base is not None):
        scored = [one for one in scored if not table.is_key(one[2])] or scored  # it numbers the rows of a log
    taken = set(table.refs.values())
    for score, _, name in sorted(scored, reverse=True):
        if name not in taken and score > 0.2:
            table.refs[entity] = name
            table.why[entity] = "its name" if score >= SURE else "its name, not surely"
            return


def _persons(table: Seen) -> list[tuple[float, int, str]]:
    """Columns of a log whose names say that they hold users, and whose values are names of several words."""
    if "item" not in table.refs or table.is_key(table.refs["item"]):
        return []
    return [
        (score, -place, name)
        for place, (name, one) in enumerate(table.columns.items())
        if one.is_text and one.clock is None and one.words <= MOST_WORDS and 0 < one.unique < 0.8
        and (score := names_id_of(name, "user")) >= SURE
    ]  # fmt: skip


def _is_clock(name: str, profile: Profile) -> bool:
    """Whether times are the better reading of a column that could hold ids."""
    return not profile.is_number or bool(set(tokens(name)) & TIME)


def _by_links(tables: list[Seen]) -> None:
    """Ids that a table has one row for tell what the same ids are in other tables."""
    for home, entity, key, values in _homes(tables):
        for table in tables:
            if table is home or not values:
                continue
            taken = [one for other, one in table.refs.items() if other != entity]
            shares = {
                name: len(ids & values) / len(ids) for name, ids in _id_columns(table) if name not in taken
            }
            known = table.refs.get(entity)
            if known is None or (_weak(table, entity) and shares.get(known, 0.0) < LINKED):
                known = _linked(table, shares, values)
            if known is not None and shares.get(known, 0.0) >= LINKED:
                table.refs[entity] = known
                table.why[entity] = f"{percent(shares[known])} are in {home.name} ({key})"
                home.why[entity] = f"a row each; has {percent(shares[known])} of those in {table.name}"
    for table in tables:
        for entity in [one for one in table.refs if _weak(table, one) or one == "session" and _places(table)]:
            del table.refs[entity]


def _with_listed(tables: list[Seen]) -> list[Seen]:
    """The tables, and a table with a row for each id where a cell lists ids of items."""
    items: set[str] = set().union(
        *(values or () for _, entity, _, values in _homes(tables) if entity == "item")
    )
    found = []
    for table in tables:
        found.append(table)
        is_open = table.base is not None or table.aside is not None
        if not is_open and not {"item", "query"} & set(table.refs) and (log := opened_texts(table, items)):
            found.append(log)
    return found


def _without_names(tables: list[Seen]) -> None:
    """Find the ids of logs whose columns have no names that say it."""
    for table in sorted(tables, key=lambda one: -one.found.bytes):
        if table.aside is None and not _as_in_another_log(table, tables):
            _by_values(table)
    if not any(map(is_log, tables)):
        for table in tables:
            _as_pairs(table)


def _as_pairs(table: Seen) -> None:
    """A file of two columns without names that both repeat, where there is no other log: users and their items."""
    names = list(table.columns)
    repeated = [
        name for name, one in table.columns.items() if one.is_id and one.distinct > 10 and one.unique < 0.8
    ]
    if len(names) == 2 and repeated == names and all(map(is_unnamed, names)) and not table.refs:
        table.refs["user"], table.refs["item"] = names
        for entity, place in (("user", "first"), ("item", "second")):
            table.why[entity] = f"nothing names it; its values repeat; the {place} of two columns, not surely"


def _linked(table: Seen, shares: dict[str, float], values: set[str]) -> str | None:
    """The column of other names whose ids are in the other table, the one with most of them.

    Any column of small numbers is among 1, 2, 3, ...; of such ids it must hold nearly all.
    """
    held = {name: len(table.columns[name].values.keys() & values) / len(values) for name in shares}
    least = 0.9 if is_dense(values) else 0.0
    fits = [name for name, share in shares.items() if share >= 0.8 and held[name] >= least]
    return max(fits, key=lambda name: held[name], default=None)


def _by_values(table: Seen) -> None:
    """A log whose names say nothing: its ids are the columns that repeat, users first, as most people write them."""
    item, user = table.refs.get("item"), table.refs.get("user") or table.refs.get("session")
    kind, _ = table.type_column(set(table.refs.values()))
    if set(table.refs) == {"user"} and table.called == "events" and all(map(is_unnamed, table.columns)):
        _item_of(table)
    timed = table.time() is not None and user is not None and not table.is_key(user)
    if item is None and timed and "query" not in table.refs and (texts := _named_texts(table)):
        table.refs["item"] = texts[0]
        table.why["item"] = "no column of ids: its name, and the texts repeat"
    if user is not None or set(table.refs) & {"query"}:
        return
    if table.time() is None and not table.ratings() and kind is None:
        return
    if item is not None and (table.columns[item].unique > 0.8 or table.called in ("items", "images")):
        return
    taken = {*table.refs.values(), *table.ratings(), table.time(), kind}
    free = [
        name
        for name, one in table.columns.items()
        if one.is_id and name not in taken and one.distinct > 10 and 0 < one.unique < 0.8 and one.full > 0.5
        and not set(tokens(name)) & OTHERS
    ]  # fmt: skip
    named = "nothing names it; its values repeat"
    if item is not None and free:
        table.refs["user"] = max(free, key=lambda name: table.columns[name].distinct)
        table.why["user"] = named
    elif item is None and len(free) >= 2:
        table.refs["user"], table.refs["item"] = free[:2]
        table.why["user"], table.why["item"] = f"{named}; the first of such columns", f"{named}; the second"
    elif item is None and free and (texts := _repeated_texts(table, {*taken, *free})):
        table.refs["user"], table.refs["item"] = free[0], texts[0]
        table.why["user"], table.why["item"] = named, "no column of ids: the text that repeats is its name"


def _item_of(table: Seen) -> None:
    """The fullest column that repeats, of a file whose name says that it is a log and whose users are known."""
    free = [
        name
        for name, one in table.columns.items()
        if name != table.refs["user"] and not one.is_number and one.distinct > 10 and 0 < one.unique < 0.8
    ]
    if free:
        table.refs["item"] = max(free, key=lambda name: table.columns[name].full)
        table.why["item"] = "nothing names it; its values repeat; the fullest of such columns, not surely"


def _named_texts(table: Seen) -> list[str]:
    """Columns that several rows share whose names say that they hold items, by their names."""
    return [
        name
        for name in _repeated_texts(table, set(table.refs.values()))
        if set(tokens(name)) & (NOUNS["item"] - {"content"}) and not set(tokens(name)) & set(CATEGORY)
    ]


def _repeated_texts(table: Seen, taken: set[str | None]) -> list[str]:
    """Columns of words that several rows share, as the names of games do that have no number."""
    return [
        name
        for name, one in table.columns.items()
        if one.is_text
        and name not in taken
        and one.words > 1.3
        and one.distinct > 10
        and 0 < one.unique < 0.8
    ]


def _as_in_another_log(table: Seen, tables: list[Seen]) -> bool:
    """Whether the columns of a log without names hold the ids of a larger one, whose columns are known."""
    if table.refs or not all(map(is_unnamed, table.columns)):
        return False
    for other in tables:
        if other is table or not {"item", "user"} <= set(other.refs) or other.is_key(other.refs["item"]):
            continue
        found: dict[str, str] = {}
        for entity in ("item", "user"):
            ids = set(other.columns[other.refs[entity]].values)
            shares = {
                name: len(own & ids) / len(own)
                for name, own in _id_columns(table)
                if name not in found.values()
            }
            fits = [name for name, share in shares.items() if share >= LINKED]
            if fits:
                found[entity] = max(fits, key=lambda name: len(table.columns[name].values.keys() & ids))
        if len(found) == 2:
            table.refs.update(found)
            for entity, name in found.items():
                share = len(table.columns[name].values.keys() & set(other.columns[other.refs[entity]].values))
                said = percent(share / table.columns[name].distinct)
                table.why[entity] = f"{said} are in {other.name} ({other.refs[entity]})"
            return True
    return False


def _places(table: Seen) -> bool:
    """Whether what is named like a session counts 1, 2, 3, ... anew for every item: an actor's place in a film."""
    item, session = table.refs.get("item"), table.refs["session"]
    if item is None:
        return False
    of_items: dict[str, list[str]] = defaultdict(list)
    for one, number in pairs(table.columns[item], table.columns[session]):
        of_items[one].append(number)
    several = [numbers for numbers in of_items.values() if len(numbers) > 1]
    counted = [
        set(numbers) == {str(start + one) for one in range(len(numbers))}
        for numbers in several
        for start in (0, 1)
    ]
    return bool(several) and sum(counted) > len(several) / 2


def _weak(table: Seen, entity: str) -> bool:
    return "not surely" in table.why.get(entity, "")


def _homes(tables: list[Seen]) -> Iterator[tuple[Seen, str, str, set[str] | None]]:
    """Tables with a row per item, user or query: (table, entity, its key, all values of the key)."""
    for table in tables:
        for entity, key in list(table.refs.items()):
            others = [one for one in ("item", "user") if one in table.refs and one != entity]
            if entity != "session" and not others and table.is_key(key):
                yield table, entity, key, values_of(table.found, key)
    for table in tables:  # nothing named: a table of texts with a key is a catalogue
        if set(table.refs) & {"item", "user", "query"}:
            continue
        texts = [one for one in table.columns.values() if one.is_text and one.words > 1.5]
        keys = [
            name
            for name, one in table.columns.items()
            if one.is_id and table.is_key(name) and len(one.cells) > 5
        ]
        if texts and keys and (table.called in (None, "items")):
            key = max(keys, key=lambda name: bool(set(tokens(name)) & IDS))
            if is_referred_to(key, [one for one in tables if "item" in one.refs]):
                continue  # it says what a column of the items stands for
            table.refs["item"] = key
            table.why["item"] = "a value of its own in every row, beside texts"
            yield table, "item", key, values_of(table.found, key)


def _id_columns(table: Seen) -> Iterator[tuple[str, set[str]]]:
    for name, profile in table.columns.items():
        if profile.is_id and profile.distinct > 1:
            yield name, set(profile.values)
