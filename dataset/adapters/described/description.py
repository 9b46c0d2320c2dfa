"""``moon.toml``: which files of a folder are which table, and which column is what.

``moon init`` writes it, a person corrects it, ``described.importer`` reads by it. A key that nobody knows is an error
with a suggestion: a typo must not switch something off in silence.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dataset.contracts import EVENT_TYPES, DataError

FILE = "moon.toml"
UNITS = {
    "s": 1,
    "ms": 1_000,
    "us": 1_000_000,
    "ns": 1_000_000_000,
}  # time_format of numbers -> ticks per second
ISO = "iso"
DAYS = "days"  # time_format of whole numbers of days since some start: counted from 2000-01-01
IGNORE = "ignore"  # the type of rows that are left out


class Section(BaseModel):
    """Keys that every table has.

    Attributes:
        files: paths or patterns (``events/*.csv``, ``log/**/*.parquet``) inside the folder, read in this order.
        delimiter: between the cells of a csv; None: by its ending, a tab for ``.tsv``, else a comma.
        quote: around cells that hold a delimiter or a line break; empty: none.
        header: whether the first row of a csv names the columns; if not they are ``column1``, ``column2``, ...
        escape: what stands before a quote inside a quoted cell of a csv; None: another quote.
        encoding: of a text file, any name that Python knows.
        separators: of a column whose texts are lists, ``name[]``: between its parts, and between values of a part.
        missing: texts that mean "no value", besides an empty cell.
        time_zone: of times that do not say theirs.
        ignore: columns that are not read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    files: Annotated[list[str], Field(min_length=1)]
    delimiter: str | None = None
    quote: str = '"'
    header: bool = True
    escape: str | None = None
    encoding: str = "utf-8"
    separators: Annotated[list[str], Field(max_length=2)] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)
    time_zone: str = "UTC"
    ignore: list[str] = Field(default_factory=list)


