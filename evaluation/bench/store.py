"""How fast the feature store is, beside stock Feast and beside the floor of the machine, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from evaluation.bench.faults import bench_faults
from evaluation.bench.frame import bench_frame
from evaluation.bench.ingest import bench_ingest
from evaluation.bench.join import bench_join
from evaluation.bench.lines import Line
from evaluation.bench.local_redis import local_redis
from evaluation.bench.materialize import bench_materialize
from evaluation.bench.read import bench_read


def bench_store() -> Iterator[Line]:
    """Measure joins and training frames, and, where redis-server is installed, loads, online reads and events."""
    with tempfile.TemporaryDirectory(prefix="moon_bench_") as name, local_redis() as port:
        folder = Path(name)
        yield from bench_join(folder)
        yield from bench_frame(folder)
        if port is not None:
            yield from bench_materialize(folder, port)
            yield from bench_read(folder, port)
            yield from bench_faults(folder)
            yield from bench_ingest(folder)
