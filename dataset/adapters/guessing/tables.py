"""Which table of a folder is which, from the names of columns, their values, and the ids that tables share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from dataset.adapters.described.description import IGNORE
from dataset.adapters.guessing.folder import Found
from dataset.adapters.guessing.profile import Profile
from dataset.adapters.guessing.words import (
    AVERAGE,
    IDS,
    PROPERTY,
    QUANTITY,
    RATING,
    RELEVANCE,
    TIME,
    TYPE,
    event_type,
    is_unnamed,
    table_of,
    tokens,
)

KEY_SHARE = 0.95  # of the rows that have an id of their own in a table with a row per entity
MOST_ROWS = 0.5  # of a catalogue: the others are further pictures, or prices, of the row above
LINKED = 0.5  # share of a column's ids that are in another table, which shows what they are ids of
MOST_TYPES = 60  # values of a column of event types
MAPPED = 0.5  # share of the rows whose type is recognised
WEEK, FEW_DAYS = 31, 36_525  # a day of a week or month; days of a century
SURE = 0.75  # score of a name that says what its column holds
OF = {"items": "item", "users": "user", "queries": "query"}


def percent(share: float) -> str:
    """A share in percent; never 100 if something is missing."""
    return "all" if share >= 1 else f"{min(round(share * 100), 99)} %"


@dataclass
class Seen:
    """A table of the folder with the profiles of its columns.

    Attributes:
        found: the table.
        columns: by name.
        refs: entity -> the column of its ids.
        why: entity -> what shows it.
        aside: why it has no role of its own; None: it may have one.
        base: the table whose lists these rows are the parts of.
        counter: the column that counts the orders of each user, where nothing says when they were.
    """

    found: Found
    columns: dict[str, Profile]
    refs: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    aside: str | None = None
    base: Seen | None = None
    counter: str | None = None

    @property
    def name(self) -> str:
        """Its first file or pattern, and the list in its rows whose parts are meant."""
        each = self.found.files.each
        return self.found.name if each is None else f"{self.found.name}: {each}"

    @cached_property
    def called(self) -> str | None:
        """What its name says it is: "items", "users", "events", ..."""
        return table_of(self.name.rpartition("/")[2].partition(".")[0]) or table_of(self.name)

    @cached_property
    def has_picture_bytes(self) -> bool:
        """Whether a column holds encoded pictures."""
        return any(one.is_bytes for one in self.columns.values())

    def is_key(self, column: str) -> bool:
        """Whether nearly every row has an id of its own in this column."""
        profile = self.columns[column]
        return profile.unique >= KEY_SHARE and profile.full >= KEY_SHARE

    def is_own(self, column: str) -> bool:
        """Whether nearly every row that has an id in this column has one of its own, and most rows have one."""
        profile = self.columns[column]
        return profile.unique >= KEY_SHARE and profile.full >= MOST_ROWS

    def time(self) -> str | None:
        """The column that most likely says when a row happened."""
        timed = [
            (self._timely(name), -place, name)
            for place, (name, profile) in enumerate(self.columns.items())
            if profile.clock is not None
        ]
        best = max(timed, default=None)
        return best[2] if best is not None and best[0] > 0 else None

    def _timely(self, name: str) -> float:
        profile = self.columns[name]
        clock, words = profile.clock, set(tokens(name))
        if clock is None:
            return 0.0
        named = bool(words & TIME)
        if profile.is_number and not named and clock.layout in ("s", "%Y%m%d") and not is_unnamed(name):
            return 0.0  # an id of ten digits looks like a time as well
        usual = {
            "timestamp",
            "ts",
            "time",
            "datetime",
            "date",
            "created",
            "when",
            "event",
            "purchase",
            "order",
        } & words
        late = {
            "update",
            "updated",
            "delivered",
            "shipped",
            "estimated",
            "approved",
            "modified",
            "review",
            "expire",
        }
        birth = {"birth", "dob", "birthday"} & words
        return (
            (2.0 if named else 0.5)
            + len(usual) * 0.5
            - bool(late & words)
            - 1.2 * clock.days
            - 3 * len(birth)
        )

    def days(self) -> str | None:
        """The column that counts days from some start, where no column says times; or that counts a user's orders."""
        if self.counter is not None or self.time() is not None:
            return self.counter
        named = self.with_words(frozenset({"day", "days"}))
        return next(
            (
                name
                for name in named
                if set(tokens(name)) <= {"day", "days"} | IDS
                and self.columns[name].is_id
                and self.columns[name].distinct > WEEK
                and 0 <= min(self.columns[name].numbers)
                and max(self.columns[name].numbers) < FEW_DAYS
            ),
            None,
        )

    def with_words(self, words: frozenset[str]) -> list[str]:
        """Columns of numbers in whose name one of the words is."""
        return [
            name
            for name, one in self.columns.items()
            if one.is_number and set(tokens(name)) & words and one.cells
        ]

    def ratings(self) -> list[str]:
        """Columns of ratings: few numbers, none above 100; named so, or in a file that is."""
        file = event_type(self.name.rpartition("/")[2].partition(".")[0]) == "rating"
        named = self.with_words(RATING) or [
            name
            for name, one in self.columns.items()
            if (is_unnamed(name) or file and name not in self.refs.values())
            and one.is_number
            and 2 < one.distinct <= 11
        ]
        return [
            name
            for name in named
            if not set(tokens(name)) & AVERAGE
            and self.columns[name].distinct <= 101 and min(self.columns[name].numbers) >= -1
            and max(self.columns[name].numbers) <= 100
        ]  # fmt: skip

    def type_column(self, used: set[str]) -> tuple[str | None, dict[str, str]]:
        """The column that says of each row what kind of event it is, and its values' kinds; None: there is none.

        Args:
            used: columns that mean something else.
        """
        best, share, types = None, 0.0, {}
        for name, one in self.columns.items():
            if name in used or not one.is_text or one.distinct > MOST_TYPES:
                continue
            kinds = {value: event_type(value) for value in one.values}
            mapped = sum(count for value, count in one.values.items() if kinds[value]) / len(one.cells)
            named = bool(set(tokens(name)) & TYPE)
            fits = mapped >= MAPPED if named else mapped >= 0.9 and len(set(kinds.values())) > 1
            if fits and mapped > share:
                best, share, types = name, mapped, {value: kind or IGNORE for value, kind in kinds.items()}
        return best, types

    def relevances(self) -> list[str]:
        """Columns of graded relevance."""
        named = [name for name in self.columns if set(tokens(name)) & RELEVANCE]
        return [name for name in named if self.columns[name].distinct <= 50]

    def properties(self) -> tuple[str, str] | None:
        """The columns of name and value of a table with a row per item and property; None: it is none."""
        item = self.refs.get("item")
        if item is None or self.columns[item].unique > 0.5 or len(self.columns) > 5:
            return None
        named = [name for name in self.columns if set(tokens(name)) & PROPERTY and name != item]
        values = [name for name in self.columns if set(tokens(name)) & {"value", "val"} and name not in named]
        return (named[0], values[0]) if named and values else None

    @cached_property
    def is_bought(self) -> bool:
        """Whether the columns are those of a bill."""
        named = (tokens(name) for name in self.with_words(QUANTITY))
        return any(words == ("count",) or set(words) & (QUANTITY - {"count"}) for words in named)


