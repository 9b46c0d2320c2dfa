"""A log in calendar months: the events that became available in each, one parquet file a month.

What is made from a log month by month is made again only from the first month that has changed.
"""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.contracts import EVENTS, completed
from dataset.order import in_order
from moonstore.files import link

FIRST = "1970-01"  # the one month of a log without events, so that its schema is on disk
NONE = "9999-12"  # after every month


@dataclass(frozen=True)
class Month:
    """A month of a log.

    Attributes:
        name: ``2020-09``, of the available times (UTC).
        stored: EVENTS ordered by (available_time, sequence), or the file that holds them.
    """

    name: str
    stored: pa.Table | Path

    def table(self, columns: Sequence[str] = EVENTS.names) -> pa.Table:
        """These columns of its events."""
        schema = pa.schema([EVENTS.field(name) for name in columns])
        if isinstance(self.stored, Path):
            there = pq.read_schema(self.stored).names
            read = pq.read_table(self.stored, columns=[name for name in columns if name in there])
            return completed(read, schema)
        return completed(self.stored.select(columns), schema)

    def is_same(self, other: Month) -> bool:
        """Whether both hold the same events in the same order."""
        if isinstance(self.stored, Path) and isinstance(other.stored, Path):
            return self.stored.samefile(other.stored) or filecmp.cmp(self.stored, other.stored, shallow=False)
        return bool(self.table().equals(other.table()))

    def write(self, path: Path) -> None:
        """Write its events to a file that does not exist, or link the one that holds them."""
        if isinstance(self.stored, Path):
            link(self.stored, path)
        else:
            pq.write_table(self.stored, path, compression="zstd")


def months_of(log: pa.Table) -> list[Month]:
    """The months of a log in memory (EVENTS), ascending, at least one."""
    log = in_order(log)
    time_us = log.column("available_time").cast(pa.int64()).to_numpy()
    month = month_of(time_us)
    first = np.flatnonzero(np.append(True, month[1:] != month[:-1])[: len(month)])
    if not len(first):
        return [Month(FIRST, log)]
    ends = np.append(first[1:], len(month))
    return [
        Month(str(month[start]), log.slice(start, end - start))
        for start, end in zip(first.tolist(), ends.tolist(), strict=True)
    ]


def stored_months(path: Path) -> list[Month]:
    """The months of a log on disk, ascending; that of an earlier release is one file, and is read whole."""
    old = path / path.name if path.is_dir() else path  # inside: a conversion that was killed
    if old.exists() or not path.exists():
        return months_of(Month("", old).table())
    return [Month(one.stem, one) for one in parts_of(path)]


def write_months(path: Path, months: Sequence[Month], before: Sequence[Month]) -> None:
    """Write the months of a log into a new folder; those that are among ``before`` are linked."""
    path.mkdir()
    known = {month.name: month for month in before if isinstance(month.stored, Path)}
    for month in months:
        old = known.get(month.name)
        kept = month if old is None or not month.is_same(old) else old
        kept.write(path / f"{month.name}.parquet")


def parts_of(path: Path) -> list[Path]:
    """The parquet files of a table: those in the folder at ``path`` by name, or the file itself."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def month_of(time_us: np.ndarray) -> np.ndarray:
    """The month of each time, datetime64[M]; times are int64 microseconds since 1970 UTC."""
    return time_us.astype("datetime64[us]").astype("datetime64[M]")


def start_us(name: str) -> int:
    """When a month begins, microseconds since 1970 UTC."""
    return int(np.datetime64(name, "us").astype(np.int64))


def first_change(old: Sequence[Month], new: Sequence[Month]) -> str:
    """The first month that only one of two logs has or that differs between them; NONE: they are the same."""
    before, after = ({month.name: month for month in months} for months in (old, new))
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after or not before[name].is_same(after[name]):
            return name
    return NONE
