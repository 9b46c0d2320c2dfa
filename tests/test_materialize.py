"""Materialization writes what Feast would write, keeps the newest row, and survives what it meets.

Run: pytest tests/test_materialize.py
"""

import multiprocessing
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStoreConfig as StockRedis
from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig as StockSqlite
from feast.types import Array, Bool, Float32, Float64, Int64, String
from feast.value_type import ValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset.contracts import DataError
from feature_repo.duckdb_store import DuckDBOfflineStoreConfig
from feature_repo.engine import Report
from feature_repo.matrix import read_matrix
from feature_repo.redis_store import RedisOnlineStoreConfig
from feature_repo.sqlite_store import SqliteOnlineStoreConfig

ITEM = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
ENGINE = {"type": "feature_repo.engine.ArrowComputeEngine"}
SCHEMA = {
    "number": Int64,
    "price": Float32,
    "rate": Float64,
    "sold": Bool,
    "title": String,
    "recent": Array(Int64),
    "names": Array(String),
    "vector": Array(Float32),
}
START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
END = START + 1000 * HOUR
WIDTH = 8
NUMBER = count()


def item_view(folder, created):
    fields = [Field(name=name, dtype=dtype) for name, dtype in SCHEMA.items() if name != "vector"]
    fields.append(Field(name="vector", dtype=SCHEMA["vector"], vector_index=True, vector_length=WIDTH))
    source = FileSource(
        path=str(folder / "data" / "item.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created" if created else "",
    )
    schema = [Field(name="item_id", dtype=Int64), *fields]
    return FeatureView(name="item", entities=[ITEM], ttl=timedelta(0), schema=schema, source=source)


def open_store(folder, online, engine=ENGINE, created=False, project=None):
    config = RepoConfig(
        project=project or f"load{next(NUMBER)}",
        provider="local",
        registry=str(folder / f"registry{next(NUMBER)}.db"),
        offline_store=DuckDBOfflineStoreConfig(),
        online_store=online,
        batch_engine=engine,
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    store.apply([ITEM, item_view(folder, created)])
    return store


def source_rows(rng, rows, entities=40, hours=900):
    """Random rows; (item, hour) is unique. Integers are those a float holds: with nulls Feast rounds others."""
    pair = rng.choice(entities * hours, rows, replace=False)

    def holes(values):
        return [None if hole else value for value, hole in zip(values, rng.random(rows) < 0.1, strict=True)]

    return pa.table(
        {
            "item_id": pa.array(pair // hours, pa.int64()),
            "number": pa.array(holes(rng.integers(-(2**52), 2**52, rows).tolist()), pa.int64()),
            "price": pa.array(holes(rng.normal(size=rows).tolist()), pa.float32()),
            "rate": pa.array(holes(rng.normal(size=rows).tolist()), pa.float64()),
            "sold": pa.array(holes((rng.random(rows) < 0.5).tolist()), pa.bool_()),
            "title": pa.array(holes([f"é{n}" for n in range(rows)]), pa.string()),
            "recent": pa.array(
                holes([rng.integers(0, 2**40, n % 4).tolist() for n in range(rows)]), pa.list_(pa.int64())
            ),
            "names": pa.array(holes([["a"] * (n % 3) for n in range(rows)]), pa.list_(pa.string())),
            "vector": pa.array(rng.normal(size=(rows, WIDTH)).tolist(), pa.list_(pa.float32())),
            "event_timestamp": stamps(pair % hours),
            "created": stamps(pair % hours + 1),
        }
    )


def stamps(hours):
    return pa.array(
        [None if hour is None else START + int(hour) * HOUR for hour in hours], pa.timestamp("us", "UTC")
    )


def write_source(folder, table):
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(table, folder / "data" / "item.parquet")


def load(store, start=START, end=END):
    store.materialize(start, end, feature_views=["item"])
    return Report.load(store.config.repo_path, "item")


def stored(store, ids=range(41)):
    """Every feature of every item as Feast's own client reads it."""
    rows = [{"item_id": int(one)} for one in ids]
    answer = store.get_online_features(
        features=[f"item:{name}" for name in SCHEMA], entity_rows=rows
    ).to_dict()
    return {name: answer[name] for name in ("item_id", *SCHEMA)}


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def online(request, tmp_path):
    """Makes the configuration of an empty online store, ours or Feast's."""
    if request.param == "sqlite":
        return lambda stock=False: (StockSqlite if stock else SqliteOnlineStoreConfig)(
            path=str(tmp_path / f"online{next(NUMBER)}.db")
        )
    port = request.getfixturevalue("redis_server").port
    return lambda stock=False: (StockRedis if stock else RedisOnlineStoreConfig)(
        connection_string=f"127.0.0.1:{port},db=5"
    )


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


@pytest.mark.parametrize("created", [False, True])
def test_the_newest_row_stays_whatever_comes_after_it(online, tmp_path, created):
    write_source(tmp_path, source_rows(np.random.default_rng(0), 10))
    store = open_store(tmp_path, online(), created=created)

    def push(number, hour, made):
        row = {"item_id": [7], "event_timestamp": [START + hour * HOUR], "created": [START + made * HOUR]}
        values = {"price": 0.5, "rate": 0.5, "sold": True, "title": "t", "recent": [1], "names": ["a"]}
        row |= {name: [value] for name, value in values.items()}
        row |= {"number": [number], "vector": [np.zeros(WIDTH, np.float32)]}
        store.write_to_online_store("item", df=pd.DataFrame(row))
        return stored(store, [7])["number"][0]

    assert push(1, hour=5, made=5) == 1
    assert push(2, hour=4, made=9) == 1  # older, though made later
    assert push(3, hour=5, made=6) == 3  # a correction
    assert push(4, hour=5, made=5) == (3 if created else 4)  # an older correction, where that is known
    assert push(5, hour=6, made=1) == 5
    with pytest.raises(DataError, match="item: expected event times by now, found 1 of 1 in the future"):
        push(6, hour=24 * 365 * 100, made=1)
    assert stored(store, [7])["number"] == [5]


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
