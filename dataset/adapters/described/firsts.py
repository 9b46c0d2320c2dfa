"""When each id of a log was first seen, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import NO_CLOCK, flat
from dataset.contracts import TIME
from dataset.sieve import Column, sane
from moonstore.clock import CLOCK_SKEW

COMPACT = 1_000_000  # ids that are collected before they are merged


@dataclass
class Firsts:
    """The first sane time of every id; what it takes grows with the ids, not with the events."""

    _parts: list[pa.Table] = field(default_factory=list)

    def see(self, ids: Column, times: Column) -> None:
        """Add events: their ids, int64, and their times, TIME."""
        seen = pa.table({"id": flat(ids), "time": flat(times)})
        known = sane(seen.column("time"), datetime.now(UTC) + CLOCK_SKEW)
        seen = seen.filter(pc.and_(known, seen.column("id").is_valid()))
        self._parts.append(_earliest([seen]))
        if sum(len(part) for part in self._parts[1:]) > max(len(self._parts[0]), COMPACT):
            self._parts = [_earliest(self._parts)]

    def of(self, ids: Column) -> pa.Array:
        """The first time of each id, TIME; null where it has none."""
        known = self._known()
        return flat(known.column("time")).take(pc.index_in(flat(ids), value_set=flat(known.column("id"))))

    def start(self) -> datetime:
        """The earliest time of all; NO_CLOCK if there is none."""
        known = self._known()
        return pc.min(known.column("time")).as_py() if len(known) else NO_CLOCK

    def _known(self) -> pa.Table:
        self._parts = [_earliest(self._parts)]
        return self._parts[0]


def _earliest(parts: Sequence[pa.Table]) -> pa.Table:
    none = pa.table({"id": pa.array([], pa.int64()), "time": pa.array([], TIME)})
    grouped = pa.concat_tables([none, *parts]).group_by("id", use_threads=False).aggregate([("time", "min")])
    return grouped.rename_columns({"time_min": "time"}).select(["id", "time"])
