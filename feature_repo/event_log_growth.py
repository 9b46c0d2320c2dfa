"""Writing the event log: what is there until a month is copied, the behaviours since then go behind it.

A month is read twice, once to count and once to place its behaviours, so memory grows with the users and with the
largest month, not with the log. A version is named after its content: the version of a log up to the end of a month
is a hash of the version before that month and of the month's behaviours, and is known without the months before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset.contracts import behaviour_codes
from dataset.jagged import offsets_of
from dataset.log import distinct
from dataset.months import Month, start_us
from feature_repo.event_log import COLUMNS, MONTHS, USERS_AT_ONCE, EventLog
from moonstore.disk import writing
from moonstore.files import fsync

READ = ("user_id", "item_id", "type", "value", "event_time", "available_time", "event_id")
VERSION_DIGITS = 16


@dataclass(frozen=True)
class Behaviours:
    """The behaviours of a month.

    Attributes:
        user: int64 (N), ascending.
        columns: COLUMNS, int64 (N); a user's ordered by (available_time, sequence).
    """

    user: np.ndarray
    columns: dict[str, np.ndarray]

    @classmethod
    def of(cls, month: Month) -> Behaviours:
        """Read them."""
        log = month.table(READ)
        code = behaviour_codes(log.column("type"), log.column("value"))
        user = log.column("user_id").to_numpy()
        row = np.flatnonzero(code > 0)
        row = row[np.argsort(user[row], kind="stable")]
        columns = {
            "item_id": log.column("item_id").to_numpy(),
            "code": code,
            "time_us": log.column("event_time").cast(pa.int64()).to_numpy(),
            "available_us": log.column("available_time").cast(pa.int64()).to_numpy(),
            "event_id": log.column("event_id").to_numpy(),
        }
        return cls(user[row], {name: values[row].astype(np.int64) for name, values in columns.items()})

    def rank(self) -> np.ndarray:
        """Which of its user's behaviours of the month each one is, int64 from 0."""
        first = np.append(True, np.diff(self.user) != 0)[: len(self.user)]
        start = np.flatnonzero(first)
        return np.arange(len(self.user)) - start[np.cumsum(first) - 1]

    def version(self, month: str, before: str) -> str:
        """The version of the log up to the end of the month; ``before``: that of the log up to its beginning."""
        digest = hashlib.sha256(f"{before} {month}".encode())
        for values in (self.user, *self.columns.values()):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:VERSION_DIGITS]


def write_event_log(
    folder: Path, months: Sequence[Month], since: str = "", before: EventLog | None = None
) -> EventLog:
    """Write the behaviours of a log beside the other versions in ``folder`` and open them.

    Args:
        folder: of all versions.
        months: the log.
        since: the first month that is not in ``before`` as it is here.
        before: an earlier version; None: there is none, and ``since`` is empty.
    """
    versions = {} if before is None else {name: one for name, one in before.months.items() if name < since}
    kept = _kept(before, since)
    users, counts = [kept.users], [np.diff(kept.starts)]
    new = [month for month in months if month.name >= since]
    last = versions[max(versions)] if versions else ""
    for month in new:
        found = Behaviours.of(month)
        versions[month.name] = last = found.version(month.name, last)
        own, count = np.unique(found.user, return_counts=True)
        users.append(own)
        counts.append(count)
    everybody = distinct(np.concatenate(users))
    total = np.zeros(len(everybody), np.int64)
    for some, count in zip(users, counts, strict=True):
        total[np.searchsorted(everybody, some)] += count
    starts = offsets_of(total)
    version = folder / last
    if not version.exists():
        building = folder / (version.name + ".tmp")
        shutil.rmtree(building, ignore_errors=True)
        with writing(version):
            building.mkdir(parents=True)
            _place(building, everybody, starts, kept, new)
            (building / MONTHS).write_text(json.dumps(versions, indent=2) + "\n")
            for path in building.iterdir():
                fsync(path)
            building.rename(version)
    return EventLog.open(version)


@dataclass(frozen=True)
class _Kept:
    """The beginning of an earlier version.

    Attributes:
        log: the version; None: nothing is kept.
        users, starts: as of an EventLog, of the behaviours that are kept.
    """

    log: EventLog | None
    users: np.ndarray
    starts: np.ndarray


def _kept(before: EventLog | None, since: str) -> _Kept:
    """What an earlier version holds of the months before ``since``."""
    if before is None or not since:
        return _Kept(None, np.empty(0, np.int64), np.zeros(1, np.int64))
    count = before.positions_before(start_us(since))
    there = count > 0
    return _Kept(before, before.users[there], np.append(0, np.cumsum(count[there])))


def _place(folder: Path, users: np.ndarray, starts: np.ndarray, kept: _Kept, months: Sequence[Month]) -> None:
    """Write the arrays: the rows that are kept, then month by month those that come behind them."""
    for name, values in (("users", users), ("starts", starts)):
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
    arrays = {name: _array(folder / f"{name}.npy", int(starts[-1])) for name in COLUMNS}
    following = starts[:-1].copy()  # where the next behaviour of each user goes
    for start in range(0, len(kept.users), USERS_AT_ONCE):
        own = slice(start, start + USERS_AT_ONCE)
        place = np.searchsorted(users, kept.users[own])
        count = np.diff(kept.starts[start : start + USERS_AT_ONCE + 1])
        assert kept.log is not None
        old = kept.log.starts[:-1][np.searchsorted(kept.log.users, kept.users[own])]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        source, to = np.repeat(old, count) + within, np.repeat(following[place], count) + within
        for name, values in arrays.items():
            values[to] = getattr(kept.log, name)[source]
        following[place] += count
    for month in months:
        found = Behaviours.of(month)
        place = np.searchsorted(users, found.user)
        to = following[place] + found.rank()
        for name, values in arrays.items():
            values[to] = found.columns[name]
        np.add.at(following, place, 1)
    for values in arrays.values():
        if isinstance(values, np.memmap):
            values.flush()


def _array(path: Path, rows: int) -> np.ndarray:
    """A mapped int64 array of a new file; an empty one cannot be mapped."""
    if not rows:
        np.save(path, np.empty(0, np.int64), allow_pickle=False)
        return np.empty(0, np.int64)
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=(rows,))
