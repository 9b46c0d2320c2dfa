"""The canonical tables: pyarrow schemas, vocabularies and the error raised on bad input.

Everything downstream reads these tables only. Ids are int64 and never row numbers; the source's own id is kept in
``external_id``. Times are UTC in microseconds (DuckDB refuses nanoseconds, and datetimes without a zone are a common
cause of silent leaks).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TIME = pa.timestamp("us", tz="UTC")

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("external_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("category", pa.list_(pa.string()), nullable=False),  # path, broadest first; may be empty
        pa.field("attributes", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("price", pa.float32()),  # in the source's own unit
        pa.field("spu", pa.int64(), nullable=False),  # product code: variants of one product share it
        pa.field("image_id", pa.string()),  # content hash, key of IMAGES
        pa.field("first_seen", TIME, nullable=False),
    ]
)
IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # first 16 hex digits of the sha256 of ``bytes``
        pa.field("bytes", pa.binary(), nullable=False),  # an encoded picture, see dataset.pictures
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)
USERS = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("external_id", pa.string(), nullable=False),
        pa.field("age", pa.float32()),  # years
        pa.field("segment", pa.string()),  # the source's own grouping of users
        pa.field("first_seen", TIME, nullable=False),
    ]
)
EVENTS = pa.schema(
    [
        pa.field("event_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("type", pa.string(), nullable=False),  # one of EVENT_TYPES
        pa.field("event_time", TIME, nullable=False),
        pa.field(
            "available_time", TIME, nullable=False
        ),  # when a system could first have used it; > event_time
        pa.field("query_id", pa.int64()),
        pa.field("position", pa.int32()),  # 0-based place in the slate of ``request_id``
        pa.field("request_id", pa.int64()),
        pa.field("value", pa.float32()),  # the rating, for ratings
        # Order of events with equal times (dataset.order); null in a received event: no other has its time.
        pa.field("sequence", pa.int64()),
    ]
)
QUERIES = pa.schema(
    [
        pa.field("query_id", pa.int64(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("image_id", pa.string()),  # an image search; key of IMAGES
        pa.field("external_id", pa.string()),  # null: the source does not name its queries
    ]
)
JUDGEMENTS = pa.schema(
    [
        pa.field("query_id", pa.int64(), nullable=False),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("relevance", pa.float32(), nullable=False),  # 0 irrelevant .. 1 exactly what was asked for
        pa.field("part", pa.string(), nullable=False),  # "train" or "test"
    ]
)
QUARANTINE = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # row number in the source table
        pa.field("value", pa.string(), nullable=False),  # the offending value, as text
    ]
)
SCHEMAS = {
    "items": ITEMS,
    "images": IMAGES,
    "users": USERS,
    "events": EVENTS,
    "queries": QUERIES,
    "judgements": JUDGEMENTS,
}

EVENT_TYPES = ("impression", "click", "cart", "purchase", "rating")
LIKED_RATING = 4.0  # a rating of at least this counts as positive feedback
# Code of an event in a behaviour sequence. 0 is padding; impressions are not behaviours.
BEHAVIOUR_CODES = {"click": 1, "cart": 2, "purchase": 3, "liked": 4, "disliked": 5}
POSITIVE_CODES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Tables:
    """Canonical tables in memory, with the schemas above.

    ``truth`` exists only for the simulated marketplace: event_id int64 of an impression and its true
    click_probability float32. ``propensities`` exists where slates were drawn at random: event_id int64 of an
    impression and the propensity float32 with which its slate showed this item at all. ``extra`` holds the columns
    that nothing else reads, beside the id of their entity: "item", "user", "query" or "event" (``dataset.extra``).
    """

    items: pa.Table
    images: pa.Table
    users: pa.Table
    events: pa.Table
    queries: pa.Table
    judgements: pa.Table
    quarantine: pa.Table
    truth: pa.Table | None = None
    propensities: pa.Table | None = None
    extra: Mapping[str, pa.Table] = field(default_factory=dict)


class DataError(ValueError):
    """Input that breaks the contract; says what was expected and found, how many, the first offenders, what to do."""


def completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A stored canonical table with the columns of ``schema``; those that earlier releases did not write are null."""
    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def behaviour_codes(types: pa.ChunkedArray | pa.Array, values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The code of each event in behaviour sequences; impressions get 0.

    Args:
        types: string, members of EVENT_TYPES.
        values: float32, the rating of rating events, null elsewhere.

    Returns:
        int64 codes of BEHAVIOUR_CODES, same length.
    """
    kind = np.asarray(pc.fill_null(pc.index_in(types, value_set=pa.array(EVENT_TYPES)), len(EVENT_TYPES)))
    codes = np.array([BEHAVIOUR_CODES.get(name, 0) for name in (*EVENT_TYPES, "")])[kind]
    rating = kind == EVENT_TYPES.index("rating")
    if rating.any():
        value = np.asarray(values, np.float64)
        liked = np.nan_to_num(value, nan=0.0) >= LIKED_RATING
        codes[rating & liked] = BEHAVIOUR_CODES["liked"]
        codes[rating & ~liked] = BEHAVIOUR_CODES["disliked"]
    return codes


def content_hash(content: bytes) -> str:
    """Identity of a picture: the first 16 hex digits of the sha256 of its bytes."""
    return hashlib.sha256(content).hexdigest()[:16]
