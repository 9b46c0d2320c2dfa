"""Feast's own front door over Redis: ``get_online_features`` of our store beside Feast's, over the same bytes.

Three kinds of keys; and what ``feast serve`` and ``python -m moonstore serve`` do with a request: read, turn the
answer into Python and into JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastapi.responses import JSONResponse
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.feature_server_utils import convert_response_to_dict
from feast.infra.online_stores.redis import RedisOnlineStoreConfig as StockRedis
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType

from evaluation.bench.lines import FEAST, OURS, Drawn, Line, cpu_seconds, line, ratio
from evaluation.bench.local_redis import RedisServer
from moonstore.redis_store import RedisOnlineStoreConfig
from moonstore.serve import FastJSONResponse, content

ITEMS, ASKED, WIDTH = 20_000, 500, 128
SCALARS = [f"scalar_{number}" for number in range(6)]
GOAL = 5.0  # times less client CPU than Feast's store
NOW = pd.Timestamp("2026-01-01", tz="UTC")
TYPES = {"item_id": (ValueType.INT64, Int64), "sku": (ValueType.STRING, String)}
KEYS = {"an integer key": ["item_id"], "a text key": ["sku"], "two keys": ["item_id", "sku"]}

Rows = list[dict[str, Any]]


def bench_front_door(folder: Path, items: int = ITEMS, repeats: int = 50) -> Iterator[Line]:
    """Read ``ASKED`` of ``items`` items with each side in turn, for each kind of key.

    Args:
        folder: for the registries.
        items: number of items stored.
        repeats: repetitions of every read; the median is reported.

    Raises:
        AssertionError: the sides answer differently.
    """
    rng = np.random.default_rng(0)
    features = ["item:vector", *(f"item:{name}" for name in SCALARS)]
    with RedisServer() as server:
        for what, keys in KEYS.items():
            sides = [_store(folder, server.address, keys, stock) for stock in (True, False)]
            _fill(sides[0], keys, items, rng)
            asked = [_rows(keys, rng.integers(0, items, ASKED).tolist()) for _ in range(repeats)]

            def read(store: FeatureStore, rows: Rows) -> dict[str, Any]:
                answer: dict[str, Any] = store.get_online_features(features, rows).to_dict()
                return answer

            title = f"get_online_features, {ASKED} items of {WIDTH} floats and {len(SCALARS)} scalars, {what}"
            yield from _beside(title, GOAL, sides, read, asked)
            if len(keys) == 1 and keys[0] == "item_id":
                title = f"feast serve and moonstore serve, the same {ASKED} items"
                yield from _beside(title, GOAL, sides, partial(_serve, features), asked, json.loads)


def _serve(features: list[str], store: FeatureStore, rows: Rows) -> bytes:
    answer = store.get_online_features(features, rows)
    if isinstance(store.config.online_store, RedisOnlineStoreConfig):
        return bytes(FastJSONResponse(content(answer)).body)
    return bytes(JSONResponse(convert_response_to_dict(answer.proto)).body)


def _beside(
    title: str,
    goal: float | None,
    sides: list[FeatureStore],
    read: Callable[[FeatureStore, Rows], Any],
    asked: list[Rows],
    parsed: Callable[[Any], Any] = lambda answer: answer,
) -> Iterator[Line]:
    stock, ours = sides
    assert parsed(read(stock, asked[0])) == parsed(read(ours, asked[0]))
    took: list[list[float]] = [[], []]
    for rows in asked:
        for store, one in zip(sides, took, strict=True):
            one.append(1e3 * cpu_seconds(partial(read, store, rows)))
    cpu = f"{title}, client CPU ms"
    yield line(f"{title}: client CPU ms, Feast's store", took[0], drawn=Drawn(cpu, FEAST))
    yield line(f"{title}: client CPU ms", took[1], drawn=Drawn(cpu, OURS))
    yield ratio(f"{title}: times less client CPU", took[0], took[1], goal)


def _rows(keys: list[str], ids: list[int]) -> Rows:
    return [{key: one if key == "item_id" else f"sku-{one:08d}" for key in keys} for one in ids]


def _fill(store: FeatureStore, keys: list[str], items: int, rng: np.random.Generator) -> None:
    frame = pd.DataFrame(_rows(keys, list(range(items))))
    frame["vector"] = list(rng.random((items, WIDTH), dtype=np.float32))
    for name in SCALARS:
        frame[name] = rng.random(items, dtype=np.float32)
    store.write_to_online_store("item", frame.assign(event_timestamp=NOW))


def _store(folder: Path, address: str, keys: list[str], stock: bool) -> FeatureStore:
    name = "_".join(keys)
    config = RepoConfig(
        project=f"front_{name}",
        provider="local",
        registry=str(folder / f"front_{name}_{stock}.db"),
        online_store=(StockRedis if stock else RedisOnlineStoreConfig)(connection_string=address),
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    entities = [Entity(name=key, join_keys=[key], value_type=TYPES[key][0]) for key in keys]
    fields = [Field(name=key, dtype=TYPES[key][1]) for key in keys]
    fields += [
        Field(name="vector", dtype=Array(Float32)),
        *(Field(name=one, dtype=Float32) for one in SCALARS),
    ]
    source = FileSource(path=str(folder / "front.parquet"), timestamp_field="event_timestamp")
    view = FeatureView(name="item", entities=entities, ttl=timedelta(0), schema=fields, source=source)
    store.apply([*entities, view])
    return store
