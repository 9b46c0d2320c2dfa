"""Events that came in since the offline log was last written, each once, on disk before anything else knows of it.

The journal is a folder of files, one JSON object a line. An event is in it for good once ``append`` returns: its
first arrival decides when it became available, however often it is told of again, by whichever process. ``seal``
starts a new file, so that the earlier ones can be made part of the offline log (``feature_repo.ingest.fold``) and
put away.
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
from feature_repo.ingest.arrivals import Event, arrived, table_of
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
        """Keep those events that nobody told of before.

        Args:
            events: in any order, some perhaps twice.
            clock_us: when what is kept now becomes available, microseconds since 1970 UTC; never before what is
                there already.

        Returns:
            EVENTS rows of all of them that the offline log does not hold, each once, known ones as they were first
            told of; and bool of the same length, which are new.

        Raises:
            DataError: one is of the future; none is kept.
        """
        with locked(self._folder / LOCK):
            self._refresh()
            distinct = {one.event_id: one for one in reversed(events)}
            fresh = [
                one for one in distinct.values() if one.event_id not in self._known and not self._in_log(one)
            ]
            told = [one for one in distinct.values() if one.event_id in self._known]
            again = [arrived([one], self._known[one.event_id]) for one in told]
            table = arrived(fresh, max(clock_us(), self._newest))
            if fresh:
                self._write(table)
        both = pa.concat_tables([table, *again]).combine_chunks()
        return both, np.arange(len(both)) < len(table)

    def table(self, files: Sequence[Path] | None = None) -> pa.Table:
        """What the journal, or some of its files, hold, as EVENTS rows in the order they came in."""
        rows = [row for path in files or self.files() for row in _lines(path.read_bytes())]
        return table_of({name: [row.get(name) for row in rows] for name in EVENTS.names})

    def files(self) -> list[Path]:
        """Its files, in order; events are appended to the last one."""
        return sorted(self._folder.glob("*.jsonl"))

    def seal(self) -> list[Path]:
        """Append to a new file from now on; the files before it, which will not change any more."""
        with locked(self._folder / LOCK):
            sealed = self.files()
            if sealed:
                following = self._folder / f"{int(sealed[-1].stem) + 1:08}.jsonl"
                following.touch()
                fsync(self._folder)
        return sealed

    def archive(self, sealed: Sequence[Path]) -> None:
        """Put files away that the offline log holds."""
        folded = self._folder / FOLDED
        folded.mkdir(exist_ok=True)
        for path in sealed:
            path.rename(folded / path.name)

    def told(self) -> np.ndarray:
        """Ids of all events that ever came in, int64."""
        paths = [*(self._folder / FOLDED).glob("*.jsonl"), *self.files()]
        return np.array([row["event_id"] for path in paths for row in _lines(path.read_bytes())], np.int64)

    def newest_us(self) -> int:
        """When the last event of its files became available, microseconds since 1970 UTC; 0 without any."""
        rows = (row for path in self.files() for row in _lines(path.read_bytes()))
        return max((row["available_time"] for row in rows), default=0)

    def _in_log(self, event: Event) -> bool:
        place = int(np.searchsorted(self._logged, event.event_id))
        return place < len(self._logged) and int(self._logged[place]) == event.event_id

    def _refresh(self) -> None:
        """Read what others have appended, or folded, since."""
        written = self._log.stat().st_mtime_ns
        if written != self._logged_at:
            ids = pq.read_table(self._log, columns=["event_id"]).column(0).to_numpy()
            self._logged, self._logged_at = np.sort(ids), written
            self._known, self._read = {}, {}  # folded, or of another store
        for path in self.files():
            at = self._read.get(path.name, 0)
            if path.stat().st_size == at:
                continue
            with path.open("r+b") as stream:
                stream.seek(at)
                content = stream.read()
                whole = content.rfind(b"\n") + 1
                if whole < len(content):
                    # Somebody was killed in the middle of a line, and told nobody of it.
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