class Items(Section):
    """A table with a row per item; of several rows of one item the last by ``updated``, or by place, is kept.

    Attributes:
        id: column of the item's id.
        title, description, price: columns.
        category: column of the category path, or one column per level, broadest first.
        category_separator: between the parts of one column; ``[]``: the cell is a list. None: one part.
        category_levels: how many parts are kept; None: all.
        product: column of the product that variants share.
        attributes: columns of short texts that describe the item; the encoder reads them.
        picture: column of encoded pictures, or of paths to them.
        picture_folder: where these paths begin.
        property, value: of a table with a row per item and property: the columns of its name and of its value. The
            most frequent ones become attributes of the items.
        first_seen, updated: columns of times: when it was first on sale, and when this row was written.
        gone: column of the time since when it is not to be had: sold, expired; empty while it is there.
        time_format: of all three: "iso", "s", "ms", "us", "ns", "days", or a pattern such as ``%d/%m/%Y %H:%M``.
        lookup: column of ids of something else -> the file of these, and the column there that has the ids; its
            columns are called ``category_id.name``.
        features: left-over columns that the models use.
        vectors: left-over column of vectors, lists of fractions of one length, that stand in for the encoder.
    """

    id: str
    title: str | None = None
    description: str | None = None
    category: str | list[str] | None = None
    category_separator: str | None = None
    category_levels: Annotated[int, Field(gt=0)] | None = None
    price: str | None = None
    product: str | None = None
    attributes: list[str] = Field(default_factory=list)
    picture: str | None = None
    picture_folder: str = "."
    property: str | None = None
    value: str | None = None
    first_seen: str | None = None
    updated: str | None = None
    gone: str | None = None
    time_format: str = ISO
    lookup: dict[str, Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(default_factory=dict)
    features: list[str] = Field(default_factory=list)
    vectors: str | None = None

    @model_validator(mode="after")
    def _a_property_has_a_value(self) -> Items:
        if (self.property is None) != (self.value is None):
            raise ValueError("expected both property and value, or neither")
        return self


class Users(Section):
    """A table with a row per user; of several rows of one user the last by ``updated``, or by place, is kept."""

    id: str
    age: str | None = None
    segment: str | None = None
    first_seen: str | None = None
    updated: str | None = None
    time_format: str = ISO
    features: list[str] = Field(default_factory=list)


class Queries(Section):
    """A table with a row per search.

    Attributes:
        id: column of the query's id.
        text: column of its words.
    """

    id: str
    text: str
    features: list[str] = Field(default_factory=list)


class Events(Section):
    """A table with a row per event.

    Attributes:
        id: column of the event's own id, unique in the log: told again, it is known. None: they are numbered.
        join, join_on: files of a table that says more (the orders of these lines), and the column that both have.
        join_key: the column there, if it has another name.
        user, item, time: columns. Without a time the rows are taken in their order, a second apart, from 2000 on,
            and their items and users are first seen at that start.
        visitor: column that says who it was where ``user`` is empty: a session, an order, a device. Its values are no
            ids of users; such a user's id is the column's name and the value: "session_id 81766".
        time_format: see ``Items``.
        whole_days: whether the times are days: such an event is known at the end of its day, and the events of a
            day have no order.
        type: what all rows are, one of EVENT_TYPES.
        type_column: the column that says it of each row.
        types: its values -> one of EVENT_TYPES, or "ignore"; rows of a value that is not listed are set aside.
        value: column of the rating.
        value_scale: the lowest and the highest rating, if they are not 1 and 5.
        unrated: the value that stands for no rating: such a row is a click.
        clicked: of impressions, a column of 0 and 1: a 1 is a click beside the impression. Without ``request`` what
            one user was shown at one time is a slate.
        skipped: in place of ``clicked``, as players write it: a 0 is a click beside the impression.
        bought: of impressions or clicks, a column of 0 and 1: a 1 is a purchase beside them.
        quantity: column of how many; rows below zero (returns, cancellations) are left out.
        request: column of the slate or search that the event belongs to.
        request_scope: columns within which requests are numbered anew, e.g. the user.
        position: column of the place in the slate; ``first_position``: the number of the first place.
        query: column of the id of the query; ``query_text``: column of its words.
        context: left-over columns, kept beside the event.
    """

    id: str | None = None
    join: list[str] = Field(default_factory=list)
    join_on: str | None = None
    join_key: str | None = None
    user: str
    visitor: str | None = None
    item: str
    time: str | None = None
    time_format: str = ISO
    whole_days: bool = False
    type: Literal["impression", "click", "cart", "purchase", "rating"] | None = None
    type_column: str | None = None
    types: dict[str, str] = Field(default_factory=dict)
    value: str | None = None
    value_scale: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    unrated: float | None = None
    clicked: str | None = None
    skipped: str | None = None
    bought: str | None = None
    quantity: str | None = None
    request: str | None = None
    request_scope: list[str] = Field(default_factory=list)
    position: str | None = None
    first_position: int = 0
    query: str | None = None
    query_text: str | None = None
    context: list[str] = Field(default_factory=list)

    @property
    def is_answered(self) -> bool:
        """Whether the impressions say themselves what became of them."""
        return self.clicked is not None or self.skipped is not None

    @model_validator(mode="after")
    def _every_event_has_a_type(self) -> Events:
        if (self.join_on is None) == bool(self.join):
            raise ValueError("expected both join and join_on, or neither")
        if self.unrated is not None and self.value is None:
            raise ValueError("expected value, the column of the rating, beside unrated")
        if (self.type is None) == (self.type_column is None):
            raise ValueError("expected either type or type_column")
        unknown = sorted(set(self.types.values()) - {*EVENT_TYPES, IGNORE})
        if unknown or (self.type_column is not None and not self.types):
            raise ValueError(
                f"expected types to map to {', '.join(EVENT_TYPES)}, found {unknown or 'nothing'}"
            )
        if self.is_answered and self.type != "impression":
            raise ValueError('expected type = "impression" beside clicked or skipped')
        if self.clicked is not None and self.skipped is not None:
            raise ValueError("expected either clicked or skipped")
        if self.bought is not None and self.type not in ("impression", "click"):
            raise ValueError('expected type = "impression" or "click" beside bought')
        if self.value_scale is not None and not self.value_scale[0] < self.value_scale[1]:
            raise ValueError("expected value_scale to rise")
        if (self.type == "rating" or "rating" in self.types.values()) != (self.value is not None):
            raise ValueError("expected value, the column of the rating, for ratings and only for them")
        return self


class Judgements(Section):
    """A table with a row per judged pair of query and item.

    Attributes:
        query: column of the query's id; ``query_text``: column of its words. At least one.
        item: column.
        relevance: column of the grade, a number or one of the words in ``grades``.
        relevance_scale: the grade of an irrelevant item and that of a perfect one.
        grades: word -> relevance between 0 and 1.
        part: column of the part; None: by the file's name (train or test), else one query in five is a test.
    """

    item: str
    relevance: str
    query: str | None = None
    query_text: str | None = None
    relevance_scale: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.0, 1.0]
    grades: dict[str, float] = Field(default_factory=dict)
    part: str | None = None

    @model_validator(mode="after")
    def _there_is_a_query(self) -> Judgements:
        if self.query is None and self.query_text is None:
            raise ValueError("expected query or query_text")
        return self


class Images(Section):
    """Pictures apart from the items.

    Attributes:
        files: of a table with a row per picture; or, without ``item``, patterns of the pictures themselves with
            ``{id}`` where the item's id stands: ``images/{id}.jpg``.
        item, picture: columns of the table; see ``Items``.
        picture_folder: where the paths in ``picture`` begin.
    """

    item: str | None = None
    picture: str | None = None
    picture_folder: str = "."

    @model_validator(mode="after")
    def _it_is_a_table_or_a_pattern(self) -> Images:
        if (self.item is None) != (self.picture is None):
            raise ValueError("expected both item and picture, or neither")
        if self.item is None and not all("{id}" in pattern for pattern in self.files):
            raise ValueError("expected {id} in the pattern of pictures that no table lists")
        return self


