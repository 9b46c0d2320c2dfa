"""Windowed counts of shown and of liked items, stamped with the midnight at which the window ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.contracts import POSITIVE_CODES, TIME, behaviour_codes
from dataset.days import DAY_US
from dataset.log import distinct
from dataset.months import Month, start_us
from feature_repo.sources import replace_source
from feature_repo.vectors import rows_of

CELLS_AT_ONCE = 1 << 18
WINDOWS = {"7d": 7, "28d": 28}  # days
REACH = 1 + max(WINDOWS.values())  # a day's counts change up to so many days later
PRIOR_SHOWN = 20  # shown items at the log's own rate, by which rates are smoothed
FIRST_RATE = 1 / 20  # of the log before its first events, with the weight of as many
COUNTED = ("shown", "positive")


@dataclass(frozen=True)
class Cells:
    """Counts of an id on a day, or of all days up to one.

    Attributes:
        key, day: int64 (N), ascending by (key, day); days since 1970 UTC.
        count: shown and positive, int64 (N).
    """

    key: np.ndarray
    day: np.ndarray
    count: dict[str, np.ndarray]

    @classmethod
    def of(cls, key: np.ndarray, day: np.ndarray, count: dict[str, np.ndarray]) -> Cells:
        """Counts in any order, those of one id and day added up."""
        order = np.lexsort((day, key))
        key, day = key[order], day[order]
        first = np.append(True, (np.diff(key) != 0) | (np.diff(day) != 0))[: len(key)]
        start = np.flatnonzero(first)
        added = {
            name: np.add.reduceat(some[order], start) if len(start) else some for name, some in count.items()
        }
        return cls(key[start], day[start], added)

    @classmethod
    def none(cls) -> Cells:
        """No counts."""
        empty = np.empty(0, np.int64)
        return cls(empty, empty, dict.fromkeys(COUNTED, empty))

    def take(self, rows: np.ndarray | slice) -> Cells:
        """Some of them."""
        return Cells(self.key[rows], self.day[rows], {name: some[rows] for name, some in self.count.items()})

    def plus(self, other: Cells) -> Cells:
        """Both added up."""
        count = {name: np.concatenate([self.count[name], other.count[name]]) for name in COUNTED}
        return Cells.of(np.concatenate([self.key, other.key]), np.concatenate([self.day, other.day]), count)


@dataclass(frozen=True)
class Counted:
    """All that statistics need of the log before a month.

    Attributes:
        month: its name.
        totals: counts of each id until the recent ones begin; their day is 0.
        recent: counts of the days that a window of the month may still hold.
    """

    month: str
    totals: Cells
    recent: Cells

    def write(self, path: Path) -> None:
        """Write it to a file; the totals come first."""
        parts = (self.totals, self.recent)
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("key", "day")}
        columns |= {name: np.concatenate([part.count[name] for part in parts]) for name in COUNTED}
        said = {"month": self.month, "totals": str(len(self.totals.key))}
        replace_source(path, pa.table(columns).replace_schema_metadata(said))

    @classmethod
    def read(cls, path: Path) -> Counted:
        """Read what ``write`` wrote."""
        table = pq.read_table(path)
        said = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        key, day, *count = (table.column(name).to_numpy() for name in ("key", "day", *COUNTED))
        cells, totals = Cells(key, day, dict(zip(COUNTED, count, strict=True))), int(said["totals"])
        return cls(said["month"], cells.take(slice(0, totals)), cells.take(slice(totals, None)))


def daily_stats(
    months: Sequence[Month], key: str, since: str = "", state: Path | None = None
) -> Iterator[tuple[str, Iterator[pa.Table]]]:
    """Counts per ``key`` at every midnight at which one of them changes.

    A row stamped with midnight D counts the events that became available before D: ``*_7d`` those of the
    seven days before it, ``*_28d`` of 28, ``*_all`` of all. A day with events changes the counts at the next
    midnight and, when it leaves a window, 7 and 28 days later: each of these gets a row, so the newest row at
    any time holds exactly the counts of the windows that end at the last midnight.

    Args:
        months: a log; rows where ``key`` is null are left out.
        key: ``"item_id"`` or ``"query_id"``.
        since: the month from which rows are wanted; the events before it are only added up.
        state: a file that keeps what was counted before the log's last month, so that the months before it need not
            be read again; None: they are.

    Yields:
        the name of each month of the log, and of each later one with rows, and its rows in parts, at least one, so
        that intermediate arrays stay small: key int64, event_timestamp, shown_{7d,28d,all} and
        positive_{7d,28d,all} int64, and rate_all float32: (positive + 20 usual) / (shown + 20) of all time, where
        usual is the rate of the whole log before the midnight (``usual_rate``). Shown are impressions and ratings;
        positive are clicks, carts, purchases and ratings of 4 or more. Ascending by (key, event_timestamp) within a
        month, unique.
    """
    known = {month.name: month for month in months}
    begun = Counted(months[0].name, Cells.none(), Cells.none())
    last = months[-1].name
    if state is not None and state.exists() and (found := Counted.read(state)).month <= min(since, last):
        begun = found
    name, totals, recent = begun.month, begun.totals, begun.recent
    while name <= last or len(recent.key):
        if name == last and state is not None:
            Counted(name, totals, recent).write(state)
        begin, end, following = _days(name)
        recent = recent.plus(_cells(known[name], key)) if name in known else recent
        if name >= since and (name in known or len(_stamps(recent.day, begin, end))):
            yield name, _rows(totals, recent, key, begin, end)
        if (old := recent.day < end - REACH).any():
            gone = recent.take(old)
            totals = totals.plus(Cells(gone.key, np.zeros_like(gone.day), gone.count))
            recent = recent.take(~old)
        name = following


def _days(name: str) -> tuple[int, int, str]:
    """The first day of a month and of the next one, days since 1970, and the name of the next."""
    following = str(np.datetime64(name, "M") + 1)
    return start_us(name) // DAY_US, start_us(following) // DAY_US, following


def _cells(month: Month, key: str) -> Cells:
    log = month.table((key, "available_time", "type", "value"))
    log = log.filter(log.column(key).is_valid())
    shown = pc.is_in(log.column("type"), value_set=pa.array(["impression", "rating"])).to_numpy()
    positive = np.isin(behaviour_codes(log.column("type"), log.column("value")), POSITIVE_CODES)
    day = log.column("available_time").cast(pa.int64()).to_numpy() // DAY_US
    flags = {"shown": shown.astype(np.int64), "positive": positive.astype(np.int64)}
    return Cells.of(log.column(key).to_numpy(), day, flags)


def _stamps(day: np.ndarray, begin: int, end: int) -> np.ndarray:
    """The midnights from ``begin`` on and before ``end`` at which counts of these days change."""
    stamps = np.concatenate([day + 1 + days for days in (0, *WINDOWS.values())])
    return stamps[(stamps >= begin) & (stamps < end)]


def usual_rate(totals: Cells, cells: Cells, midnight: np.ndarray) -> np.ndarray:
    """The rate at which anything was liked before each midnight, float64 of the shape of ``midnight``.

    An item that was shown a few times is taken for a usual one, not for one that nobody likes: in a log of clicks
    one of twenty is liked, in a log of ratings most are (docs/log/ranker.md#never-shown-is-not-average).

    Args:
        totals: counts of each id until the cells begin.
        cells: of each id and day.
        midnight: int64, days since 1970 UTC.

    Returns:
        (positive + 1) / (shown + 20), at most 1: some likes belong to nothing that was shown.
    """
    order = np.argsort(cells.day, kind="stable")
    until = np.searchsorted(cells.day[order], midnight)
    positive, shown = (
        totals.count[name].sum() + np.append(0, np.cumsum(cells.count[name][order]))[until]
        for name in ("positive", "shown")
    )
    usual: np.ndarray = (positive + PRIOR_SHOWN * FIRST_RATE) / (shown + PRIOR_SHOWN)
    return np.minimum(usual, 1)


def _rows(totals: Cells, cells: Cells, key: str, begin: int, end: int) -> Iterator[pa.Table]:
    """The rows stamped in a month, some ids at a time, at least one part.

    Args:
        totals: counts of each id until the cells begin.
        cells: of the month and of the days before it that are still in a window.
        key: name of the ids.
        begin, end: first day of the month and of the next.
    """
    start = 0
    usual = usual_rate(totals, cells, np.arange(begin, end))
    while True:
        stop = min(start + CELLS_AT_ONCE, len(cells.key))
        if stop < len(cells.key):  # no id is in two parts
            stop = int(np.searchsorted(cells.key, cells.key[stop - 1], side="right"))
        yield _stats(totals, cells.take(slice(start, stop)), key, begin, usual)
        start = stop
        if start >= len(cells.key):
            return


def _stats(totals: Cells, cells: Cells, key: str, begin: int, usual: np.ndarray) -> pa.Table:
    """``_rows`` of some ids; ``usual`` float64, the log's rate at each midnight of the month."""
    end = begin + len(usual)
    new = np.append(True, np.diff(cells.key) != 0)[: len(cells.key)]
    ids, entity = cells.key[new], np.cumsum(new) - 1
    first_day = begin - 2 * REACH
    span = end - first_day + REACH
    # One sorted integer per (entity, day): a window is then the difference of two running sums.
    cell = entity * span + (cells.day - first_day)
    running = {name: np.append(0, np.cumsum(cells.count[name])) for name in COUNTED}
    stamps = distinct(np.concatenate([cell + 1 + days for days in (0, *WINDOWS.values())]))
    stamped, midnight = np.divmod(stamps, span)
    inside = (midnight + first_day >= begin) & (midnight + first_day < end)
    stamps, stamped, midnight = stamps[inside], stamped[inside], midnight[inside]
    until = np.searchsorted(cell, stamps)
    columns = {}
    for window, days in WINDOWS.items():
        since = np.searchsorted(cell, stamps - days)
        for name in COUNTED:
            columns[f"{name}_{window}"] = running[name][until] - running[name][since]
    since = np.searchsorted(cell, stamped * span)
    place = rows_of(totals.key, ids)
    there = place >= 0
    for name in COUNTED:
        before = np.zeros(len(ids), np.int64)
        before[there] = totals.count[name][place[there]]
        columns[f"{name}_all"] = before[stamped] + running[name][until] - running[name][since]
    prior = PRIOR_SHOWN * usual[midnight + first_day - begin]
    rate = (columns["positive_all"] + prior) / (columns["shown_all"] + PRIOR_SHOWN)
    return pa.table(
        {
            key: pa.array(ids[stamped], pa.int64()),
            "event_timestamp": pa.array((midnight + first_day) * DAY_US, pa.int64()).cast(TIME),
            **{name: pa.array(values, pa.int64()) for name, values in columns.items()},
            "rate_all": pa.array(rate, pa.float32()),
        }
    )
