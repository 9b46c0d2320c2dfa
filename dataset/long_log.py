"""A log that is longer than memory: written to disk batch by batch, read back in order of time.

What is kept in memory grows with the users, not with the events. The order is that of ``canonical.event_table``: a
long log and a short one of the same source become the same events. Events in slates are not for it: a slate is
checked as a whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import NO_CLOCK, after, flat, start_of, under, users_of
from dataset.adapters.source import AT_ONCE, together
from dataset.contracts import EVENTS, TIME, DataError
from dataset.identity import IMPORTED
from dataset.order import hashed
from dataset.sieve import Column, sane
from moonstore.clock import CLOCK_SKEW
from moonstore.disk import writing

DISK: dict[str, str | int] = {
    "memory_limit": "400MB",
    "threads": 2,
    "preserve_insertion_order": False,
}  # the rest of a sort is on disk
FEW = ("available_time", "query_id", "value")  # of EVENTS, of which a source may know more than the usual
IN_ORDER = "SELECT * EXCLUDE (tie, row) FROM log ORDER BY coalesce(time_us, -1), tie, row"


class LongLog:
    """Events on their way into a dataset, in a temporary file.

    Attributes:
        rows: number of events.
        start: the earliest time within the bounds of dates; NO_CLOCK if there is none.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="moon-log-")
        place = Path(self._folder.name)
        self._disk = duckdb.connect(str(place / "log.duckdb"), config={**DISK, "temp_directory": str(place)})
        self._disk.execute("SET enable_progress_bar = false")  # ours is on stderr
        self._users: list[pa.Table] = []
        self.rows = 0
        self.start = NO_CLOCK

    def add(
        self,
        kind: str | Column,
        user: Column,
        item: Column,
        time: Column,
        name: Column | None = None,
        more: Mapping[str, Column] | None = None,
    ) -> None:
        """Add events, in any order.

        Args:
            kind: the type of all, or of each (EVENT_TYPES).
            user, item, time: as for ``canonical.event_table``.
            name: the source's ids of the users, text; None: ``users`` is not asked.
            more: columns of FEW; the same ones every time.
        """
        count = len(time)
        kinds = pa.repeat(kind, count) if isinstance(kind, str) else kind
        users, items = (flat(ids).fill_null(-1).to_numpy() for ids in (user, item))
        part = pa.table(
            {
                "user_id": user,
                "item_id": item,
                "type": kinds,
                "time_us": flat(time).cast(pa.int64()),
                "tie": hashed(users, items),
                "row": np.arange(self.rows, self.rows + count),
                **(more or {}),
            }
        )
        with writing(Path(self._folder.name)):
            self._disk.register("part", part)
            if not self.rows:
                self._disk.execute("CREATE TABLE log AS SELECT * FROM part LIMIT 0")
            self._disk.execute("INSERT INTO log SELECT * FROM part")
            self._disk.unregister("part")
        first = start_of(time)
        if first != NO_CLOCK:
            self.start = first if self.start == NO_CLOCK else min(self.start, first)
        self.rows += count
        if name is not None:
            self._see(user, time, name)

    def chunks(self) -> Iterator[pa.Table]:
        """EVENTS ordered by time and then by a hash, from ``IMPORTED`` on; known a second later, unless said."""
        number = IMPORTED + 1
        batches = self._disk.sql(IN_ORDER).to_arrow_reader(AT_ONCE) if self.rows else ()
        for part in together(batches):
            ties = hashed(*(part.column(name).fill_null(-1).to_numpy() for name in ("user_id", "item_id")))
            time = part.column("time_us").cast(TIME)
            columns = {"event_time": time, "available_time": after(time), "sequence": pa.array(ties)}
            columns |= {
                name: part.column(name)
                for name in ("user_id", "item_id", "type", *FEW)
                if name in part.column_names
            }
            yield under(EVENTS, {"event_id": pa.array(np.arange(number, number + len(part))), **columns})
            number += len(part)

    def users(self, profiles: Mapping[str, Column] | None = None) -> pa.Table:
        """USERS, as ``canonical.user_table`` makes them.

        Raises:
            DataError: two names of users map to the same id.
        """
        self._gather()
        active = self._users[0].sort_by("user_id")
        if len(pc.unique(active.column("user_id"))) != len(active):
            raise DataError(
                "users: expected an id for each name of the source, found two names of one: ids collide"
            )
        return users_of(active, profiles, self.start)

    @contextmanager
    def removed_if_it_fails(self) -> Iterator[None]:
        """Close the log if what is done with it raises."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the temporary file."""
        self._disk.close()
        self._folder.cleanup()

    def _see(self, user: Column, time: Column, name: Column) -> None:
        """Remember the names of users and when they were first seen; grouped anew when they have doubled."""
        moments = flat(time)
        valid = pc.fill_null(sane(moments, datetime.now(UTC) + CLOCK_SKEW), False)
        moments = pc.if_else(valid, moments, pa.scalar(None, moments.type))
        part = pa.table({"user_id": flat(user), "external_id": flat(name), "first_seen": moments})
        self._users.append(_firsts(part.filter(part.column("user_id").is_valid())))
        if sum(len(one) for one in self._users[1:]) > max(len(self._users[0]), AT_ONCE):
            self._gather()

    def _gather(self) -> None:
        known = pa.schema([("user_id", pa.int64()), ("external_id", pa.string()), ("first_seen", TIME)])
        self._users = [_firsts(pa.concat_tables([known.empty_table(), *self._users]))]


def _firsts(seen: pa.Table) -> pa.Table:
    """One row for each user, with the earliest of the times."""
    keys = ["user_id", "external_id"]
    grouped = seen.group_by(keys).aggregate([("first_seen", "min")])
    return grouped.select([*keys, "first_seen_min"]).rename_columns(seen.column_names)
