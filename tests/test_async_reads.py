"""What Feast does in a coroutine goes the same way: the newest row wins, and what has expired is not found.

Run: pytest tests/test_async_reads.py
"""

import asyncio
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from store_world import SCHEMA, load, open_store, source_rows, write_source

from moonstore.redis_store import RedisOnlineStoreConfig

pytestmark = pytest.mark.redis


def test_expired_rows_are_not_found_in_a_coroutine_either(redis_server, tmp_path):
    now = datetime.now(UTC)
    table = source_rows(np.random.default_rng(0), 2, entities=2, hours=1).sort_by("item_id")
    stamps = pa.array([now - timedelta(days=9), now - timedelta(hours=1)], pa.timestamp("us", "UTC"))
    table = table.set_column(table.schema.get_field_index("event_timestamp"), "event_timestamp", stamps)
    write_source(tmp_path, table)
    online = RedisOnlineStoreConfig(connection_string=f"127.0.0.1:{redis_server.port},db=8")
    store = open_store(tmp_path, online, ttl=timedelta(days=1))
    load(store, now - timedelta(days=30), now)
    rows = [{"item_id": 0}, {"item_id": 1}]
    features = [f"item:{name}" for name in SCHEMA]
    awaited = asyncio.run(store.get_online_features_async(features=features, entity_rows=rows)).to_dict()
    assert awaited == store.get_online_features(features=features, entity_rows=rows).to_dict()
    assert awaited["vector"][0] is None and awaited["vector"][1] is not None
