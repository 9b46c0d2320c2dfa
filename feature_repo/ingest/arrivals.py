"""Received events: parsed from JSON, bounded by the clock, turned into rows of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

import pyarrow as pa
from pydantic import BaseModel, FailFast, Field, TypeAdapter, ValidationError

from dataset.contracts import EVENTS, DataError
from dataset.json_keys import refuse_repeated_keys
from dataset.records import Event, Rule, first_error
from dataset.shop_ids import ALL_INT64, Kinds
from feature_repo.shop_ids import INT64_IDS, ShopIds
from moonstore.clock import CLOCK_SKEW
from moonstore.freshness import EPOCH, US


class TooManyEvents(DataError):
    """A list of more than MOST_EVENTS."""


MOST_EVENTS = 1000  # per HTTP request; a stream or a file takes any number
# Validation stops at the first invalid event: listing a million faults would take minutes and gigabytes.
EVENT_LIST = TypeAdapter(Annotated[list[Event], Field(max_length=MOST_EVENTS), FailFast()])
Model = TypeVar("Model", bound=BaseModel)


def parsed(model: type[Model], text: bytes | str, kinds: Kinds = ALL_INT64) -> Model:
    """Parse one event, or an instance of another model, from JSON.

    Args:
        model: what to parse.
        text: the JSON.
        kinds: what the shop's ids are.

    Raises:
        DataError: the JSON does not fit the model, or has a key twice.
    """
    try:
        found = model.model_validate_json(text, context=kinds)
    except ValidationError as error:
        what = model.__name__.lower()
        raise DataError(f"expected an {what}, found {first_error(error)}") from None
    refuse_repeated_keys(text)
    return found


def parse_events(text: bytes | str, kinds: Kinds = ALL_INT64) -> list[Event]:
    """Parse a JSON list of at most MOST_EVENTS events of a shop with ids of these kinds.

    Raises:
        TooManyEvents: there are more.
        DataError: place and reason of the first fault; no event of the list is accepted.
    """
    try:
        events = EVENT_LIST.validate_json(text, context=kinds)
    except ValidationError as error:
        one = error.errors(include_url=False, include_context=False, include_input=False)[0]
        refused = TooManyEvents if one["type"] == "too_long" and not one["loc"] else DataError
        raise refused(
            f"expected a list of at most {MOST_EVENTS} valid events, found a list that is not; the first fault is at "
            f"{first_error(error)}. No event was accepted; correct it and send the list again."
        ) from None
    refuse_repeated_keys(text)
    return events


def events_table(events: Sequence[Event], available_us: int, ids: ShopIds = INT64_IDS) -> pa.Table:
    """EVENTS rows of events that arrived together.

    They become available a microsecond apart, so that they keep their order.

    Args:
        events: stored under their ``key``; an event time after the event became available, but within the clock skew,
            is set to just before that.
        available_us: when the first one becomes available, microseconds since 1970 UTC.
        ids: of the store; it remembers those that are new.

    Raises:
        DataError: an event time further in the future, or an id that cannot be told from another inside.
    """
    available = range(available_us, available_us + len(events))
    happened = [None if one.event_time is None else (one.event_time - EPOCH) // US for one in events]
    limit = available_us + CLOCK_SKEW // US
    wrong = [one.event_id for one, us in zip(events, happened, strict=True) if us is not None and us > limit]
    if wrong:
        raise DataError(
            f"{Rule.MOMENT.format('event_time')}: found {len(wrong)} of {len(events)} events later than now "
            f"(event_id {wrong[:3]}). Check the sender's clock."
        )
    columns: dict[str, list] = {
        name: [getattr(one, name) for one in events] for name in ("type", "position", "value")
    }
    for name in ("user_id", "item_id", "query_id", "request_id"):
        columns[name] = ids.keep(name, [getattr(one, name) for one in events])
    columns["event_id"] = [one.key for one in events]
    columns["event_time"] = [
        us - 1 if told is None else min(told, us - 1) for told, us in zip(happened, available, strict=True)
    ]
    columns["available_time"] = list(available)
    columns["sequence"] = [None] * len(events)  # no two events have the same available time
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
