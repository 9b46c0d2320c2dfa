"""Which event was the newest one of its key at a moment: two sorts and two searches over integers."""

from __future__ import annotations

from typing import Literal

import numpy as np


def newest(
    key: np.ndarray, time: np.ndarray, created: np.ndarray, asked: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """For each moment, the newest event of its key that is not after it: row of the event, or -1, int64 (M).

    Of equal times the event created last is taken, of equal created times the one in the later row.

    Args:
        key, time, created: int64 (N), of the events; keys are numbered from 0, times are on any one scale.
        asked, at: int64 (M), key and moment; key -1 has no events.
    """
    count = len(key)
    if not count:
        return np.full(len(asked), -1)
    order, times = _in_time(time, created)
    # One integer holds an event's key and its place in time: sorted, the events of a key stand side by side.
    ranked = np.sort(key[order] * count + np.arange(count))
    until = _places(times, at, "right")  # events at or before the moment, of any key
    of, place = np.divmod(ranked[_places(ranked, asked * count + until, "left") - 1], count)
    # Where the key has no event so early, it is one of a smaller key, or the very last one of all.
    return np.where((of == asked) & (place < until), order[place], -1)


def _in_time(time: np.ndarray, created: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the events by time, created time and row, and their times in that order."""
    order = np.argsort(
        time
    )  # in no order among equal times, and many times faster than a stable sort of both
    times = time[order]
    same = times[1:] == times[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    rows = order[tied]
    order[tied] = rows[np.lexsort((rows, created[rows], time[rows]))]
    return order, times


def _places(values: np.ndarray, sought: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
    """``np.searchsorted``, which is several times faster when the sought values ascend too."""
    order = np.argsort(sought)
    places = np.empty_like(order)
    places[order] = np.searchsorted(values, sought[order], side)
    return places
