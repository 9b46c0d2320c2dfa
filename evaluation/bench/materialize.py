"""Materialization into Redis: our engine compared with Feast's, with its default offline store and with DuckDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.infra.offline_stores.dask import DaskOfflineStoreConfig
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig as StockDuckDB
from feast.infra.online_stores.redis import RedisOnlineStoreConfig as StockRedis
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType

from evaluation.bench.lines import OURS, Drawn, Line, line, line_below, ratio
from evaluation.bench.local_redis import RedisServer
from evaluation.bench.subprocess_cost import Cost, measure_in_subprocess
from moonstore.duckdb_store import DuckDBOfflineStoreConfig
from moonstore.redis_store import RedisOnlineStoreConfig

ROWS, WIDTH = 100_000, 128
SCALARS = [f"scalar_{number}" for number in range(6)]
DEFAULT_GOAL, DUCKDB_GOAL, TEXT_GOAL = 8.0, 3.5, 10.0  # times the rows per CPU-second
GROWTH_GOAL = 1.25  # times the memory for four times the rows
START = datetime(2026, 1, 1, tzinfo=UTC)
DUCKDB, DEFAULT = "Feast with DuckDB", "Feast's defaults"


def bench_materialize(folder: Path, rows: int = ROWS, repeats: int = 3) -> Iterator[Line]:
    """Load ``rows`` items of ``WIDTH`` floats and six scalars, every time into a new, empty server.

    Args:
        folder: an empty folder, for the source and the registries.
        rows: number of items.
        repeats: repetitions for each side except Feast's defaults, which run once.

    Raises:
        AssertionError: the sides stored different values.
    """
    _write(folder / "item.parquet", rows)
    costs: dict[str, list[Cost]] = {}
    stored = {}
    for side, runs in ((OURS, repeats), (DUCKDB, repeats), (DEFAULT, 1)):
        costs[side] = []
        for _ in range(runs):
            with RedisServer() as server:
                costs[side].append(measure_in_subprocess(_load, folder, server.address, side))
                stored[side] = _some(server)
    assert stored[OURS] == stored[DUCKDB] == stored[DEFAULT] != {}
    rate = {side: [rows / cost.cpu_s for cost in runs] for side, runs in costs.items()}
    title = f"materialize {rows:,} items of {WIDTH} floats and {len(SCALARS)} scalars into Redis"
    for side in (OURS, DUCKDB, DEFAULT):
        bar = Drawn(f"{title}, rows per CPU-second", side, higher_is_better=True)
        yield line(f"{title}: rows per CPU-second, {side}", rate[side], drawn=bar)
    yield ratio(f"{title}: times Feast's defaults", rate[OURS], rate[DEFAULT], DEFAULT_GOAL)
    yield ratio(f"{title}: times Feast with DuckDB", rate[OURS], rate[DUCKDB], DUCKDB_GOAL)
    yield line(f"{title}: peak MiB", [cost.peak_mb for cost in costs[OURS]])
    _write(folder / "item.parquet", rows // 4)
    with RedisServer() as server:
        few = measure_in_subprocess(_load, folder, server.address, OURS)
    growth = [cost.peak_mb / few.peak_mb for cost in costs[OURS]]
    yield line_below(f"{title}: times the memory of a quarter of the rows", growth, GROWTH_GOAL)


def bench_text_keys(folder: Path, rows: int = ROWS // 2, repeats: int = 3) -> Iterator[Line]:
    """Load items whose key is text with our engine and with Feast's defaults; see ``bench_materialize``."""
    _write(folder / "item.parquet", rows, text=True)
    rates, stored = [], []
    for side, runs in ((OURS, repeats), (DEFAULT, 1)):
        costs = []
        for _ in range(runs):
            with RedisServer() as server:
                costs.append(measure_in_subprocess(_load, folder, server.address, side, True))
                kept = _some(server)
        rates.append([rows / cost.cpu_s for cost in costs])
        stored.append(kept)
    assert stored[0] == stored[1] != {}
    title = f"materialize {rows:,} items with a text key into Redis"
    bar = f"{title}, rows per CPU-second"
    for side, rate in zip((OURS, DEFAULT), rates, strict=True):
        drawn = Drawn(bar, side, higher_is_better=True)
        yield line(f"{title}: rows per CPU-second, {side}", rate, drawn=drawn)
    yield ratio(f"{title}: times Feast's defaults", rates[0], rates[1], TEXT_GOAL)


def _write(path: Path, rows: int, text: bool = False) -> None:
    rng = np.random.default_rng(0)
    flat = pa.array(rng.random(rows * WIDTH, dtype=np.float32))
    offsets = pa.array(np.arange(rows + 1) * WIDTH, pa.int32())
    stamp = int(START.timestamp()) * 1_000_000
    table = {
        "item_id": pa.array([f"sku-{one:08d}" for one in range(rows)] if text else np.arange(rows)),
        "vector": pa.ListArray.from_arrays(offsets, flat),
        **{name: pa.array(rng.random(rows, dtype=np.float32)) for name in SCALARS},
        "event_timestamp": pa.array(stamp + rng.integers(0, 10**9, rows)).cast(pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(table), path)


def _some(server: RedisServer) -> dict[bytes, Any]:
    client = server.client()
    keys: Any = client.keys("*")
    some = sorted(keys)[:: max(len(keys) // 1000, 1)]
    return {key: client.hgetall(key) for key in some} | {b"count": len(keys)}


def _load(folder: Path, address: str, side: str, text: bool = False) -> Callable[[], None]:
    kind, dtype = (ValueType.STRING, String) if text else (ValueType.INT64, Int64)
    item = Entity(name="item", join_keys=["item_id"], value_type=kind)
    fields = [Field(name=name, dtype=Float32) for name in SCALARS]
    view = FeatureView(
        name="item",
        entities=[item],
        ttl=timedelta(0),
        schema=[Field(name="item_id", dtype=dtype), Field(name="vector", dtype=Array(Float32)), *fields],
        source=FileSource(path=str(folder / "item.parquet"), timestamp_field="event_timestamp"),
    )
    ours = side == OURS
    offline: Any = {
        OURS: DuckDBOfflineStoreConfig(),
        DUCKDB: StockDuckDB(),
        DEFAULT: DaskOfflineStoreConfig(),
    }[side]
    config = RepoConfig(
        project="load",
        provider="local",
        registry=str(folder / f"load {side}.db"),
        offline_store=offline,
        online_store=(RedisOnlineStoreConfig if ours else StockRedis)(connection_string=address),
        batch_engine="moonstore.engine.ArrowComputeEngine" if ours else "local",
        materialization={} if side == DEFAULT else {"online_write_batch_size": 10_000},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    store.apply([item, view])
    return lambda: store.materialize(START - timedelta(days=1), START + timedelta(days=1))
