"""How fast the feature store is, beside stock Feast and beside the floor of the machine, in one run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from evaluation.bench import Line
from evaluation.bench_join import bench_join


def bench_store() -> list[Line]:
    """Measure the store's joins."""
    with tempfile.TemporaryDirectory(prefix="moon_bench_") as folder:
        return list(bench_join(Path(folder)))
