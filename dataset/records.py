"""What an item, an event, a user and a query is, for every door: types, bounds, texts and the words of each rule.

Records come in through several doors. JSON (HTTP, the Redis stream, event files) and calls from Python go through the
models here, one record at a time; an import goes through ``dataset.checks``, whole columns at a time, with the same
bounds and the same words. A record that one door refuses is refused by all of them, for the same reason.

Numbers are numbers: ``true`` and ``"7"`` are not, 7.0 is no id. What an id is depends on the shop
(``dataset.shop_ids``): whoever parses a record says so with the context ``kinds``; without one ids are integers of 64
bits. A time is ISO 8601 with date, time of day and zone
(``2026-07-01T10:00:00+08:00``) or, in Python, a datetime with a zone; numbers are no times, their unit would be a
guess. Texts are cleaned (``dataset.text``) before they are measured. NaN is a missing number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dataset.contracts import EVENT_TYPES
from dataset.identity import event_key
from dataset.shop_ids import ALL_INT64, FOLDERS, LARGEST_ID, MOST_ID, NAMED, IdKind, ShopId
from dataset.text import clean

TOO_LARGE = 2.0**128 - 2.0**103  # the first number that float32 rounds to infinity
EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
OLDEST = 150.0  # years
MOST_TEXT = 100_000  # characters of a title or a description
MOST_VALUE = 10_000  # characters of the name or the value of an attribute
MOST_WORD = 1000  # characters of a part of a category, a segment or a query
MOST_PARTS = 100  # of a category or of the attributes
# An item that is not active is in no answer (``feature_repo.ingest.item_states``); deleting is a door of its own.
ACTIVE, DELETED = "active", "deleted"
ITEM_STATES = (ACTIVE, "inactive", "out_of_stock")
ISO_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:?\d\d)", flags=re.ASCII
)


class Rule(StrEnum):
    """The words for each rule that a record can break; ``{}`` is the field."""

    NULL = "null {}"  # of a table, also where the source has no such cell
    MISSING = "missing {}"
    UNKNOWN_FIELD = "unknown field {}"
    INT64 = "{} is not an integer of 64 bits"
    INT32 = "{} is not an integer of 32 bits"
    INTEGER = "{} is not an integer"
    NO_ID = "{} is neither an integer nor a text"
    FOLDER = "{} is . or .., which an address cannot hold"
    NUMBER = "{} is not a number"
    TEXT = "{} is not a text"
    TEXTS = "{} is not a list of texts"
    TEXT_MAP = "{} is not a map of texts"
    TIME = "{} is not a time with a zone"
    NEGATIVE = "negative {}"
    INFINITE = "{} is infinite"
    PRICE = "{} is negative or infinite"
    AGE = "{} is not between 0 and 150 years"
    MOMENT = "{} outside sane bounds: before 1990 or in the future"
    LONG = "{} is too long"
    EMPTY = "empty {}"
    LONG_INSIDE = "too long a text inside {}"
    NULL_INSIDE = "null inside {}"
    EMPTY_INSIDE = "empty text inside {}"
    PARTS = "{} has too many parts"
    EVENT_TYPE = "unknown {}"  # also a state
    NO_VALUE = "rating without a value"
    USED_ID = "another event has this {}"
    NO_RATING = "value of an event that is no rating"
    NO_CONTENT = "neither title nor picture"
    NO_QUERY = "neither text nor image"


def broken(rule: Rule, field: str | None = "", more: str = "") -> PydanticCustomError:
    """The error of a value or a record that breaks ``rule``; ``more`` says what was expected."""
    return PydanticCustomError("rule", rule.format(field) + more)  # type: ignore[arg-type]


def first_error(error: ValidationError) -> str:
    """Place and broken rule of the first fault, without the offending value."""
    return fault(error.errors(include_url=False, include_context=False, include_input=False)[0])


def fault(error: Any) -> str:
    """Place and broken rule of one entry of pydantic's ``errors()``."""
    parts = [str(part)[:40] for part in error["loc"]]
    named = {"missing": Rule.MISSING, "extra_forbidden": Rule.UNKNOWN_FIELD}.get(error["type"])
    says = named.format(parts[-1]) if named else str(error["msg"])
    return f"{'.'.join(parts)}: {says}" if parts else says


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(rule: Rule, most: int) -> Callable[[Any, ValidationInfo], int]:
    def check(value: Any, info: ValidationInfo) -> int:
        if value is None:
            raise broken(Rule.NULL, info.field_name)
        if not _is_whole(value) or not -most - 1 <= value <= most:
            raise broken(rule, info.field_name)
        if value < 0:
            raise broken(Rule.NEGATIVE, info.field_name)
        return int(value)

    return check


_int64 = _whole(Rule.INT64, LARGEST_ID)


