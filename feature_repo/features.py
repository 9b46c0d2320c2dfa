"""The features of users, items and queries: plain Feast objects, to read and to change.

Rows are stamped with the time they became available. Windows of statistics end at the row's stamp, a midnight UTC.
A tag of a ``Field`` says how models read it where its type does not (``feature_repo.feature_tags``); the services
that name these features are in ``feature_repo.services``. Views of your own go into ``feature_repo/mine``.
"""

from datetime import timedelta

from feast import FeatureView, Field, PushSource
from feast.types import Array, Float32, Int64, String

from feature_repo.entities import item, query, user
from feature_repo.sources import source

FOREVER = timedelta(0)
# Oldest statistics used at the time of a request, in training and serving alike. A row is written only when a count
# changes, so an old row is still exact; a limit under 28 days would drop the statistics of rarely shown items.
STATISTICS_TTL = FOREVER
CATEGORY = {"kind": "category"}
TIMESTAMP = {"kind": "timestamp"}
LOG = {"transform": "log"}
NONE = {"null": "0"}  # no row yet: shown and liked never, seen just now

# Rows pushed here are online at once: ``store.push("item_profile_push", rows)``.
item_profile_push = PushSource(name="item_profile_push", batch_source=source("item_profile"))

item_profile = FeatureView(
    name="item_profile",
    entities=[item],
    ttl=FOREVER,
    schema=[
        Field(name="item_id", dtype=Int64),
        Field(name="category", dtype=String),
        Field(name="category_top", dtype=String),
        Field(name="spu", dtype=Int64, tags=CATEGORY),
        Field(name="price", dtype=Float32, tags=LOG),
        Field(name="attributes", dtype=Array(String)),
        Field(name="first_seen_us", dtype=Int64, tags={**TIMESTAMP, **NONE}),
    ],
    source=item_profile_push,
    description="Catalogue data of an item, available from the time it was first seen.",
)

item_stats = FeatureView(
    name="item_stats",
    entities=[item],
    ttl=STATISTICS_TTL,
    schema=[
        Field(name="item_id", dtype=Int64),
        Field(name="shown_7d", dtype=Int64, tags=NONE),
        Field(name="positive_7d", dtype=Int64, tags=NONE),
        Field(name="shown_28d", dtype=Int64, tags=NONE),
        Field(name="positive_28d", dtype=Int64, tags=NONE),
        Field(name="shown_all", dtype=Int64, tags=NONE),
        Field(name="positive_all", dtype=Int64, tags=NONE),
        Field(name="rate_all", dtype=Float32),
    ],
    source=source("item_stats"),
    description="How often an item was shown and liked in the windows ending at the row's midnight.",
)

user_profile = FeatureView(
    name="user_profile",
    entities=[user],
    ttl=FOREVER,
    schema=[
        Field(name="user_id", dtype=Int64),
        Field(name="age_band", dtype=Int64, tags=CATEGORY),
        Field(name="segment", dtype=String),
    ],
    source=source("user_profile"),
    description="Profile of a user: decade of age (-1 unknown) and the source's own grouping.",
)

query_stats = FeatureView(
    name="query_stats",
    entities=[query],
    ttl=STATISTICS_TTL,
    schema=[
        Field(name="query_id", dtype=Int64),
        Field(name="query_shown_7d", dtype=Int64),
        Field(name="query_positive_7d", dtype=Int64),
        Field(name="query_shown_28d", dtype=Int64),
        Field(name="query_positive_28d", dtype=Int64),
        Field(name="query_shown_all", dtype=Int64),
        Field(name="query_positive_all", dtype=Int64),
        Field(name="query_rate_all", dtype=Float32),
    ],
    source=source("query_stats"),
    description="How often the query's results were shown and liked in the windows ending at the row's midnight.",
)

# Every frame has the user's behaviours, so no service names the two views below. ``user_events`` points into the
# immutable event log (``feature_repo.event_log``), so that training can cut histories of any length;
# ``user_history`` is its online counterpart, the last behaviours.
user_events = FeatureView(
    name="user_events",
    entities=[user],
    ttl=FOREVER,
    schema=[
        Field(name="user_id", dtype=Int64),
        Field(name="position", dtype=Int64),
        Field(name="log_version", dtype=String),
    ],
    source=source("user_events"),
    description="Number of the user's behaviours in this version of the event log at the row's time.",
)

user_history = FeatureView(
    name="user_history",
    entities=[user],
    ttl=FOREVER,
    schema=[
        Field(name="user_id", dtype=Int64),
        Field(name="recent_item_id", dtype=Array(Int64)),
        Field(name="recent_code", dtype=Array(Int64)),
        Field(name="recent_time_us", dtype=Array(Int64)),
        Field(name="recent_available_us", dtype=Array(Int64)),
        Field(name="recent_event_id", dtype=Array(Int64)),
        Field(name="recent_position", dtype=Int64),
    ],
    source=source("user_history"),
    description="The user's last behaviours, newest last, and how many there were in all.",
)
