"""Online reads from Redis: our column reader compared with Feast's client and with the least a client can do.

This floor is one MGET of packed bytes for items and one HGETALL for a user: no schema, types or times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.infra.online_stores.helpers import _redis_key
from feast.infra.online_stores.redis import RedisOnlineStoreConfig as StockRedis
from feast.types import Array, FeastType, Float32, Int64
from feast.value_type import ValueType

from evaluation.bench.lines import FEAST, OURS, Drawn, Line, line, line_below, ratio
from evaluation.bench.local_redis import RedisServer
from moonstore.matrix import entity_keys, matrix_reader
from moonstore.redis_store import RedisOnlineStoreConfig

ITEMS, ASKED, WIDTH, HISTORY = 20_000, 500, 128, 200
SCALARS = [f"scalar_{number}" for number in range(6)]
SEQUENCES = ["recent_item_id", "recent_code", "recent_time_us"]
CPU_GOAL, ITEM_WALL_GOAL, USER_WALL_GOAL = 20.0, 2.0, 1.5
NOW = pd.Timestamp("2026-01-01", tz="UTC")


def bench_read(folder: Path, items: int = ITEMS, repeats: int = 100) -> Iterator[Line]:
    """Read ``ASKED`` of ``items`` items, then one user, with each side in turn.

    Args:
        folder: for the registry.
        items: number of items stored.
        repeats: repetitions of every read; the median is reported.

    Raises:
        AssertionError: the sides return different values.
    """
    with RedisServer() as server:
        client, rng = server.client(), np.random.default_rng(0)
        store, stock = (
            _store(folder / f"{kind.__module__}.db", kind(connection_string=server.address))
            for kind in (RedisOnlineStoreConfig, StockRedis)
        )  # of one project: both read the same bytes
        yield from _items(store, stock, client, rng, items, repeats)
        yield from _user(store, client, rng, repeats)


def _items(
    store: FeatureStore,
    stock_store: FeatureStore,
    client: redis.Redis,
    rng: np.random.Generator,
    items: int,
    repeats: int,
) -> Iterator[Line]:
    names = ["vector", *SCALARS]
    rows = {name: rng.random(items, dtype=np.float32) for name in SCALARS}
    vectors = rng.random((items, WIDTH), dtype=np.float32)
    frame = pd.DataFrame(
        {"item_id": np.arange(items), "vector": list(vectors), **rows, "event_timestamp": NOW}
    )
    store.write_to_online_store("item", df=frame)
    read = matrix_reader(store, [(store.get_feature_view("item"), names)])
    packed = np.concatenate([vectors, *(rows[name][:, None] for name in SCALARS)], axis=1)
    client.mset({b"packed%d" % row: one.tobytes() for row, one in enumerate(packed)})
    asked = [rng.integers(0, items, ASKED) for _ in range(repeats)]

    def ours(ids: np.ndarray) -> np.ndarray:
        matrix = read(ids)[0]
        return np.column_stack([matrix["vector"], *(matrix[name] for name in SCALARS)])

    def feast(ids: np.ndarray) -> np.ndarray:
        answer = stock_store.get_online_features(
            features=[f"item:{name}" for name in names],
            entity_rows=[{"item_id": one} for one in ids.tolist()],
        ).to_dict()
        return np.column_stack([np.array(answer[name], np.float32) for name in names])

    def floor(ids: np.ndarray) -> np.ndarray:
        values: Any = client.mget([b"packed%d" % one for one in ids.tolist()])
        return np.frombuffer(b"".join(values), np.float32).reshape(-1, WIDTH + len(SCALARS))

    for side in (ours, feast, floor):
        np.testing.assert_array_equal(side(asked[0]), packed[asked[0]])
    own, stock, least = _turns((ours, feast, floor), asked)
    title = f"Redis, {ASKED} items of {WIDTH} floats and {len(SCALARS)} scalars"
    cpu, wall = f"{title}, client CPU ms", f"{title}, wall ms"
    yield line(f"{title}: client CPU ms", own.cpu_ms, drawn=Drawn(cpu, OURS))
    yield line(f"{title}: client CPU ms, Feast's client", stock.cpu_ms, drawn=Drawn(cpu, FEAST))
    yield ratio(f"{title}: times less client CPU", stock.cpu_ms, own.cpu_ms, CPU_GOAL)
    yield line(f"{title}: wall ms", own.wall_ms, drawn=Drawn(wall, OURS))
    mget = Drawn(wall, "MGET, the floor")
    yield line(f"{title}: wall ms, MGET of packed bytes", least.wall_ms, drawn=mget)
    yield line_below(f"{title}: wall, times the MGET", own.times(least), ITEM_WALL_GOAL)


def _user(store: FeatureStore, client: redis.Redis, rng: np.random.Generator, repeats: int) -> Iterator[Line]:
    lists = {name: [rng.integers(0, 2**40, HISTORY)] for name in SEQUENCES}
    store.write_to_online_store("user", df=pd.DataFrame({"user_id": [1], **lists, "event_timestamp": [NOW]}))
    view = store.get_feature_view("user")
    key = _redis_key(store.project, entity_keys(view, [1])[0], 3)
    read = matrix_reader(store, [(view, SEQUENCES)])

    def ours(ids: np.ndarray) -> np.ndarray:
        matrix = read(ids)[0]
        return np.concatenate([matrix[name] for name in SEQUENCES])

    def floor(_: np.ndarray) -> Any:
        return client.hgetall(key)  # type: ignore[arg-type]

    one = np.array([1])
    np.testing.assert_array_equal(ours(one), np.concatenate([lists[name] for name in SEQUENCES]))
    assert len(floor(one)) == len(SEQUENCES) + 1
    own, least = _turns((ours, floor), [one] * repeats)
    title = f"Redis, a user's {len(SEQUENCES)} sequences of {HISTORY}"
    wall = f"{title}, wall ms"
    yield line(f"{title}: wall ms", own.wall_ms, drawn=Drawn(wall, OURS))
    yield line(f"{title}: wall ms, HGETALL", least.wall_ms, drawn=Drawn(wall, "HGETALL, the floor"))
    yield line_below(f"{title}: wall, times the HGETALL", own.times(least), USER_WALL_GOAL)


@dataclass
class Took:
    """CPU and wall time of each call of one side, in milliseconds."""

    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)

    def times(self, other: Took) -> list[float]:
        """Wall time of each call divided by that of the other side's call in the same turn."""
        return [own / least for own, least in zip(self.wall_ms, other.wall_ms, strict=True)]


