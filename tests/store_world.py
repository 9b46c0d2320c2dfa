"""A feature store of one view over a file the test writes, on SQLite or on a real Redis."""

from datetime import UTC, datetime, timedelta
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStoreConfig as StockRedis
from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig as StockSqlite
from feast.types import Array, Bool, Float32, Float64, Int64, String
from feast.value_type import ValueType

from moonstore.duckdb_store import DuckDBOfflineStoreConfig
from moonstore.engine import Report
from moonstore.redis_store import RedisOnlineStoreConfig
from moonstore.sqlite_store import SqliteOnlineStoreConfig

ITEM = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
ENGINE = {"type": "moonstore.engine.ArrowComputeEngine"}
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


def item_view(folder, created, ttl):
    fields = [Field(name=name, dtype=dtype) for name, dtype in SCHEMA.items() if name != "vector"]
    fields.append(Field(name="vector", dtype=SCHEMA["vector"], vector_index=True, vector_length=WIDTH))
    source = FileSource(
        path=str(folder / "data" / "item.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created" if created else "",
    )
    schema = [Field(name="item_id", dtype=Int64), *fields]
    return FeatureView(name="item", entities=[ITEM], ttl=ttl, schema=schema, source=source)


def open_store(folder, online, engine=ENGINE, created=False, project=None, ttl=timedelta(0)):
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
    store.apply([ITEM, item_view(folder, created, ttl)])
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
