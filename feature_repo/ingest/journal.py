"""The journal: events received since the last fold, each once, on disk before they are used anywhere.

The journal is a folder of files with one JSON object per line. ``append`` is idempotent: once it returns, the event
is durable, and its first arrival decides when it became available, however often and by whichever process it is sent
again. ``seal`` starts a new file, so that the earlier ones can be folded into the offline log
(``feature_repo.ingest.fold``) and archived.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.contracts import EVENTS
from dataset.records import Event
from feature_repo.ingest.arrivals import events_table, table_of
from feature_repo.sources import DATA, JOURNAL, LOCK, LOG
from run.artifacts import fsync, locked

FIRST, FOLDED = "00000001.jsonl", "folded"


class Journal:
    """The journal of the store at ``store_dir``; any number of processes may append to it.

    Args:
        store_dir: the run's store.
    """

    def __init__(self, store_dir: Path) -> None:
        data = Path(store_dir) / DATA
        self._folder, self._log = data / JOURNAL, data / LOG
        self._folder.mkdir(exist_ok=True)
        self._known: dict[int, int] = {}  # event id -> available_us, of every line read so far
        self._read: dict[str, int] = {}  # file -> how many bytes of it
        self._logged = np.zeros(0, np.int64)  # ids of the offline log, ascending
        self._logged_at: int | None = None
        self._newest = 0

    def append(self, events: Sequence[Event], clock_us: Callable[[], int]) -> tuple[pa.Table, np.ndarray]:
        """Append the events that are neither in the journal nor in the offline log.

        Args:
            events: in any order, duplicates allowed.
            clock_us: returns when accepted events become available, microseconds since 1970 UTC; raised above the
                newest time in the journal. Each event is available a microsecond after the one before, so events have
                the order in which they arrived, not that of their ids.

        Returns:
            EVENTS rows of all given events that the offline log does not hold, each once, duplicates with the time
            of their first arrival; and bool of the same length, which of them were accepted.

        Raises:
            DataError: an event time lies in the future; no event is accepted.
        """
        with locked(self._folder / LOCK):
            self._refresh()
            distinct: dict[int, Event] = {}
            for one in events:
                distinct.setdefault(one.event_id, one)
            fresh = [
                one for one in distinct.values() if one.event_id not in self._known and not self._in_log(one)
            ]
            known = [one for one in distinct.values() if one.event_id in self._known]
            duplicates = [events_table([one], self._known[one.event_id]) for one in known]
            table = events_table(fresh, max(clock_us(), self._newest + 1))
            if fresh:
                self._write(table)
        both = pa.concat_tables([table, *duplicates]).combine_chunks()
        return both, np.arange(len(both)) < len(table)

    def table(self, files: Sequence[Path] | None = None) -> pa.Table:
        """Events of the journal, or of these of its files, as EVENTS rows in order of arrival."""
        rows = [row for path in files or self.files() for row in _lines(path.read_bytes())]
        return table_of({name: [row.get(name) for row in rows] for name in EVENTS.names})

    def files(self) -> list[Path]:
        """Its files, in order; events are appended to the last one."""
        return sorted(self._folder.glob("*.jsonl"))

    def seal(self) -> list[Path]:
        """Start a new file for later events; returns the files before it, which no longer change."""
        with locked(self._folder / LOCK):
            sealed = self.files()
            if sealed:
                following = self._folder / f"{int(sealed[-1].stem) + 1:08}.jsonl"
                following.touch()
                fsync(self._folder)
        return sealed

    def archive(self, sealed: Sequence[Path]) -> None:
        """Move files whose events are in the offline log to the archive."""
        folded = self._folder / FOLDED
        folded.mkdir(exist_ok=True)
        for path in sealed:
            path.rename(folded / path.name)

    def event_ids(self) -> np.ndarray:
        """Ids of all events ever accepted, folded ones included, int64."""
        paths = [*(self._folder / FOLDED).glob("*.jsonl"), *self.files()]
        return np.array([row["event_id"] for path in paths for row in _lines(path.read_bytes())], np.int64)

    def newest_us(self) -> int:
        """Available time of the newest event in the journal, microseconds since 1970 UTC; 0 without any."""
        rows = (row for path in self.files() for row in _lines(path.read_bytes()))
        return max((row["available_time"] for row in rows), default=0)

    def _in_log(self, event: Event) -> bool:
        place = int(np.searchsorted(self._logged, event.event_id))
        return place < len(self._logged) and int(self._logged[place]) == event.event_id

    def _refresh(self) -> None:
        """Read what other processes have appended or folded since the last call."""
        written = self._log.stat().st_mtime_ns
        if written != self._logged_at:
            ids = pq.read_table(self._log, columns=["event_id"]).column(0).to_numpy()
            self._logged, self._logged_at = np.sort(ids), written
            self._known, self._read = {}, {}  # the journal was folded, or the store was replaced
        for path in self.files():
            at = self._read.get(path.name, 0)
            if path.stat().st_size == at:
                continue
            with path.open("r+b") as stream:
                stream.seek(at)
                content = stream.read()
                whole = content.rfind(b"\n") + 1
                if whole < len(content):
                    # A writer was killed in the middle of a line; that event was never acknowledged.
                    stream.truncate(at + whole)
            for row in _lines(content[:whole]):
                self._known[row["event_id"]] = row["available_time"]
                self._newest = max(self._newest, row["available_time"])
            self._read[path.name] = at + whole

    def _write(self, table: pa.Table) -> None:
        columns = {
            field.name: column.cast(pa.int64()) if pa.types.is_timestamp(field.type) else column
            for field, column in zip(table.schema, table.columns, strict=True)
        }
        rows = pa.table(columns).to_pylist()
        lines = "".join(
            json.dumps({name: value for name, value in row.items() if value is not None}) + "\n"
            for row in rows
        )
        files = self.files()
        path = files[-1] if files else self._folder / FIRST
        with path.open("ab") as stream:
            stream.write(lines.encode())
            stream.flush()
            os.fsync(stream.fileno())
            self._read[path.name] = stream.tell()
        if not files:
            fsync(self._folder)
        for row in rows:
            self._known[row["event_id"]] = row["available_time"]
            self._newest = max(self._newest, row["available_time"])


def _lines(content: bytes) -> Iterator[dict[str, Any]]:
    whole = content[: content.rfind(b"\n") + 1]
    return (json.loads(line) for line in whole.splitlines())