def _shop_id(value: Any, info: ValidationInfo) -> ShopId:
    """An id as it was sent; its text is kept letter by letter."""
    kind = (info.context or ALL_INT64)[info.field_name or ""]
    if kind is IdKind.INT64:
        return _int64(value, info)
    if value is None:
        raise broken(Rule.NULL, info.field_name)
    whole, text = _is_whole(value), _is_text(value)
    if not (whole and kind is not IdKind.TEXT) and not (text and kind is not IdKind.INTEGER):
        wrong = {IdKind.TEXT: Rule.TEXT, IdKind.INTEGER: Rule.INTEGER}
        raise broken(wrong.get(kind, Rule.NO_ID), info.field_name)
    if text and not value:
        raise broken(Rule.EMPTY, info.field_name)
    if value in FOLDERS and info.field_name in NAMED:
        raise broken(Rule.FOLDER, info.field_name)
    if len(value) > MOST_ID if text else abs(value) >= 10**MOST_ID:
        raise broken(Rule.LONG, info.field_name)
    return str(value) if text else int(value)


def _float32(value: Any, info: ValidationInfo) -> float | None:
    """A number as float32 would hold it, as a float; None for NaN."""
    if not _is_whole(value) and not isinstance(value, float):
        raise broken(Rule.NUMBER, info.field_name)
    try:
        with np.errstate(over="ignore"):
            number = float(np.float32(value))
    except OverflowError:  # an integer of more than 300 digits
        number = float("inf")
    return None if np.isnan(number) else number


def _value(value: Any, info: ValidationInfo) -> float | None:
    number = None if value is None else _float32(value, info)
    if number is not None and np.isinf(number):
        raise broken(Rule.INFINITE, info.field_name)
    return number


def _price(value: Any, info: ValidationInfo) -> float | None:
    number = None if value is None else _float32(value, info)
    if number is not None and not 0 <= number < float("inf"):
        raise broken(Rule.PRICE, info.field_name)
    return number


def _age(value: Any, info: ValidationInfo) -> float | None:
    """An impossible age costs the age, not the user."""
    number = None if value is None else _float32(value, info)
    return number if number is not None and 0 <= number <= OLDEST else None


def _moment(value: Any, info: ValidationInfo) -> datetime:
    if value is None:
        raise broken(Rule.NULL, info.field_name)
    if isinstance(value, str) and ISO_TIME.fullmatch(value):
        try:
            value = datetime.fromisoformat(value.upper())
        except ValueError:
            raise broken(Rule.TIME, info.field_name) from None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise broken(Rule.TIME, info.field_name)
    if value < EARLIEST:
        raise broken(Rule.MOMENT, info.field_name)
    return value


def _is_text(value: Any) -> bool:
    """Whether it is a text that UTF-8 can hold: Python's may have half a surrogate pair."""
    return isinstance(value, str) and (value.isascii() or not re.search("[\ud800-\udfff]", value))


def _text(most: int) -> Callable[[Any, ValidationInfo], str]:
    def check(value: Any, info: ValidationInfo) -> str:
        if not _is_text(value):
            raise broken(Rule.TEXT, info.field_name)
        text = clean(value)
        if len(text) > most:
            raise broken(Rule.LONG, info.field_name)
        return text

    return check


def _one_of(known: Sequence[str]) -> Callable[[Any, ValidationInfo], str]:
    def check(value: Any, info: ValidationInfo) -> str:
        if value is None:
            raise broken(Rule.NULL, info.field_name)
        if not _is_text(value):
            raise broken(Rule.TEXT, info.field_name)
        if value not in known:
            raise broken(Rule.EVENT_TYPE, info.field_name, f": expected {', '.join(known)}")
        return str(value)

    return check


def _word(value: Any, most: int, rule: Rule, info: ValidationInfo) -> str:
    """A text of at most ``most`` characters inside a list or a map; ``rule`` is broken if it is none."""
    if value is None:
        raise broken(Rule.NULL_INSIDE, info.field_name)
    if not _is_text(value):
        raise broken(rule, info.field_name)
    text = clean(value)
    if not text:
        raise broken(Rule.EMPTY_INSIDE, info.field_name)
    if len(text) > most:
        raise broken(Rule.LONG_INSIDE, info.field_name)
    return text


def _parts(value: Any, kind: type[list] | type[dict], rule: Rule, info: ValidationInfo) -> Any:
    """A list or a map that is neither missing nor too long; ``rule`` is broken if it is none."""
    if value is None:
        raise broken(Rule.NULL, info.field_name)
    if not isinstance(value, kind):
        raise broken(rule, info.field_name)
    if len(value) > MOST_PARTS:
        raise broken(Rule.PARTS, info.field_name)
    return value


def _words(value: Any, info: ValidationInfo) -> list[str]:
    return [_word(one, MOST_WORD, Rule.TEXTS, info) for one in _parts(value, list, Rule.TEXTS, info)]


