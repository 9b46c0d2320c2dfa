"""Point-in-time joins: our ASOF join compared with Feast's own plan, over the same files, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig as StockConfig
from feast.types import Float32, Int64
from feast.value_type import ValueType

from evaluation.bench.lines import FEAST, OURS, Drawn, Line, line, line_below, ratio
from evaluation.bench.subprocess_cost import measure_in_subprocess
from moonstore.duckdb_store import DuckDBOfflineStoreConfig

ROWS, EVENTS, PER_KEY = 100_000, 1_000_000, 500
JOIN_GOAL, MEMORY_GOAL = 20.0, 1024.0  # times less CPU than stock; MiB
YEAR_US = 365 * 86_400_000_000


def bench_join(folder: Path, rows: int = ROWS, events: int = EVENTS, repeats: int = 3) -> Iterator[Line]:
    """Join ``rows`` entity rows with ``events`` feature rows, ``PER_KEY`` per key.

    Args:
        folder: an empty folder, for the files.
        rows, events: numbers of rows.
        repeats: repetitions for each side; the median is reported.

    Raises:
        AssertionError: the two results differ.
    """
    rng = np.random.default_rng(0)
    keys = max(events // PER_KEY, 1)
    history = pa.table(
        {
            "user_id": rng.integers(0, keys, events),
            "event_timestamp": pa.array(rng.integers(0, YEAR_US, events)).cast(pa.timestamp("us", "UTC")),
            "value": rng.random(events, dtype=np.float32),
        }
    )
    pq.write_table(history, folder / "history.parquet")
    asked = {"user_id": rng.integers(0, keys, rows), "time_us": rng.integers(0, YEAR_US, rows)}
    pq.write_table(pa.table(asked), folder / "asked.parquet")
    ours, stock = ([measure_in_subprocess(_join, folder, of) for _ in range(repeats)] for of in (False, True))
    for cost in (*ours, *stock):
        np.testing.assert_array_equal(cost.answer, stock[0].answer)
    title = f"point-in-time join of {rows:,} rows with {events:,} events"
    cpu, peak = f"{title}, CPU-seconds", f"{title}, peak MiB"
    own_cpu, stock_cpu = ([cost.cpu_s for cost in costs] for costs in (ours, stock))
    own_peak, stock_peak = ([cost.peak_mb for cost in costs] for costs in (ours, stock))
    yield line(f"{title}: CPU-seconds, Feast's own plan", stock_cpu, drawn=Drawn(cpu, FEAST))
    yield line(f"{title}: CPU-seconds", own_cpu, drawn=Drawn(cpu, OURS))
    yield ratio(f"{title}: times less CPU", stock_cpu, own_cpu, JOIN_GOAL)
    yield line(f"{title}: peak MiB, Feast's own plan", stock_peak, drawn=Drawn(peak, FEAST))
    yield line_below(f"{title}: peak MiB", own_peak, MEMORY_GOAL, drawn=Drawn(peak, OURS))


def _join(folder: Path, stock: bool) -> Callable[[], Any]:
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="history",
        entities=[user],
        ttl=timedelta(0),
        schema=[Field(name="user_id", dtype=Int64), Field(name="value", dtype=Float32)],
        source=FileSource(path=str(folder / "history.parquet"), timestamp_field="event_timestamp"),
    )
    config = RepoConfig(
        project="join",
        provider="local",
        registry=str(folder / f"registry_{stock}.db"),
        offline_store=StockConfig() if stock else DuckDBOfflineStoreConfig(),
        online_store=None,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply([user, view])
    asked = pq.read_table(folder / "asked.parquet").to_pandas()
    asked["event_timestamp"] = pd.to_datetime(asked.pop("time_us"), unit="us", utc=True)
    asked["row_id"] = np.arange(len(asked))

    def call() -> np.ndarray:
        joined = store.get_historical_features(asked, features=["history:value"]).to_arrow()
        values: np.ndarray = joined.sort_by("row_id").column("value").to_numpy()
        return values

    return call
