"""A proposal for a folder: its tables, what each is, and what could not be placed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dataset.adapters.guessing.category import determines
from dataset.adapters.guessing.entity_columns import item_columns, user_columns
from dataset.adapters.guessing.event_columns import event_columns, judgement_columns, query_columns
from dataset.adapters.guessing.folder import Listing, look
from dataset.adapters.guessing.guess import Proposal
from dataset.adapters.guessing.links import seen
from dataset.adapters.guessing.profile import Profile, values_of
from dataset.adapters.guessing.tables import Seen, percent, role_of
from dataset.adapters.guessing.words import QUANTITY, is_unnamed, tokens

ROLES = ("items", "users", "events", "queries", "judgements", "images")
OF_AN_ITEM = ("title", "category", "description", "attributes")
MANY = 10  # pictures of one id that are more than a shop shows of an item
NAMED = 0.2  # share of the picture files whose names hold an item's id


@dataclass
class Proposals:
    """What a folder seems to be.

    Attributes:
        root: the folder.
        listing: what is in it.
        tables: one entry per table of ``moon.toml``.
        unplaced: file or pattern -> why it has no role.
    """

    root: Path
    listing: Listing
    tables: list[Proposal] = field(default_factory=list)
    unplaced: dict[str, str] = field(default_factory=dict)

    def of(self, role: str) -> list[Proposal]:
        """The tables of a role that are switched on."""
        return [one for one in self.tables if one.role == role and one.active]


def propose(root: Path) -> Proposals:
    """Look at a folder.

    Raises:
        DataError: there is no such folder.
    """
    listing = look(root)
    found = Proposals(root, listing)
    for table in seen(listing):
        role, why = role_of(table)
        if role is None:
            found.unplaced[table.name] = why
            continue
        proposal = Proposal(role, table, why=why)
        found.tables.append(proposal)
    pictures = listing.pictures
    for proposal in found.tables:
        _columns(proposal, pictures, root)
    _only_sure_logs(found)
    _unknown_items(found)
    _entities_of_logs(found)
    if not any(one.get("picture") for one in found.of("items")):
        _picture_files(found)
    found.tables.sort(key=lambda one: (ROLES.index(one.role), not one.active, _tells_of_rows(one)))
    return found


def _tells_of_rows(proposal: Proposal) -> bool:
    """Whether a table of items has several rows of each: what another says of an item comes first."""
    return (
        proposal.role == "items"
        and proposal.table is not None
        and not proposal.table.is_key(proposal.get("id"))
    )


def _columns(proposal: Proposal, pictures: list[Path], root: Path) -> None:
    table = proposal.table
    assert table is not None  # only picture files have none
    if proposal.role == "items":
        key = table.refs["item"]
        proposal.add("id", key, table.why["item"], "not surely" not in table.why["item"])
        if (long := table.properties()) is not None:
            _property_columns(proposal, table, *long)
        else:
            item_columns(proposal, table, {key}, pictures, root)
            _ids_as_titles(proposal, table.columns[key])
    elif proposal.role == "users":
        key = table.refs["user"]
        proposal.add("id", key, table.why["user"])
        user_columns(proposal, table, {key})
    elif proposal.role == "events":
        event_columns(proposal, table)
    elif proposal.role == "queries":
        query_columns(proposal, table)
    elif proposal.role == "judgements":
        judgement_columns(proposal, table)
    else:
        _picture_table(proposal, table, pictures, root)
    missing = sorted(
        {word for name in proposal.used for word in table.columns[name].missing if name in table.columns}
    )
    proposal.add("missing", missing, "stand where a value should be")
    if proposal.role == "events":
        proposal.add("context", proposal.left, "left over: kept beside each event")


def _property_columns(proposal: Proposal, table: Seen, name: str, value: str) -> None:
    few = [one for one, _ in table.columns[name].values.most_common(3)]
    proposal.add("property", name, f"e.g. {', '.join(few)}")
    proposal.add("value", value, f"e.g. {table.columns[value].example(1)}")
    written = table.time()
    if written is not None and (clock := table.columns[written].clock) is not None:
        proposal.add(
            "updated", written, f"{clock.first:%Y-%m-%d} to {clock.last:%Y-%m-%d}; the last value counts"
        )
        proposal.add("time_format", clock.layout, f"e.g. {table.columns[written].example(1)}")


def _picture_table(proposal: Proposal, table: Seen, pictures: list[Path], root: Path) -> None:
    inner = Proposal("items", table)
    item_columns(inner, table, {table.refs["item"]}, pictures, root)
    picture = next((one for one in inner.guesses if one.key == "picture"), None)
    proposal.add("item", table.refs["item"], table.why["item"])
    if picture is None:
        proposal.active = False
        proposal.why = "its pictures are not in the folder"
        return
    proposal.add("picture", picture.value, picture.why)
    items, rows = table.columns[table.refs["item"]].distinct, table.columns[picture.value].rows
    if rows >= MANY * items:
        proposal.active = False
        proposal.why = (
            f"{rows / items:.0f} pictures for each id: photos of a class of things, as people search with, not "
            f"the picture of one item; switched on, the first of each would stand for it"
        )
    proposal.add("picture_folder", inner.get("picture_folder"), "where these paths begin")


def _only_sure_logs(found: Proposals) -> None:
    """Switch logs of an unknown kind off where others say theirs."""
    logs = found.of("events")
    sure = [log for log in logs if all(guess.sure for guess in log.guesses if guess.key == "type")]
    for log in logs:
        if sure and log not in sure:
            log.active, log.why = False, "nothing says what these rows are; other logs do"


def _unknown_items(found: Proposals) -> None:
    """Doubt a log most of whose items no table of items has: one of the two columns may be another id."""
    homes = [(one.table, one.get("id")) for one in found.of("items") if one.table is not None]
    known: set[str] = set().union(*(values_of(table.found, key) or () for table, key in homes))
    for log in found.of("events") if known else []:
        assert log.table is not None
        ids = set(log.table.columns[log.get("item")].values)
        missing = len(ids - known)
        if missing > len(ids) / 2:
            said = ", ".join(f"{key!r} of {table.name}" for table, key in homes)
            log.doubts.append(
                f"{missing:,} of {len(ids):,} values of {log.get('item')!r} are not in {said}: such events would be "
                f"of items without words, picture or price"
            )


def _entities_of_logs(found: Proposals) -> None:
    """What a log says of its items and users, where no table does."""
    for log in sorted(found.of("events"), key=lambda one: -one.table.found.bytes if one.table else 0):
        table = log.table
        assert table is not None
        if not found.of("items"):
            _items_of(found, log, table)
        if not found.of("users"):
            _users_of(found, log, table)


def _items_of(found: Proposals, log: Proposal, table: Seen) -> None:
    key = table.columns[log.get("item")]
    fixed = {
        name for name in log.left if _fixed(key, table.columns[name]) and _sorts(key, table.columns[name])
    }
    priced = {name for name in log.left if "price" in tokens(name) and not set(tokens(name)) & QUANTITY}
    taken = set(table.columns) - fixed - priced
    items = Proposal("items", table, why="the log says what its items are")
    items.add("id", log.get("item"), table.why["item"])
    item_columns(items, table, taken, found.listing.pictures, found.root)
    _ids_as_titles(items, key)
    if not any(items.get(one) for one in OF_AN_ITEM):
        return
    _updated(items, log)
    _leave(items, log, table)
    found.tables.append(items)


def _ids_as_titles(items: Proposal, key: Profile) -> None:
    """Ids in words are titles, where no column has better ones."""
    if items.get("title") is None and key.is_text and key.words > 1.3:
        items.add("title", key.name, "its ids are words")


def _users_of(found: Proposals, log: Proposal, table: Seen) -> None:
    key = table.columns[log.get("user")]
    fixed = {
        name for name in log.left if _fixed(key, table.columns[name]) and name not in _item_used(found, table)
    }
    users = Proposal("users", table, why="the log says who its users are")
    users.add("id", log.get("user"), table.why.get("user", "as in the log"))
    user_columns(users, table, set(table.columns) - fixed)
    if users.get("age") or users.get("segment"):
        _updated(users, log)
        _leave(users, log, table)
        found.tables.append(users)


def _item_used(found: Proposals, table: Seen) -> set[str]:
    return {name for one in found.of("items") if one.table is table for name in one.used}


def _fixed(key: Profile, other: Profile) -> bool:
    """Whether a column says something about the entity of ``key``: one value for each of its ids."""
    if other.distinct < 2:
        return False
    return determines(key, other)


def _sorts(key: Profile, other: Profile) -> bool:
    """Whether a column without a name has so few values that they sort the ids of ``key``; a price does not."""
    return not is_unnamed(other.name) or other.distinct <= key.distinct / 2


def _updated(proposal: Proposal, log: Proposal) -> None:
    for key, name in (("updated", "time"), ("time_format", "time_format"), ("time_zone", "time_zone")):
        if key not in [one.key for one in proposal.guesses]:
            proposal.add(key, log.get(name), "as in the log; the last row counts")


def _leave(proposal: Proposal, log: Proposal, table: Seen) -> None:
    """Take the columns of an entity out of the context of the events, and all others out of the entity."""
    taken = proposal.used
    others = [name for name in table.columns if name not in taken]
    proposal.left = []
    proposal.add("ignore", others, "they are the events'")
    log.left = [name for name in log.left if name not in taken]
    log.guesses = [one for one in log.guesses if one.key != "context"]
    log.add("context", log.left, "left over: kept beside each event")


def _picture_files(found: Proposals) -> None:
    """Picture files that are named after items."""
    pictures, homes = found.listing.pictures, [*found.of("items"), *found.of("events")]
    if not homes or not pictures or found.of("images"):
        return
    table, key = homes[0].table, homes[0].get("id") or homes[0].get("item")
    assert table is not None
    ids = values_of(table.found, key) or set(table.columns[key].values)
    inner = [path.relative_to(found.root) for path in pictures]
    top = Counter(path.parts[0] if len(path.parts) > 1 else "." for path in inner).most_common(1)[0][0]
    start = "" if top == "." else f"{top}/"
    below = [path for path in inner if top == "." or path.parts[0] == top]
    flat = all(len(path.parts) == (1 if top == "." else 2) for path in below)
    shapes = {
        "{id}.*": lambda path: path.stem,
        "{id}_*.*": lambda path: path.stem.partition("_")[0],
        "{id}-*.*": lambda path: path.stem.partition("-")[0],
        "{id}/*": lambda path: path.parent.name,
    }
    shares = {
        shape: sum(named(path) in ids for path in below) / len(below) for shape, named in shapes.items()
    }
    shape = max(shares, key=lambda one: shares[one])
    if shares[shape] < NAMED:
        found.unplaced[f"{len(pictures):,} picture files"] = "their names are not ids of items"
        return
    pattern = f"{start}{'' if flat or shape == '{id}/*' else '**/'}{shape}"
    images = Proposal(
        "images", None, why=f"{percent(shares[shape])} of {len(below):,} picture files are named after items"
    )
    images.add("files", [pattern], f"e.g. {below[0].as_posix()}")
    found.tables.append(images)
