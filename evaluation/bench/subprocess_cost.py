"""One call in a process of its own, with the CPU time and the memory it took."""

from __future__ import annotations

import io
import multiprocessing
import resource
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What one call took.

    Attributes:
        cpu_s: CPU seconds of all threads, without what came before the call (imports, opening).
        wall_s: seconds on the clock.
        peak_mb: the most memory the process ever held, in MiB, all libraries included.
        answer: what the call returned.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float
    answer: Any


def apart(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> Cost:
    """Run ``prepare(*arguments)()`` in a new process and measure the second call.

    Args:
        prepare: opens what the call needs and returns it; importable, as its arguments are picklable.
        arguments: of ``prepare``.

    Raises:
        RuntimeError: the process ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, prepare, arguments))
    process.start()
    sender.close()
    try:
        cost: Cost = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{prepare.__name__}: the process ended with code {process.exitcode}") from None
    process.join()
    return cost


def _measure(
    sender: Connection, prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]
) -> None:
    with redirect_stdout(io.StringIO()):  # ours belongs to the one who asked
        call = prepare(*arguments)
        cpu, wall = time.process_time(), time.perf_counter()
        answer = call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    sender.send(Cost(cpu, wall, _peak_mb(), answer))


def _peak_mb() -> float:
    """Of this process alone: where there is /proc, as ``ru_maxrss`` starts from what the parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(found.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
