"""Events as they arrive: strict models, so that nothing is read as an id, a time or a type that was not meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import pyarrow as pa
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from dataset.contracts import EVENT_TYPES, EVENTS, DataError
from moonstore.batch import CLOCK_SKEW
from moonstore.freshness import EPOCH, US

Id = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class Event(BaseModel):
    """Something that a user did or was shown.

    Attributes:
        event_id: tells events apart: telling of one again changes nothing.
        user_id, item_id: who and what.
        type: one of ``dataset.contracts.EVENT_TYPES``.
        event_time: when it happened, with a zone; None: when it arrived.
        query_id, request_id, position: the search, the slate, the 0-based place in it.
        value: the rating of a rating.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_id: Id
    user_id: Id
    item_id: Id
    type: Literal["impression", "click", "cart", "purchase", "rating"]
    event_time: AwareDatetime | None = None
    query_id: Id | None = None
    request_id: Id | None = None
    position: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _a_rating_has_a_value(self) -> Event:
        if (self.type == "rating") != (self.value is not None):
            raise ValueError("a rating has a value, and nothing else has")
        return self


assert set(Event.model_fields["type"].annotation.__args__) == set(EVENT_TYPES)  # type: ignore[union-attr]
MOST_EVENTS = 1000  # of one call over HTTP; a stream or a file takes any number
# The first wrong event ends the reading: naming a million faults would take minutes and gigabytes.
SOME = TypeAdapter(Annotated[list[Event], Field(max_length=MOST_EVENTS), FailFast()])
Told = TypeVar("Told", bound=BaseModel)


def parsed(model: type[Told], text: bytes | str) -> Told:
    """One event, or one of whatever else is told of, from JSON.

    Raises:
        DataError: it is none.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        what = model.__name__.lower()
        raise DataError(f"expected an {what}, found {first_error(error)}") from None


def parse_events(text: bytes | str) -> list[Event]:
    """A JSON list of at most MOST_EVENTS events.

    Raises:
        DataError: it is not one; the place and reason of the first fault. None of the events is kept.
    """
    try:
        return SOME.validate_json(text)
    except ValidationError as error:
        raise DataError(
            f"expected a list of at most {MOST_EVENTS} events, found one that is wrong; the first fault is at "
            f"{first_error(error)}. None was kept; mend it and send the list again."
        ) from None


def arrived(events: Sequence[Event], available_us: int) -> pa.Table:
    """EVENTS rows of events that became available at one moment.

    Args:
        events: of distinct ids; one that claims to have happened after that moment is taken to have happened just
            before it, as far as clocks may differ.
        available_us: microseconds since 1970 UTC.

    Raises:
        DataError: an event happened further in the future, or before 1970.
    """
    latest = available_us - 1
    happened = [latest if one.event_time is None else (one.event_time - EPOCH) // US for one in events]
    limit = available_us + CLOCK_SKEW // US
    wrong = [one.event_id for one, us in zip(events, happened, strict=True) if not 0 <= us <= limit]
    if wrong:
        raise DataError(
            f"expected events that happened by now and after 1970, found {len(wrong)} of {len(events)} that did "
            f"not (event_id {wrong[:3]}). Check the sender's clock."
        )
    columns = {
        name: [getattr(one, name) for one in events]
        for name in EVENTS.names
        if name not in ("event_time", "available_time")
    }
    columns["event_time"] = [min(us, latest) for us in happened]
    columns["available_time"] = [available_us] * len(events)
    return table_of(columns)


def table_of(columns: dict[str, list]) -> pa.Table:
    """EVENTS from Python values; times as microseconds since 1970 UTC."""
    return pa.table(
        {
            field.name: pa.array(columns[field.name], pa.int64()).cast(field.type)
            if pa.types.is_timestamp(field.type)
            else pa.array(columns[field.name], field.type)
            for field in EVENTS
        },
        schema=EVENTS,
    )


def first_error(error: ValidationError) -> str:
    """The first thing that is wrong, and where, without what was given."""
    one = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, one["loc"]))
    return f"{place}: {one['msg']}" if place else str(one["msg"])
