"""How fast the feature store is, compared with stock Feast and the machine's floor, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from evaluation.bench.batches import bench_batches
from evaluation.bench.faults import bench_faults
from evaluation.bench.frame import bench_frame
from evaluation.bench.front_door import bench_front_door
from evaluation.bench.ingest import bench_ingest
from evaluation.bench.join import bench_join, bench_other_joins
from evaluation.bench.lines import Line
from evaluation.bench.local_redis import NOT_INSTALLED, installed
from evaluation.bench.materialize import bench_materialize, bench_text_keys
from evaluation.bench.read import bench_read


def left_out() -> str:
    """What ``bench_store`` cannot measure on this machine, and why; empty if it can measure everything."""
    if installed():
        return ""
    return f"not measured: loads into Redis, online reads, faults and events. {NOT_INSTALLED}"


def bench_store() -> Iterator[Line]:
    """Measure joins, frames and batches, and, where redis-server is installed, loads, online reads and events.

    Each part that needs Redis starts its own servers.
    """
    with tempfile.TemporaryDirectory(prefix="moon_bench_") as name:
        folder = Path(name)
        yield from bench_join(folder)
        yield from bench_other_joins(folder)
        yield from bench_frame(folder)
        yield from bench_batches(folder / "batches")
        if installed():
            yield from bench_materialize(folder)
            yield from bench_text_keys(folder)
            yield from bench_read(folder)
            yield from bench_front_door(folder)
            yield from bench_faults(folder)
            yield from bench_ingest(folder)
