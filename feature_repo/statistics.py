"""Windowed counts of shown and of liked items, stamped with the midnight at which the window ends."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import POSITIVE_CODES, TIME, behaviour_codes

DAY_US = 86_400_000_000
EVENTS_AT_ONCE = 1 << 18
WINDOWS = {"7d": 7, "28d": 28}  # days
PRIOR_POSITIVE, PRIOR_SHOWN = 1, 20  # rate_all starts at 1 in 20


def daily_stats(log: pa.Table, key: str) -> Iterator[pa.Table]:
    """Counts per ``key`` at every midnight at which one of them changes.

    A row stamped with midnight D counts the events that became available before D: ``*_7d`` those of the
    seven days before it, ``*_28d`` of 28, ``*_all`` of all. A day with events changes the counts at the next
    midnight and, when it leaves a window, 7 and 28 days later: each of these gets a row, so the newest row at
    any time holds exactly the counts of the windows that end at the last midnight.

    Args:
        log: EVENTS; rows where ``key`` is null are left out.
        key: ``"item_id"`` or ``"query_id"``.

    Yields:
        parts, at least one, each of the next ids with about EVENTS_AT_ONCE events, so that intermediate arrays stay
        small: key int64, event_timestamp, shown_{7d,28d,all} and positive_{7d,28d,all} int64, and rate_all float32:
        (positive + 1) / (shown + 20) of all time. Shown are impressions and ratings; positive are clicks,
        carts, purchases and ratings of 4 or more. Ascending by (key, event_timestamp), unique.
    """
    log = log.select([key, "available_time", "type", "value"]).filter(log.column(key).is_valid())
    ids = log.column(key).to_numpy()
    order = np.argsort(ids, kind="stable")
    if not len(ids):
        yield _stats(log, key)
    start = 0
    while start < len(ids):
        last = ids[order[min(start + EVENTS_AT_ONCE, len(ids)) - 1]]
        end = int(np.searchsorted(ids, last, side="right", sorter=order))  # no id is in two parts
        yield _stats(log.take(pa.array(order[start:end])), key)
        start = end


def _stats(log: pa.Table, key: str) -> pa.Table:
    """``daily_stats`` of the events of some ids."""
    ids, entity = np.unique(log.column(key).to_numpy(), return_inverse=True)
    day = log.column("available_time").cast(pa.int64()).to_numpy() // DAY_US
    shown = pc.is_in(log.column("type"), value_set=pa.array(["impression", "rating"])).to_numpy()
    positive = np.isin(behaviour_codes(log.column("type"), log.column("value")), POSITIVE_CODES)

    # One sorted integer per (entity, day): a window is then the difference of two running sums.
    first_day = int(day.min()) - max(WINDOWS.values()) if len(day) else 0
    span = int(day.max()) - first_day + max(WINDOWS.values()) + 2 if len(day) else 1
    cell, cell_of = np.unique(entity * span + (day - first_day), return_inverse=True)
    running = {
        name: np.append(0, np.cumsum(np.bincount(cell_of, flags, len(cell)))).astype(np.int64)
        for name, flags in (("shown", shown), ("positive", positive))
    }
    stamps = np.unique(np.concatenate([cell + 1 + days for days in (0, *WINDOWS.values())]))
    stamped, midnight = np.divmod(stamps, span)
    end = np.searchsorted(cell, stamps)

    def counts(name: str, begin: np.ndarray) -> np.ndarray:
        return running[name][end] - running[name][begin]

    columns = {}
    for window, days in WINDOWS.items():
        begin = np.searchsorted(cell, stamps - days)
        for name in running:
            columns[f"{name}_{window}"] = counts(name, begin)
    begin = np.searchsorted(cell, stamped * span)
    for name in running:
        columns[f"{name}_all"] = counts(name, begin)
    rate = (columns["positive_all"] + PRIOR_POSITIVE) / (columns["shown_all"] + PRIOR_SHOWN)
    return pa.table(
        {
            key: pa.array(ids[stamped], pa.int64()),
            "event_timestamp": pa.array((midnight + first_day) * DAY_US, pa.int64()).cast(TIME),
            **{name: pa.array(values, pa.int64()) for name, values in columns.items()},
            "rate_all": pa.array(rate, pa.float32()),
        }
    )
