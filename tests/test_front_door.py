"""``get_online_features`` answers column by column what Feast's own path answers value by value.

The slow twin is Feast's path through ``online_read``, over the same store: what the front door does when it gives up.
"""

import asyncio
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.feature_server import get_app
from feast.feature_server_utils import convert_response_to_dict
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.redis import RedisOnlineStoreConfig as StockRedis
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType
from hypothesis import given, settings
from hypothesis import strategies as st
from test_moonstore_contract import USER, open_repository, rate, rows, spending, write

from moonstore import keys, redis_store
from moonstore.front_door import FrontDoor
from moonstore.redis_store import RedisOnlineStoreConfig
from moonstore.response import ColumnResponse
from moonstore.sqlite_store import SqliteOnlineStoreConfig

NOW = pd.Timestamp.now(tz="UTC").floor("us")
TYPES = {
    "int32": Int32,
    "int64": Int64,
    "float": Float32,
    "double": Float64,
    "flag": Bool,
    "text": String,
    "raw": Bytes,
    "moment": UnixTimestamp,
    "vector": Array(Float32),
    "wide": Array(Float64),
    "recent": Array(Int64),
    "names": Array(String),
    "flags": Array(Bool),
}
KEYS = {
    "int": {"item_id": Int64},
    "text": {"item_id": String},
    "two": {"shop": String, "item_id": Int64},
}
VALUES = {Int64: ValueType.INT64, String: ValueType.STRING}


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def online(request, tmp_path):
    if request.param == "sqlite":
        return SqliteOnlineStoreConfig(path=str(tmp_path / "online.db"))
    port = request.getfixturevalue("redis_server").port
    return RedisOnlineStoreConfig(connection_string=f"127.0.0.1:{port},db=12")


def entity_rows(kind, ids):
    """Rows of the caller's columns for these numbers."""
    if kind == "int":
        return [{"item_id": one} for one in ids]
    if kind == "text":
        return [{"item_id": f"é-{one}"} for one in ids]
    return [{"item_id": one, "shop": f"s{one % 3}"} for one in ids]


