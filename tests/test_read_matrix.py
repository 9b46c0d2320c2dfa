"""Columns read from the online store are what Feast's own client reads, bit for bit, on SQLite and on Redis.

Run: pytest tests/test_read_matrix.py
"""

from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np
import pandas as pd
import pytest
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moonstore.connection import Address, command
from moonstore.duckdb_store import DuckDBOfflineStoreConfig
from moonstore.matrix import by_feast, matrix_reader, read_matrix
from moonstore.redis_store import RedisOnlineStoreConfig, address_of
from moonstore.resp import Hmgets, all_alike, all_together, by_hiredis, one_by_one
from moonstore.sqlite_store import SqliteOnlineStoreConfig

ITEM = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
SCHEMA = {
    "number": Int64,
    "small": Int32,
    "price": Float32,
    "rate": Float64,
    "sold": Bool,
    "title": String,
    "vector": Array(Float32),
    "recent": Array(Int64),
    "names": Array(String),
    "seen": UnixTimestamp,
}
NUMBER = count()


def item_views(folder):
    return [
        FeatureView(
            name=name,
            entities=[ITEM],
            ttl=timedelta(0),
            schema=[Field(name="item_id", dtype=Int64), *(Field(name=n, dtype=d) for n, d in schema.items())],
            source=FileSource(path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp"),
        )
        for name, schema in (("wide", SCHEMA), ("narrow", {"shown": Int64}))
    ]


def open_store(folder, online):
    config = RepoConfig(
        project=f"matrix{next(NUMBER)}",
        provider="local",
        registry=str(folder / f"registry{next(NUMBER)}.db"),
        offline_store=DuckDBOfflineStoreConfig(),
        online_store=online,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply([ITEM, *item_views(folder)])
    return store


@pytest.fixture(scope="module", params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def stores(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    if request.param == "sqlite":
        return lambda: open_store(folder, SqliteOnlineStoreConfig(path=str(folder / f"{next(NUMBER)}.db")))
    port = request.getfixturevalue("redis_server").port
    return lambda: open_store(folder, RedisOnlineStoreConfig(connection_string=f"127.0.0.1:{port},db=3"))


def random_rows(rng, ids):
    """Rows with nulls, ragged lists, long and empty strings, and extreme numbers."""
    n = len(ids)
    extremes = np.array([0, 1, -1, 2**31, -(2**63), 2**63 - 1])

    def holes(values):
        return [None if hole else value for value, hole in zip(values, rng.random(n) < 0.2, strict=True)]

    width = int(rng.integers(1, 200))
    return pd.DataFrame(
        {
            "item_id": ids,
            "number": pd.array(holes(rng.choice(np.array([0, 1, -1, 2**52, -(2**52)]), n).tolist()), "Int64"),
            "small": pd.array(holes(rng.integers(-(2**31), 2**31, n).tolist()), "Int32"),
            "price": holes(rng.normal(size=n).astype(np.float32)),
            "rate": holes(rng.choice([0.0, -0.0, 1e300, np.inf], n)),
            "sold": pd.array(holes((rng.random(n) < 0.5).tolist()), "boolean"),
            "title": holes(["é" * int(k) for k in rng.choice([0, 1, 63, 64, 300], n)]),
            "vector": holes([rng.normal(size=width).astype(np.float32) for _ in ids]),
            "recent": holes([rng.choice(extremes, int(k)) for k in rng.integers(0, 5, n)]),
            "names": holes([[f"n{k}" for k in range(int(k))] for k in rng.integers(0, 4, n)]),
            "seen": pd.to_datetime(rng.integers(0, 2**31, n), unit="s", utc=True),
            "event_timestamp": pd.to_datetime(
                rng.choice([10**9, 1_700_000_000_123_456, 2**28 * 10**6], n), unit="us", utc=True
            ),
        }
    )


def assert_same(left, right):
    assert left.found.tolist() == right.found.tolist()
    assert left.event_us.tolist() == right.event_us.tolist()
    assert list(left.columns) == list(right.columns)
    for name, column in left.columns.items():
        other = right.columns[name]
        assert column.valid.tolist() == other.valid.tolist(), name
        assert column.values.dtype == other.values.dtype and column.values.shape == other.values.shape, name
        for one, two in zip(column.values, other.values, strict=True):
            if column.values.dtype == object:
                assert np.array_equal(one, two), name
            else:
                assert one.tobytes() == two.tobytes(), name


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**20), rows=st.sampled_from([1, 30, 200]))
def test_equals_feasts_client(stores, seed, rows):
    rng = np.random.default_rng(seed)
    store = stores()
    ids = np.unique(rng.integers(-(2**63), 2**63 - 1, rows))
    store.write_to_online_store("wide", df=random_rows(rng, ids))
    narrow = {
        "item_id": ids[: rows // 2 + 1],
        "shown": 7,
        "event_timestamp": datetime(2026, 1, 1, tzinfo=UTC),
    }
    store.write_to_online_store("narrow", df=pd.DataFrame(narrow))
    asked = np.concatenate([rng.permutation(ids), rng.choice(ids, 3), [5, 6]])
    features = list(rng.permutation(list(SCHEMA))[: int(rng.integers(1, len(SCHEMA) + 1))])
    views = [
        (store.get_feature_view(name), some) for name, some in (("wide", features), ("narrow", ["shown"]))
    ]
    for one, (view, names) in zip(matrix_reader(store, views)(asked), views, strict=True):
        assert_same(one, by_feast(store, view, asked, names))
        assert one.found.any() and not one.found[-2:].any()


def test_a_feature_that_a_view_does_not_have_is_named(stores):
    store = stores()
    with pytest.raises(KeyError, match="wide has no features \\['nonsense'\\]"):
        read_matrix(store, "wide", np.array([1]), ["nonsense"])


@pytest.mark.parametrize("extra", ["ssl=true", "socket_timeout=1", "127.0.0.1:7001"])
def test_where_the_wire_does_not_apply_feasts_client_reads(redis_server, tmp_path, extra):
    plain = f"127.0.0.1:{redis_server.port},db=4"
    assert address_of(RedisOnlineStoreConfig(connection_string=plain)) == Address(
        "127.0.0.1", redis_server.port, 4
    )
    assert address_of(RedisOnlineStoreConfig(connection_string=f"{plain},{extra}")) is None
    if extra == "socket_timeout=1":
        store = open_store(tmp_path, RedisOnlineStoreConfig(connection_string=f"{plain},{extra}"))
        store.write_to_online_store("wide", df=random_rows(np.random.default_rng(0), np.arange(9)))
        assert store._get_provider().online_store.matrix_reader(store.config, []) is None
        assert read_matrix(store, "wide", np.array([1, 99]), ["vector"]).found.tolist() == [True, False]


@given(
    st.lists(st.lists(st.none() | st.binary(max_size=40), min_size=2, max_size=2), min_size=1, max_size=20)
)
def test_replies_are_taken_apart_whatever_the_values_hold(rows):
    rows = [*rows, [b"\r\n*2\r\n$1\r\n", b"$-1\r\n\r\n"], [b"\r", b"\n"]]
    parts = [
        b"*2\r\n" + b"".join(b"$-1\r\n" if v is None else b"$%d\r\n%s\r\n" % (len(v), v) for v in row)
        for row in rows
    ]
    reply = np.frombuffer(b"".join(parts), np.uint8)
    for apart in (one_by_one, all_together):
        found = [field.values() for field in apart(reply, len(rows), 2)]
        assert found == [[row[place] for row in rows] for place in range(2)]
    found = by_hiredis(reply, len(rows), 2)
    assert [list(field) for field in found] == [[row[place] for row in rows] for place in range(2)]
    for apart in (one_by_one, all_together, by_hiredis):
        for wrong in (reply[:-3], reply[4:], np.append(reply, reply), reply[:0]):
            assert apart(wrong, len(rows), 2) is None


@given(st.lists(st.binary(min_size=9, max_size=9) | st.just(b"\r\n$3\r\n\r\n*"), min_size=1, max_size=20))
def test_replies_of_one_shape_are_taken_apart_at_a_stroke(values):
    reply = b"".join(b"*3\r\n$4\r\n%s\r\n$-1\r\n$5\r\n%s\r\n" % (v[:4], v[4:]) for v in values)
    array = np.frombuffer(reply, np.uint8)
    first, none, second = all_alike(array, len(values), 3)
    assert first.groups()[0][1].tobytes() == b"".join(v[:4] for v in values)
    assert second.groups()[0][1].tobytes() == b"".join(v[4:] for v in values)
    assert (none.length == -1).all()
    other = np.frombuffer(reply.replace(b"*3\r\n$4", b"*3\r\n$5", 1), np.uint8)
    assert all_alike(other, len(values), 3) is None


def test_anything_else_is_refused():
    reply = np.frombuffer(b"-ERR unknown command\r\n" * 9, np.uint8)
    for rows in (1, 9):
        with pytest.raises(
            redis.exceptions.ResponseError, match="expected . answers of 2 values, found '-ERR"
        ):
            Hmgets([b"a", b"b"]).columns(reply, rows)


def test_the_message_is_one_command_after_the_other():
    ids = np.array([0, 1, -5, 2**62])
    keys = [b"k" + number.astype("<i8").tobytes() + b"p" for number in ids]
    commands = Hmgets([b"a", b"bc"], lambda one: b"k" + one.to_bytes(8, "little", signed=True) + b"p")
    sent = commands.message(ids)
    assert sent == b"".join(command(b"HMGET", key, b"a", b"bc") for key in keys)
