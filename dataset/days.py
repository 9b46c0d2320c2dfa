"""The days of a log, in UTC: which requests each one asks, and which can be learned from at its end.

A click comes after what was shown, so a label becomes known late. A request is learned from once ``wait`` has passed
since it was made, at the end of a day, with the likes that are known by then; what is liked later is too late for it.
Requests so near the end of the log that ``wait`` has not passed by then are not measured, and a day that the log does
not go beyond is not over: nothing is learned at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Day:
    """One day of a log.

    Attributes:
        number: days since 1970.
        asked: int64, requests of the day whose labels are final at the end of the log, in the order given.
        learned: int64, requests that can be learned from at its end and could not before, in the order given.
    """

    number: int
    asked: np.ndarray
    learned: np.ndarray

    @property
    def date(self) -> str:
        """As 2026-01-31."""
        return str(np.datetime64(self.number, "D"))

    @property
    def end_us(self) -> int:
        """When it ends: microseconds since 1970 UTC."""
        return (self.number + 1) * DAY_US


def days_of(time_us: np.ndarray, end_us: int, wait_us: int = 0) -> Iterator[Day]:
    """The days from the first request to the last that asks or teaches something, those without requests included.

    Args:
        time_us: int64 (R), when each request was made, microseconds since 1970 UTC.
        end_us: the end of the log: what became known later is not in it.
        wait_us: how long after a request its labels are final.
    """
    if not len(time_us):
        return
    asked = np.where(time_us + wait_us <= end_us, time_us // DAY_US, -1)
    last = end_us // DAY_US - 1  # the last day that is over
    learned = np.maximum((time_us + wait_us - 1) // DAY_US, time_us // DAY_US)
    learned = np.where(learned <= last, learned, -1)
    stop = max(int(asked.max()), int(learned.max())) + 1
    for number in range(int(time_us.min() // DAY_US), stop):
        yield Day(number, np.flatnonzero(asked == number), np.flatnonzero(learned == number))