def _word_map(value: Any, info: ValidationInfo) -> dict[str, str]:
    pairs = _parts(value, dict, Rule.TEXT_MAP, info).items()
    texts = ([_word(one, MOST_VALUE, Rule.TEXT_MAP, info) for one in pair] for pair in pairs)
    return {key: one for key, one in texts}


# The validators decide, in our words; the bounds behind them describe the fields in the OpenAPI document.
Id = Annotated[
    ShopId,
    BeforeValidator(_shop_id),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": LARGEST_ID}),
]
Place = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole(Rule.INT32, 2**31 - 1))]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
Text = Annotated[str, Field(max_length=MOST_TEXT), BeforeValidator(_text(MOST_TEXT))]
Word = Annotated[str, Field(max_length=MOST_WORD), BeforeValidator(_text(MOST_WORD))]
Number = Annotated[float, Field(gt=-TOO_LARGE, lt=TOO_LARGE)]
Value = Annotated[Number | None, BeforeValidator(_value)]
Price = Annotated[Annotated[float, Field(ge=0, lt=TOO_LARGE)] | None, BeforeValidator(_price)]
Age = Annotated[float | None, BeforeValidator(_age)]
Part = Annotated[str, Field(min_length=1, max_length=MOST_WORD)]
Words = Annotated[list[Part], Field(max_length=MOST_PARTS), BeforeValidator(_words)]
Property = Annotated[str, Field(min_length=1, max_length=MOST_VALUE)]
WordMap = Annotated[dict[Property, Property], Field(max_length=MOST_PARTS), BeforeValidator(_word_map)]
EventType = Annotated[
    str, Field(json_schema_extra={"enum": list(EVENT_TYPES)}), BeforeValidator(_one_of(EVENT_TYPES))
]
State = Annotated[
    str, Field(json_schema_extra={"enum": list(ITEM_STATES)}), BeforeValidator(_one_of(ITEM_STATES))
]


class Record(BaseModel):
    """A record without fields of its own: unknown fields are refused, and it does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Event(Record):
    """Something that a user did or was shown.

    Attributes:
        event_id: the sender's own number of the event: sent again with the same content it is a duplicate and changes
            nothing, with other content it is refused.
        sender: who tells of it; two senders may use the same numbers.
        user_id, item_id: who and what.
        type: one of ``dataset.contracts.EVENT_TYPES``.
        event_time: when it happened; None: when it was received (an import has to say).
        query_id, request_id, position: the query, the slate and the 0-based position in it.
        value: the rating, of a rating event.
    """

    event_id: Id
    sender: Word = ""
    user_id: Id
    item_id: Id
    type: EventType
    event_time: Moment | None = None
    query_id: Id | None = None
    request_id: Id | None = None
    position: Place | None = None
    value: Value = None

    @property
    def key(self) -> int:
        """The id that it is stored under."""
        return event_key(self.sender, self.event_id)

    @model_validator(mode="after")
    def _ratings_and_only_they_have_a_value(self) -> Event:
        if (self.type == "rating") != (self.value is not None):
            raise broken(Rule.NO_VALUE if self.type == "rating" else Rule.NO_RATING)
        return self


class Item(Record):
    """A product as it is received while the service runs.

    Such an item is found by its vector alone, so it needs a title or a picture; an imported one may have neither, it
    is known by the behaviour around it.

    Attributes:
        item_id: of a new item, or of the item to replace.
        title, description, category (broadest part first), attributes, price: as in ``dataset.contracts.ITEMS``.
        spu: product code; None: the item's own id.
        image_base64: an encoded picture, see ``dataset.pictures``, as base64.
        state: one of ITEM_STATES.
    """

    item_id: Id
    title: Text | None = None
    description: Text | None = None
    category: Words = []
    attributes: WordMap = {}
    price: Price = None
    spu: Id | None = None
    image_base64: Annotated[str, Field(strict=True)] | None = None
    state: State = ACTIVE

    @model_validator(mode="after")
    def _there_is_something_to_encode(self) -> Item:
        if self.image_base64 is None and not self.title:
            raise broken(Rule.NO_CONTENT)
        return self


class ItemState(Record):
    """Whether an item may be answered.

    Attributes:
        state: one of ITEM_STATES.
    """

    state: State


class User(Record):
    """A user, as in ``dataset.contracts.USERS``; an impossible age is none."""

    user_id: Id
    age: Age = None
    segment: Word | None = None
    first_seen: Moment


class Query(Record):
    """What was searched for, as in ``dataset.contracts.QUERIES``: a text, a picture or both."""

    query_id: Id
    text: Word | None = None
    image_id: str | None = None

    @model_validator(mode="after")
    def _something_is_asked(self) -> Query:
        if self.image_id is None and not self.text:
            raise broken(Rule.NO_QUERY)
        return self
