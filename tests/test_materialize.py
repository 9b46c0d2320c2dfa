"""Materialization writes what Feast would write, keeps the newest row, and survives what it meets.

Run: pytest tests/test_materialize.py
"""

import multiprocessing
import os
import signal
import time
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_world import (
    END,
    ENGINE,
    HOUR,
    START,
    WIDTH,
    StockRedis,
    load,
    online,
    open_store,
    source_rows,
    stored,
    write_source,
)

from moonstore.matrix import read_matrix
from moonstore.redis_store import RedisOnlineStoreConfig

__all__ = ["online"]


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**20), rows=st.sampled_from([0, 1, 700]), created=st.booleans())
def test_equals_feasts_engine_and_store(online, tmp_path, seed, rows, created):
    write_source(tmp_path, source_rows(np.random.default_rng(seed), rows))
    ours = open_store(tmp_path, online(), created=created)
    feasts = open_store(tmp_path, online(stock=True), "local", created)
    report = load(ours)
    feasts.materialize(START, END, feature_views=["item"])
    assert stored(ours) == stored(feasts)
    items = len({one for one in stored(ours)["item_id"] if one < 40}) if rows > 1 else rows
    assert report.rows == report.written <= items and not report.refused


@pytest.mark.redis
def test_redis_holds_the_very_bytes_that_feast_writes(tmp_path, redis_server):
    write_source(tmp_path, source_rows(np.random.default_rng(0), 3000, entities=1500))
    hashes = []
    for database, config, engine in ((6, RedisOnlineStoreConfig, ENGINE), (7, StockRedis, "local")):
        address = f"127.0.0.1:{redis_server.port},db={database}"
        store = open_store(tmp_path, config(connection_string=address), engine, project="bytes")
        store.materialize(START, END, feature_views=["item"])
        client = redis.Redis(port=redis_server.port, db=database)
        hashes.append({key: client.hgetall(key) for key in client.keys("*")})
    assert len(hashes[0]) > 1000 and hashes[0] == hashes[1]


def test_bad_rows_are_set_aside_with_a_reason_and_the_others_arrive(online, tmp_path):
    table = source_rows(np.random.default_rng(0), 8, entities=8, hours=1)
    table = table.sort_by("item_id")

    def put(name, row, value):
        nonlocal table
        column = table.column(name).to_pylist()
        column[row] = value
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(column, table.schema.field(name).type))

    put("item_id", 0, None)
    put("vector", 1, [0.0] * (WIDTH + 1))
    put("vector", 2, [float("nan")] * WIDTH)
    put("vector", 3, [None] * WIDTH)
    put("price", 4, float("inf"))
    put("event_timestamp", 5, None)
    put("event_timestamp", 6, datetime(2126, 1, 1, tzinfo=UTC))
    write_source(tmp_path, table)
    store = open_store(tmp_path, online())
    report = load(store, end=datetime(2127, 1, 1, tzinfo=UTC))
    assert report.refused == {
        "item_id is null": 1,
        f"vector is not of width {WIDTH}": 1,
        "vector has NaN, infinity or null inside": 2,
        "price is infinite": 1,
        "event_timestamp is null": 1,
        "event_timestamp is in the future": 1,
    }
    assert (report.rows, report.written) == (8, 1)
    dead = pq.read_table(tmp_path / report.dead_letter)
    assert dead.num_rows == 7 and dead.column_names[-1] == "reason"
    found = read_matrix(store, "item", np.arange(8), ["vector"]).found
    assert found.tolist() == [False] * 7 + [True]
    put("item_id", 0, 0)
    write_source(tmp_path, table.slice(0, 1))
    assert load(store).dead_letter == "" and not list((tmp_path / "data" / "dead_letter").iterdir())


def test_rows_that_came_late_arrive_and_running_again_changes_nothing(online, tmp_path):
    rows = source_rows(np.random.default_rng(1), 400, hours=100).sort_by("event_timestamp")
    late = np.random.default_rng(2).random(400) < 0.2
    write_source(tmp_path, rows.filter(pa.array(~late)))
    store = open_store(tmp_path, online())
    load(store, end=START + 99 * HOUR)
    write_source(tmp_path, rows)
    store.materialize_incremental(END, feature_views=["item"])
    whole = open_store(tmp_path, online())
    load(whole, START + 51 * HOUR)  # what an overlap of two days reaches
    newest = {}
    for row in rows.to_pylist():
        if row["event_timestamp"] >= START + 51 * HOUR:
            newest[row["item_id"]] = row["number"]
    before = stored(store)
    assert {i: n for i, n in zip(before["item_id"], before["number"], strict=True) if i in newest} == newest
    for start, end in ((START, END), (START + 10 * HOUR, START + 20 * HOUR), (START, START + 30 * HOUR)):
        load(store, start, end)
        assert stored(store) == before


def _load_apart(folder, online, project):
    load(open_store(folder, online, project=project))


def test_a_kill_at_any_moment_and_a_second_run_leave_what_one_run_leaves(online, tmp_path):
    write_source(tmp_path, source_rows(np.random.default_rng(3), 20_000, entities=20_000, hours=2))
    whole = open_store(tmp_path, online())
    load(whole)
    expected = stored(whole, range(0, 20_000, 7))
    config, context = online(), multiprocessing.get_context("spawn")
    for wait_s in (2.5, 3.5):
        process = context.Process(target=_load_apart, args=(tmp_path, config, "killed"))
        process.start()
        process.join(wait_s)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        time.sleep(0.1)
    again = open_store(tmp_path, config, project="killed")
    load(again)
    assert stored(again, range(0, 20_000, 7)) == expected