def item_view(name, kind, types, ttl=timedelta(0)):
    entities = [Entity(name=key, join_keys=[key], value_type=VALUES[of]) for key, of in KEYS[kind].items()]
    schema = [Field(name=key, dtype=of) for key, of in (KEYS[kind] | types).items()]
    source = FileSource(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp")
    return FeatureView(name=name, entities=entities, ttl=ttl, schema=schema, source=source), entities


def values(rng, count):
    """Columns of every type with nulls, empties and lists of one or of several lengths."""

    def holes(found):
        return [None if hole else one for one, hole in zip(found, rng.random(count) < 0.15, strict=True)]

    return {
        "int32": pd.array(holes(rng.integers(-(2**31), 2**31, count).tolist()), "Int32"),
        "int64": pd.array(holes(rng.integers(-(2**62), 2**62, count).tolist()), "Int64"),
        "float": holes(rng.normal(size=count).astype(np.float32).tolist()),
        "double": rng.normal(size=count),
        "flag": holes((rng.random(count) < 0.5).tolist()),
        "text": holes([f"ü{n}" * (n % 3) for n in range(count)]),
        "raw": holes([bytes([n % 256]) * (n % 4) for n in range(count)]),
        "moment": [NOW.floor("s") - pd.Timedelta(seconds=int(n)) for n in rng.integers(0, 10**8, count)],
        "vector": list(rng.random((count, 4), dtype=np.float32)),
        "wide": holes([rng.random(n % 3).tolist() for n in range(count)]),
        "recent": holes([rng.integers(0, 2**40, n % 4).tolist() for n in range(count)]),
        "names": holes([["a", "bé"][: n % 3] for n in range(count)]),
        "flags": holes([[True, False][: n % 3] for n in range(count)]),
    }


def both(store, monkeypatch, **request):
    """The front door's answer and Feast's own."""
    fast = store.get_online_features(**request)
    assert isinstance(fast, ColumnResponse)
    with monkeypatch.context() as patch:
        patch.setattr(FrontDoor, "_parts", lambda *_: None)
        slow = store.get_online_features(**request)
    assert not isinstance(slow, ColumnResponse)
    return fast, slow


@pytest.mark.parametrize("kind", KEYS)
def test_every_type_is_answered_as_feast_answers_it(tmp_path, online, monkeypatch, kind):
    rng, count = np.random.default_rng(1), 40
    first, entities = item_view("first", kind, TYPES)
    second, _ = item_view("second", kind, {"score": Float32}, ttl=timedelta(hours=1))
    store = open_repository(tmp_path, online)
    store.apply([*entities, first, second, FeatureService(name="both", features=[first, second])])
    frame = pd.DataFrame(entity_rows(kind, range(count)))
    stamps = NOW - pd.to_timedelta(rng.integers(0, 7200, count), "s")
    some = frame.assign(**values(rng, count), event_timestamp=stamps)
    store.write_to_online_store("first", some[5:])
    store.write_to_online_store("second", frame.assign(score=rng.random(count), event_timestamp=stamps))
    for ids in ([7], [3, 39, 3, 99, 7], list(range(60)), [99]):
        request = {"features": store.get_feature_service("both"), "entity_rows": entity_rows(kind, ids)}
        for full in (False, True):
            fast, slow = both(store, monkeypatch, **request, full_feature_names=full)
            assert fast.to_dict(include_event_timestamps=True) == slow.to_dict(include_event_timestamps=True)
            assert fast.proto == slow.proto
            assert repr(fast.json()) == repr(convert_response_to_dict(slow.proto))
            assert fast.to_arrow().equals(slow.to_arrow().select(fast.to_arrow().column_names))
            pd.testing.assert_frame_equal(fast.to_df(), slow.to_df())
            assert list(fast.to_dict()) == list(slow.to_dict())


@pytest.mark.redis
def test_it_answers_what_feasts_own_store_answers(tmp_path, redis_server, monkeypatch):
    rng, count = np.random.default_rng(2), 30
    address = f"127.0.0.1:{redis_server.port},db=12"
    ours = open_repository(tmp_path, RedisOnlineStoreConfig(connection_string=address))
    stock = open_repository(tmp_path, StockRedis(connection_string=address))
    view, entities = item_view("item", "two", TYPES)
    ours.apply([*entities, view])
    frame = pd.DataFrame(entity_rows("two", range(count))).assign(event_timestamp=NOW, **values(rng, count))
    stock.write_to_online_store("item", frame)
    request = {"features": [f"item:{name}" for name in TYPES], "entity_rows": entity_rows("two", [4, 2, 29])}
    fast, other = ours.get_online_features(**request), stock.get_online_features(**request)
    assert fast.to_dict(True) == other.to_dict(True) and fast.proto == other.proto
    monkeypatch.setattr(redis_store, "AT_ONCE", 2)  # several messages
    assert ours.get_online_features(**request).to_dict(True) == other.to_dict(True)
    entityless = {"features": request["features"], "entity_rows": {"item_id": [4], "shop": ["s1"]}}
    assert (
        ours.get_online_features(**entityless).to_dict() == stock.get_online_features(**entityless).to_dict()
    )


def test_on_demand_features_aliases_and_asynchronous_reads_are_the_same(tmp_path, online, monkeypatch):
    write(tmp_path, rows())
    store = open_repository(tmp_path, online)
    store.apply([USER, spending(), rate()])
    store.write_to_online_store("spending", rows([1, 2], [0, 0]))
    request = {
        "features": ["spending:spent", "derived:total"],
        "entity_rows": [{"user_id": one, "fee": 1.0} for one in (2, 1, 9)],
    }
    answer = store.get_online_features(**request)
    expected = {"user_id": [2, 1, 9], "spent": [1.5, 0.5, None], "total": [2.5, 1.5, None]}
    assert {name: list(map(_null, found)) for name, found in answer.to_dict().items()} == expected
    read = store.get_online_features_async(["spending:spent"], [{"user_id": 2}, {"user_id": 9}])
    assert asyncio.run(read).to_dict() == {"user_id": [2, 9], "spent": [1.5, None]}
    view = store.get_feature_view("spending").with_name("bought").with_join_key_map({"user_id": "buyer"})
    store.apply(FeatureService(name="pair", features=[view]))
    fast, slow = both(
        store,
        monkeypatch,
        features=store.get_feature_service("pair"),
        entity_rows=[{"buyer": 2}],
        full_feature_names=True,
    )
    assert fast.to_dict()["bought__spent"] == [1.5]
    assert fast.to_dict() == slow.to_dict() and fast.proto == slow.proto


def _null(value):
    return None if value is None or value != value else value


def test_what_feast_refuses_is_refused_alike(tmp_path, online, monkeypatch):
    store = open_repository(tmp_path, online)
    view, entities = item_view("item", "two", {"score": Float32})
    store.apply([*entities, view])
    wrong = (
        [{"item_id": 1}],
        [{"item_id": 1, "shop": "a"}, {"item_id": 2}],
        [{"item_id": None, "shop": "a"}],
        [{"item_id": "one", "shop": "a"}],
        {"item_id": [], "shop": []},
        {"item_id": [1, 2], "shop": ["a"]},
    )
    for rows_ in wrong:
        told = []
        for fast in (True, False):
            with monkeypatch.context() as patch:
                if not fast:
                    patch.setattr(FrontDoor, "_parts", lambda *_: None)
                try:
                    told.append(store.get_online_features(["item:score"], rows_).to_dict())
                except Exception as error:
                    told.append(type(error))
        assert told[0] == told[1], rows_


def test_the_server_answers_what_it_answers_without_the_front_door(tmp_path, online, monkeypatch):
    rng = np.random.default_rng(3)
    store = open_repository(tmp_path, online)
    view, entities = item_view("item", "text", TYPES)
    store.apply([*entities, view])
    frame = pd.DataFrame(entity_rows("text", range(9)))
    store.write_to_online_store("item", frame.assign(event_timestamp=NOW, **values(rng, 9)))
    body = {"features": [f"item:{name}" for name in TYPES], "entities": {"item_id": ["é-1", "é-5", "none"]}}
    client = TestClient(get_app(store))
    fast = client.post("/get-online-features", json=body)
    monkeypatch.setattr(FrontDoor, "_parts", lambda *_: None)
    slow = client.post("/get-online-features", json=body)
    assert fast.status_code == 200 and fast.json() == slow.json()


TEXT = st.text(st.characters(codec="utf-8"), max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), TEXT, TEXT), min_size=1, max_size=5),
    st.permutations(["b_id", "a", "çc"]),
)
def test_keys_are_serialized_as_feast_does(rows_, names):
    columns = list(zip(*rows_, strict=True))
    protos = [
        [Value(int64_val=one) for one in columns[0]],
        [Value(string_val=one) for one in columns[1]],
        [Value(string_val=one) for one in columns[2]],
    ]
    expected = [
        serialize_entity_key(EntityKey(join_keys=names, entity_values=row), 3)
        for row in zip(*protos, strict=True)
    ]
    natives = {name: keys.natives(column) for name, column in zip(names, protos, strict=True)}
    assert keys.of_natives(natives) == expected
    arrow = [pa.array(columns[0], pa.int64()), *(pa.array(one, pa.string()) for one in columns[1:])]
    assert keys.of_arrow(names, arrow, ["int64", "string", "string"]) == expected
