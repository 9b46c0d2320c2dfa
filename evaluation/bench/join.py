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

from dataset.days import DAY_US
from evaluation.bench.lines import FEAST, OURS, Drawn, Line, line, line_below, ratio
from evaluation.bench.subprocess_cost import Cost, measure_in_subprocess
from moonstore.duckdb_store import DuckDBOfflineStoreConfig

ROWS, EVENTS, PER_KEY = 100_000, 1_000_000, 500
JOIN_GOAL, MEMORY_GOAL = 20.0, 1024.0  # times less CPU than stock; MiB
TTL_GOAL, SMALL_GOAL = 15.0, 1.0  # times less CPU than stock
YEAR = 365  # days
SMALL = 20_000  # rows


def bench_join(folder: Path, rows: int = ROWS, events: int = EVENTS, repeats: int = 3) -> Iterator[Line]:
    """Join ``rows`` entity rows with ``events`` feature rows, ``PER_KEY`` per key and never too old.

    Args:
        folder: an empty folder, for the files.
        rows, events: numbers of rows.
        repeats: repetitions for each side; the median is reported.

    Raises:
        AssertionError: the two results differ.
    """
    title = f"point-in-time join of {rows:,} rows with {events:,} events"
    _write(folder, rows, events, PER_KEY, YEAR)
    ours, stock = _sides(folder, 0, repeats)
    cpu, peak = f"{title}, CPU-seconds", f"{title}, peak MiB"
    own_cpu, stock_cpu = ([cost.cpu_s for cost in costs] for costs in (ours, stock))
    own_peak, stock_peak = ([cost.peak_mb for cost in costs] for costs in (ours, stock))
    yield line(f"{title}: CPU-seconds, Feast's own plan", stock_cpu, drawn=Drawn(cpu, FEAST))
    yield line(f"{title}: CPU-seconds", own_cpu, drawn=Drawn(cpu, OURS))
    yield ratio(f"{title}: times less CPU", stock_cpu, own_cpu, JOIN_GOAL)
    yield line(f"{title}: peak MiB, Feast's own plan", stock_peak, drawn=Drawn(peak, FEAST))
    yield line_below(f"{title}: peak MiB", own_peak, MEMORY_GOAL, drawn=Drawn(peak, OURS))


def bench_other_joins(
    folder: Path, rows: int = ROWS, events: int = EVENTS, small: int = SMALL, repeats: int = 3
) -> Iterator[Line]:
    """Joins in which a lookup saves less: with a time to live that rules out most events, and small ones.

    Args:
        folder: an empty folder, for the files.
        rows, events: numbers of rows of the join with a time to live of 3 of 30 days, ``PER_KEY`` events a key.
        small: number of entity rows and of events of the small join, one event a key.
        repeats: repetitions for each side; the median is reported.

    Raises:
        AssertionError: the two results differ.
    """
    cases = (
        (
            f"{rows:,} rows, {events:,} events of 30 days, time to live 3 days",
            rows,
            events,
            PER_KEY,
            3,
            TTL_GOAL,
        ),
        (f"{small:,} rows with one event each", small, small, 1, 0, SMALL_GOAL),
    )
    for title, asked, there, per_key, ttl_days, goal in cases:
        _write(folder, asked, there, per_key, 30)
        own, stock = ([cost.cpu_s for cost in costs] for costs in _sides(folder, ttl_days, repeats))
        cpu = f"point-in-time join, {title}, CPU-seconds"
        yield line(f"{cpu}, Feast's own plan", stock, drawn=Drawn(cpu, FEAST))
        yield line(cpu, own, drawn=Drawn(cpu, OURS))
        yield ratio(f"point-in-time join, {title}: times less CPU", stock, own, goal)


def _write(folder: Path, rows: int, events: int, per_key: int, days: int) -> None:
    rng = np.random.default_rng(0)
    keys, until = max(events // per_key, 1), days * DAY_US
    history = pa.table(
        {
            "user_id": rng.integers(0, keys, events) if per_key > 1 else np.arange(events),
            "event_timestamp": pa.array(rng.integers(0, until, events)).cast(pa.timestamp("us", "UTC")),
            "value": rng.random(events, dtype=np.float32),
        }
    )
    pq.write_table(history, folder / "history.parquet")
    asked = {"user_id": rng.integers(0, keys, rows), "time_us": rng.integers(0, until, rows)}
    pq.write_table(pa.table(asked), folder / "asked.parquet")


def _sides(folder: Path, ttl_days: int, repeats: int) -> tuple[list[Cost], list[Cost]]:
    ours, stock = (
        [measure_in_subprocess(_join, folder, of, ttl_days) for _ in range(repeats)] for of in (False, True)
    )
    for cost in (*ours, *stock):
        np.testing.assert_array_equal(cost.answer, stock[0].answer)
    return ours, stock


def _join(folder: Path, stock: bool, ttl_days: int) -> Callable[[], Any]:
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="history",
        entities=[user],
        ttl=timedelta(days=ttl_days),
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

    def call(rows: int = len(asked)) -> np.ndarray:
        joined = store.get_historical_features(asked.head(rows), features=["history:value"]).to_arrow()
        values: np.ndarray = joined.sort_by("row_id").column("value").to_numpy()
        return values

    call(1)  # imports what either side imports on first use
    return call