def _turns(sides: Sequence[Callable[[np.ndarray], object]], asked: Sequence[np.ndarray]) -> list[Took]:
    """Time every side on every query, taking turns, so that a busy machine slows all sides."""
    took = [Took() for _ in sides]
    for ids in asked:
        for side, one in zip(sides, took, strict=True):
            cpu, wall = time.process_time(), time.perf_counter()
            side(ids)
            one.cpu_ms.append((time.process_time() - cpu) * 1e3)
            one.wall_ms.append((time.perf_counter() - wall) * 1e3)
    return took


def _store(registry: Path, online: RedisOnlineStoreConfig | StockRedis) -> FeatureStore:
    config = RepoConfig(
        project="read",
        provider="local",
        registry=str(registry),
        online_store=online,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    schemas: dict[str, dict[str, FeastType]] = {
        "item": {"vector": Array(Float32), **dict.fromkeys(SCALARS, Float32)},
        "user": dict.fromkeys(SEQUENCES, Array(Int64)),
    }
    for name, schema in schemas.items():
        entity = Entity(name=name, join_keys=[f"{name}_id"], value_type=ValueType.INT64)
        fields = [Field(name=feature, dtype=dtype) for feature, dtype in schema.items()]
        view = FeatureView(
            name=name,
            entities=[entity],
            ttl=timedelta(0),
            schema=[Field(name=f"{name}_id", dtype=Int64), *fields],
            source=FileSource(
                path=str(registry.with_name(f"{name}.parquet")), timestamp_field="event_timestamp"
            ),
        )
        store.apply([entity, view])
    return store
