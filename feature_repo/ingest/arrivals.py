"""Received events: strict models, so that no value is coerced into an id, a time or a type by accident."""

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
        event_id: identity of the event: one that is sent again is a duplicate and changes nothing.
        user_id, item_id: who and what.
        type: one of ``dataset.contracts.EVENT_TYPES``.
        event_time: when it happened, with a time zone; None: when it was received.
        query_id, request_id, position: the query, the slate and the 0-based position in it.
        value: the rating, of a rating event.
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
            raise ValueError("expected a value on a rating and on no other event")
        return self


assert set(Event.model_fields["type"].annotation.__args__) == set(EVENT_TYPES)  # type: ignore[union-attr]
MOST_EVENTS = 1000  # per HTTP request; a stream or a file takes any number
# Validation stops at the first invalid event: listing a million faults would take minutes and gigabytes.
EVENT_LIST = TypeAdapter(Annotated[list[Event], Field(max_length=MOST_EVENTS), FailFast()])
Model = TypeVar("Model", bound=BaseModel)


def parsed(model: type[Model], text: bytes | str) -> Model:
    """Parse one event, or an instance of another model, from JSON.

    Raises:
        DataError: the JSON does not fit the model.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        what = model.__name__.lower()
        raise DataError(f"expected an {what}, found {first_error(error)}") from None


def parse_events(text: bytes | str) -> list[Event]:
    """Parse a JSON list of at most MOST_EVENTS events.

    Raises:
        DataError: place and reason of the first fault; no event of the list is accepted.
    """
    try:
        return EVENT_LIST.validate_json(text)
    except ValidationError as error:
        raise DataError(
            f"expected a list of at most {MOST_EVENTS} valid events, found a list that is not; the first fault is at "
            f"{first_error(error)}. No event was accepted; correct it and send the list again."
        ) from None


def events_table(events: Sequence[Event], available_us: int) -> pa.Table:
    """EVENTS rows of events that became available at one moment.

    Args:
        events: of distinct ids; an event time after that moment, but within the clock skew, is set to just before it.
        available_us: microseconds since 1970 UTC.

    Raises:
        DataError: an event time further in the future, or before 1970.
    """
    latest = available_us - 1
    happened = [latest if one.event_time is None else (one.event_time - EPOCH) // US for one in events]
    limit = available_us + CLOCK_SKEW // US
    wrong = [one.event_id for one, us in zip(events, happened, strict=True) if not 0 <= us <= limit]
    if wrong:
        raise DataError(
            f"expected event times between 1970 and now, found {len(wrong)} of {len(events)} outside "
            f"(event_id {wrong[:3]}). Check the sender's clock."
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
    """Place and reason of the first validation error, without the offending value."""
    one = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, one["loc"]))
    return f"{place}: {one['msg']}" if place else str(one["msg"])
