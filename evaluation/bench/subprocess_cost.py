"""CPU time and memory of one call, measured in a subprocess."""

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
    """The cost of one call.

    Attributes:
        cpu_s: CPU seconds of all threads, without preparation (imports, opening).
        wall_s: wall seconds.
        peak_mb: peak memory of the process in MiB, including all libraries.
        answer: what the call returned.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float
    answer: Any


def measure_in_subprocess(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> Cost:
    """Run ``prepare(*arguments)()`` in a new process and measure the second call.

    Args:
        prepare: opens what the call needs and returns the call; must be importable.
        arguments: arguments of ``prepare``; must be picklable.

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
    with redirect_stdout(io.StringIO()):  # stdout belongs to the benchmark's own output
        call = prepare(*arguments)
        cpu, wall = time.process_time(), time.perf_counter()
        answer = call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    sender.send(Cost(cpu, wall, _peak_mb(), answer))


def _peak_mb() -> float:
    """Peak memory of this process; from /proc where it exists, as ``ru_maxrss`` includes the parent's memory."""
    status = Path("/proc/self/status")
    if status.exists():
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(found.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
