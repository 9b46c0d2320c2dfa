"""What training the id tables will need of the machine's memory, said before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from ranker.learner import TrainingError

NUMBER = 4  # bytes of a float32
CGROUP = Path("/sys/fs/cgroup")  # where Linux keeps a container's limit


def require_memory(rows: Mapping[str, int], width: int, ranks: int | None = None, kept: int = 0) -> None:
    """Refuse tables that would outgrow the memory of this machine.

    Args:
        rows: of every table, by name.
        width: of an embedding.
        ranks: processes of this machine that train together; None: the one that asks.
        kept: models of the same shape that stay in memory meanwhile.

    Raises:
        TrainingError: saying what is needed, for which tables, and what there is.
    """
    needed, there = training_bytes(sum(rows.values()), width, ranks, kept), available_bytes()
    if needed > there:
        largest = sorted(rows, key=lambda name: -rows[name])[:3]
        raise TrainingError(
            f"training needs {needed / 1e9:,.1f} GB for the id tables, and {there / 1e9:,.1f} GB of memory are free: "
            f"{sum(rows.values()):,} rows of {width} numbers and an accumulator each, of which "
            f"{', '.join(f'{name} {rows[name]:,}' for name in largest)}. Choose a --size with narrower embeddings, "
            f"or a machine with more memory."
        )


def training_bytes(rows: int, width: int, ranks: int | None = None, kept: int = 0) -> int:
    """Peak memory of the tables in bytes, arguments as of ``require_memory``, while a checkpoint is written.

    Then there are the tables with their accumulators, the weights of the best epoch, and a copy of the tables and
    accumulators to be written. Ranks divide the tables among them, beside those of the process that started them.
    """
    weights, accumulators = rows * width * NUMBER, rows * NUMBER
    return weights * (3 + (ranks is not None) + kept) + accumulators * (2 + kept)


def available_bytes() -> int:
    """Memory that this process may still take, in bytes: of the machine, or of its container."""
    free = psutil.virtual_memory().available
    limit = CGROUP / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        lines = (line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, int(most) - next(int(value) for name, value in lines if name == "anon"))
    return int(free)