class Data(BaseModel):
    """What holds for all tables.

    Attributes:
        name: of the data set.
        folder: where the files are, from the folder of the description.
        unknown_items, unknown_users: what happens to events of items and users that no table lists: "keep" makes
            them of their ids alone, "set aside" puts the events into quarantine.
        similar_ids: ids that differ only by case, spaces around them or leading zeros: "refuse" the data, take them
            for "different", or for the "same" (the first one's spelling is kept).
        ids: "item", "user", "query" -> what their ids are to clients, "text" or "integer"; where it is not said, it
            follows from the ids, and new files with others are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(min_length=1)]
    folder: str = "."
    unknown_items: Literal["keep", "set aside"] = "keep"
    unknown_users: Literal["keep", "set aside"] = "keep"
    similar_ids: Literal["refuse", "different", "same"] = "refuse"
    ids: dict[Literal["item", "user", "query"], Literal["text", "integer"]] = Field(default_factory=dict)


class Splitting(BaseModel):
    """How the events are split, see ``dataset.protocols`` and ``dataset.repeats``; None: chosen from the data."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    protocol: Literal["time", "last", "users", "given"] | None = None
    repeats: bool | None = None


class Description(BaseModel):
    """A whole ``moon.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    data: Data
    split: Splitting = Splitting()
    items: list[Items] = Field(default_factory=list)
    users: list[Users] = Field(default_factory=list)
    events: list[Events] = Field(default_factory=list)
    queries: list[Queries] = Field(default_factory=list)
    judgements: list[Judgements] = Field(default_factory=list)
    images: list[Images] = Field(default_factory=list)

    @model_validator(mode="after")
    def _there_is_something(self) -> Description:
        if not self.items and not self.events:
            raise ValueError("expected at least one table [[items]] or [[events]]")
        if len({one.vectors for one in self.items if one.vectors}) > 1:
            raise ValueError("expected one column of vectors in all tables [[items]]")
        if len({one.id is None for one in self.events}) > 1:
            raise ValueError("expected an id in every table [[events]], or in none")
        return self


def open_description(path: Path) -> tuple[Description, str]:
    """Read the description at ``path``.

    Returns:
        the description and 16 hex digits that change when what it says of the data changes; remarks do not count, nor
        where the data are.

    Raises:
        DataError: no such file, not TOML, unknown keys (with the nearest known one), or values of another kind.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: expected a description, found no such file. Run 'moon init FOLDER'."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: expected TOML, found: {error}. Correct it, or run 'moon init' again."
        ) from None
    try:
        found = Description.model_validate(content)
    except ValidationError as error:
        faults = [_fault(one, content) for one in error.errors(include_url=False)]
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise DataError(
            f"{path}: {'; '.join(faults[:5])}{more}. Correct it and run the command again."
        ) from None
    said = found.model_dump_json(exclude_defaults=True, exclude={"data": {"folder"}})
    return found, hashlib.sha256(said.encode()).hexdigest()[:16]


def present(description: Description, root: Path) -> Description:
    """The description of those files alone that are in the folder ``root``.

    Raises:
        DataError: none of them is.
    """
    tables = ("items", "users", "events", "queries", "judgements", "images")
    kept: dict[str, list[Section]] = {name: [] for name in tables}
    for name in tables:
        for section in getattr(description, name):
            files = [one for one in section.files if _is_there(root, one)]
            if files:
                kept[name].append(section.model_copy(update={"files": files}))
    if not any(kept.values()):
        files = [one for name in tables for section in getattr(description, name) for one in section.files]
        present = sorted(path.name for path in root.iterdir()) if root.is_dir() else "no such folder"
        raise DataError(f"{root}: expected some of the files {files[:6]} of moon.toml, found {present[:12]}.")
    return description.model_copy(update=kept)


def _is_there(root: Path, pattern: str) -> bool:
    return (root / pattern).is_file() or any(root.glob(pattern.replace("{id}", "*")))


def _fault(error: Any, content: dict[str, Any]) -> str:
    """Place and fault of one entry of pydantic's ``errors()``; an unknown key with the nearest known one."""
    *place, key = error["loc"] or ("",)
    where = ".".join(f"[{part + 1}]" if isinstance(part, int) else str(part) for part in error["loc"])
    where = where.replace(".[", "[")
    if error["type"] == "extra_forbidden":
        known = list(_model(place).model_fields)
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        return f"unknown key {where}: {hint}"
    if error["type"] == "missing":
        return f"{where}: missing"
    said = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    found = "" if isinstance(error["input"], dict) else f", found {error['input']!r}"
    return f"{where}: {said}{found}" if where else said


def _model(place: list[Any]) -> type[BaseModel]:
    """The model that stands at a place in ``moon.toml``."""
    models: dict[str, type[BaseModel]] = {"data": Data, "split": Splitting, "items": Items, "users": Users}
    models |= {"events": Events, "queries": Queries, "judgements": Judgements, "images": Images}
    return models.get(str(place[0]), Description) if place else Description
