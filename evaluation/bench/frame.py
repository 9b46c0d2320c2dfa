"""The training frame at the size of a real click log: the clicks of many users with point-in-time features.

Embeddings and behaviour sequences are not joined: a frame contains pointers, which the loader resolves (see
``feature_repo.frames.join``). The log is simulated to the shape of ``scale_globo``: 3 million clicks of 322,897
users on 46,033 items in 16 days.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast import FeatureStore
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig as StockConfig

from dataset import contracts
from dataset.contracts import TIME
from dataset.days import DAY_US
from dataset.months import Month, months_of
from evaluation.bench.lines import FEAST, OURS, Drawn, Line, line, line_below
from evaluation.bench.subprocess_cost import measure_in_subprocess
from feature_repo.columns import in_frames
from feature_repo.create import create_store
from feature_repo.frames.join import POINTER, join_features, training_frame
from feature_repo.services import CTR
from feature_repo.signature import open_signature
from feature_repo.store import open_store

CLICKS, USERS, ITEMS, DAYS = 3_000_000, 322_897, 46_033, 16
SIZES = (100_000, 300_000, 1_000_000, 3_000_000)
HISTORY, AT_ONCE = 200, 4096
WALL_GOAL, MEMORY_GOAL = 60.0, 6144.0  # seconds; MiB
LINEAR_GOAL = 1.3  # cost of a row, relative to a frame with a third of the rows
START_US = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


@dataclass(frozen=True)
class Shop:
    """A simulated log with its catalogue and users, in the form that ``create_store`` takes."""

    items: pa.Table
    users: pa.Table
    queries: pa.Table
    log: pa.Table

    @property
    def months(self) -> list[Month]:
        """The log in months."""
        return months_of(self.log)


def simulated(clicks: int, seed: int = 0) -> Shop:
    """Clicks with users and items drawn by Zipf's law, in the proportions of CLICKS, USERS and ITEMS."""
    rng = np.random.default_rng(seed)
    users, items = max(clicks * USERS // CLICKS, 1), max(clicks * ITEMS // CLICKS, 1)
    event_us = START_US + np.sort(rng.integers(0, DAYS * DAY_US, clicks))
    empty = {field.name: pa.nulls(clicks, field.type) for field in contracts.EVENTS}
    events = empty | {
        "event_id": pa.array(np.arange(clicks)),
        "user_id": pa.array(_zipf(rng, users, clicks)),
        "item_id": pa.array(_zipf(rng, items, clicks)),
        "type": pa.array(["click"] * clicks),
        "event_time": pa.array(event_us).cast(TIME),
        "available_time": pa.array(event_us + 1_000_000).cast(TIME),
    }
    return Shop(
        _table(contracts.ITEMS, items, "item_id"),
        _table(contracts.USERS, users, "user_id"),
        _table(contracts.QUERIES, 0, "query_id"),
        pa.table(events, schema=contracts.EVENTS),
    )


def bench_frame(folder: Path, clicks: int = CLICKS, sizes: tuple[int, ...] = SIZES) -> Iterator[Line]:
    """Build frames of increasing size, each in its own process.

    Args:
        folder: an empty folder, for the store.
        clicks: number of clicks in the log.
        sizes: impressions per frame, ascending; the middle one has goals.
    """
    shop = simulated(clicks)
    create_store(folder / "store", shop, shop)  # type: ignore[arg-type]
    costs = {size: measure_in_subprocess(_frame, folder / "store", clicks, size) for size in sizes}
    for size, cost in costs.items():
        point = Drawn("training frame, CPU-seconds", OURS, x=size)
        yield line(f"training frame of {size:,} impressions: CPU-seconds", [cost.cpu_s], drawn=point)
    middle, most = sizes[len(sizes) // 2], sizes[-1]
    title = f"training frame of {middle:,} impressions"
    yield line_below(f"{title}: wall seconds", [costs[middle].wall_s], WALL_GOAL)
    yield line_below(f"{title}: peak MiB", [costs[middle].peak_mb], MEMORY_GOAL)
    grown = (costs[most].cpu_s / most) / (costs[middle].cpu_s / middle)
    yield line_below(
        f"training frame: CPU of an impression among {most:,}, times {middle:,}", [grown], LINEAR_GOAL
    )
    gathered = measure_in_subprocess(_gather, folder / "store", clicks, middle)
    yield line(f"{title}: CPU-seconds to gather its histories and features", [gathered.cpu_s])
    least = sizes[0]
    ours, stock = (
        measure_in_subprocess(_joined, folder / "store", clicks, least, of) for of in (False, True)
    )
    assert ours.answer == stock.answer
    title = f"joins of {least:,} impressions"
    cpu, peak = f"{title}, CPU-seconds", f"{title}, peak MiB"
    yield line(f"{title}: CPU-seconds", [ours.cpu_s], drawn=Drawn(cpu, OURS))
    yield line(f"{title}: CPU-seconds, Feast's own plan", [stock.cpu_s], drawn=Drawn(cpu, FEAST))
    yield line(f"{title}: peak MiB", [ours.peak_mb], drawn=Drawn(peak, OURS))
    yield line(f"{title}: peak MiB, Feast's own plan", [stock.peak_mb], drawn=Drawn(peak, FEAST))


def _frame(store_dir: Path, clicks: int, size: int) -> Callable[[], int]:
    requests = _requests(clicks, size)
    return lambda: len(training_frame(store_dir, requests, HISTORY))


def _gather(store_dir: Path, clicks: int, size: int) -> Callable[[], int]:
    frame = training_frame(store_dir, _requests(clicks, size), HISTORY)
    starts = range(0, len(frame), AT_ONCE)
    return lambda: sum(len(frame.take(start, start + AT_ONCE).history.item_id) for start in starts)


def _requests(clicks: int, size: int) -> pa.Table:
    """Impressions: ``size`` of the clicks of the log, at the times of the clicks."""
    log = simulated(clicks).log
    rows = np.sort(np.random.default_rng(1).choice(clicks, size, replace=False))
    clicked = log.take(rows)
    return pa.table(
        {
            "request_id": np.arange(size),
            "user_id": clicked.column("user_id"),
            "time": clicked.column("event_time"),
            "query_id": pa.nulls(size, pa.int64()),
            "item_id": clicked.column("item_id"),
            "label": pa.array(np.ones(size, np.float32)),
        }
    )


def _joined(store_dir: Path, clicks: int, size: int, stock: bool) -> Callable[[], float]:
    requests = _requests(clicks, size)
    store = open_store(store_dir)
    if stock:
        os.chdir(store_dir)  # Feast's store resolves the sources' paths against it
        store = FeatureStore(config=store.config.model_copy(update={"offline_store": StockConfig()}))
    time_us = requests.column("time").cast(pa.int64()).to_numpy()
    of_items = in_frames(open_signature(store, CTR).features, "candidate")

    def call() -> float:
        total = 0.0
        for key, features in (("user_id", POINTER), ("item_id", of_items)):
            found = join_features(store, key, requests.column(key).to_numpy(), time_us, features)
            some = "position" if key == "user_id" else "shown_all"
            total += float(found[some].fill_null(0).to_numpy().sum())
        return total

    return call


def _zipf(rng: np.random.Generator, count: int, draws: int) -> np.ndarray:
    weight = 1 / np.arange(1, count + 1)
    return np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(draws)).clip(max=count - 1)


def _table(schema: pa.Schema, rows: int, key: str) -> pa.Table:
    columns = {}
    for field in schema:
        if field.name == key or field.name == "spu":
            columns[field.name] = pa.array(np.arange(rows), field.type)
        elif field.type == TIME:
            columns[field.name] = pa.array(np.full(rows, START_US - DAY_US)).cast(TIME)
        elif pa.types.is_string(field.type):
            columns[field.name] = pa.array(np.arange(rows)).cast(pa.string())
        elif pa.types.is_list(field.type) or pa.types.is_map(field.type):
            columns[field.name] = pa.array([[]] * rows, field.type)
        else:
            columns[field.name] = pa.nulls(rows, field.type)
    return pa.table(columns, schema=schema)