def role_of(table: Seen) -> tuple[str | None, str]:
    """What the table is, and why; None: it could not be placed, and why not."""
    refs = table.refs
    item, user = refs.get("item"), refs.get("user") or refs.get("session")
    if not any(one.cells for one in table.columns.values()):
        return None, "it has no rows"
    if table.aside is not None and not (user and table.is_key(refs.get("user", user))):
        return None, table.aside
    texts = [name for name, one in table.columns.items() if one.is_text and "query" in _query_like(name)]
    if item and (refs.get("query") or texts) and table.relevances() and not refs.get("user"):
        return "judgements", "a query, an item and a grade in every row"
    if table.called == "users" and "user" in refs and table.is_key(refs["user"]):
        return "users", "a row per user"
    if (
        item
        and user
        and not (table.is_key(item) and table.called in ("items", "images") and not table.ratings())
    ):
        return "events", "an item and a user in every row"
    if table.has_picture_bytes and item and not (table.is_key(item) and _texts(table)):
        return "images", "an encoded picture and an item in every row"
    if item and table.called == "images" and not _texts(table):
        return "images", "an item and a picture in every row"
    if item and table.properties() is not None:
        return "items", "a row per item and property: they become attributes"
    if item and (table.is_key(item) or table.called == "items" or table.columns[item].unique >= 0.5):
        return "items", "a row per item" if table.is_key(item) else "rows about items"
    if refs.get("query") and texts and table.is_key(refs["query"]):
        return "queries", "a row per query, and its words"
    if refs.get("user") and table.is_key(refs["user"]):
        return "users", "a row per user"
    if item and table.time() is not None:
        return (
            None,
            f"rows of items ({item}) with times, and no column says whose: a log needs a user or a session",
        )
    if item:
        return None, f"several rows per item ({item}) and no user"
    return None, "no column of items, users or queries was recognised"


def _query_like(name: str) -> str:
    words = set(tokens(name))
    return "query" if words & {"query", "search", "keyword", "term", "phrase", "searchterm", "suche"} else ""


def _texts(table: Seen) -> bool:
    return any(one.is_text and one.words > 1.2 for one in table.columns.values())
