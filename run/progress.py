"""Progress of long work: a rich bar on a terminal, otherwise a line for every ten seconds of it.

Many short loops, such as the epochs of a small model, are long work, too: what counts is their time together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LINE_EVERY_S = 10.0
_unsaid_s = 0.0  # of tracked work since the last line, whatever the loop


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "steps") -> Iterator[T]:
    """Yield ``items`` while showing count, rate and time left.

    Args:
        items: what to iterate over.
        description: what is being done, e.g. ``"embed items"``.
        total: number of items; default: ``len(items)`` if it has one.
        unit: what is counted, for the rate.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    yield from (
        _bar(items, description, total) if sys.stderr.isatty() else _lines(items, description, total, unit)
    )


def _bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


def _lines(items: Iterable[T], description: str, total: int | None, unit: str) -> Iterator[T]:
    global _unsaid_s
    start = before = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        _unsaid_s, before = _unsaid_s + now - before, now
        if _unsaid_s >= LINE_EVERY_S:
            _unsaid_s = 0.0
            _line(description, done, total, unit, now - start)
    if done and before - start >= LINE_EVERY_S:
        _line(description, done, total, unit, before - start)


def _line(description: str, done: int, total: int | None, unit: str, elapsed_s: float) -> None:
    rate = done / max(elapsed_s, 1e-9)
    left = "" if total is None else f", {max(total - done, 0) / rate:.0f} s left"
    of = "" if total is None else f"/{total}"
    sys.stderr.write(f"  {description}: {done}{of} {unit}, {rate:.1f}/s{left}\n")
    sys.stderr.flush()
