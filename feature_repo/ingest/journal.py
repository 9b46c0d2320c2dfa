"""The journal: events received since the last fold, each once, on disk before they are used anywhere.

The journal is a folder of files with one JSON object per line; a damaged line is moved to the dead letter.
``append`` is idempotent: once it returns, the event is durable, and its first arrival decides when it became
available, however often and by whichever process it is sent again. Another event with the identity of a known one is
not kept. ``seal`` starts a new file, so that the earlier
ones can be folded into the offline log (``feature_repo.ingest.fold``) and archived.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, ValidationError

from dataset.contracts import EVENTS
from dataset.records import TOO_LARGE, Event, EventType, Place, first_error
from dataset.shop_ids import LARGEST_ID
from feature_repo import dead_letters
from feature_repo.ingest.arrivals import events_table, table_of
from feature_repo.ingest.known import LoggedEvents, Told, told
from feature_repo.shop_ids import shop_ids
from feature_repo.sources import DATA, JOURNAL, LOCK, LOG
from moonstore.clock import CLOCK_SKEW
from moonstore.disk import make_folder, writing
from moonstore.files import fsync, locked
from moonstore.freshness import EPOCH, US

log = logging.getLogger(__name__)

FIRST, FOLDED = "00000001.jsonl", "folded"
Whole = Annotated[int, Field(strict=True, ge=0, le=LARGEST_ID)]


class Line(BaseModel):
    """A line of the journal, an EVENTS row with times in microseconds since 1970 UTC.

    Its values keep the bounds of ``dataset.records``; what a door asks of an event besides (a rating has a value, a
    time is a recent one) may be newer than the line.
    """

    event_id: Whole
    user_id: Whole
    item_id: Whole
    type: EventType
    event_time: Whole
    available_time: Whole
    query_id: Whole | None = None
    position: Place | None = None
    request_id: Whole | None = None
    value: Annotated[float, Field(strict=True, gt=-TOO_LARGE, lt=TOO_LARGE)] | None = None
    sequence: Whole | None = None


@dataclass(frozen=True)
class Appended:
    """What ``Journal.append`` made of the events it was given.

    Attributes:
        rows: EVENTS of those that the offline log does not hold, each once, duplicates as they were first told.
        accepted: bool (N), which of ``rows`` are new.
        conflicts: events that have the identity of another one; nothing is kept of them.
    """

    rows: pa.Table
    accepted: np.ndarray
    conflicts: list[Event]


class Journal:
    """The journal of the store at ``store_dir``; any number of processes may append to it.

    Args:
        store_dir: the run's store.
    """

    def __init__(self, store_dir: Path) -> None:
        data = Path(store_dir) / DATA
        self._store_dir, self._folder, self._log = Path(store_dir), data / JOURNAL, data / LOG
        make_folder(self._folder)
        self._known: dict[int, Told] = {}  # by stored id, of every line read so far
        self._read: dict[str, int] = {}  # file -> how many bytes of it
        self._logged = LoggedEvents(self._log, np.zeros(0, np.int64))
        self._logged_at: int | None = None
        self._newest = 0

    def append(self, events: Sequence[Event], clock_us: Callable[[], int]) -> Appended:
        """Append the events that are neither in the journal nor in the offline log.

        Args:
            events: in any order, duplicates allowed; the first of two with one identity counts.
            clock_us: returns when accepted events become available, microseconds since 1970 UTC; raised above the
                newest time in the journal, so that available times always increase.

        Raises:
            DataError: as ``events_table``; no event is accepted.
        """
        with locked(self._folder / LOCK):
            self._refresh()
            table = events_table(events, max(clock_us(), self._newest + 1), shop_ids(self._store_dir))
            fresh: dict[int, Told] = {}
            accepted: list[int] = []
            again: dict[int, int] = {}  # rows of duplicates that the journal holds
            conflicts: list[Event] = []
            for row, (event, (key, now)) in enumerate(zip(events, told(table), strict=True)):
                before = fresh.get(key) or self._known.get(key) or self._logged.find(key)
                if before is None:
                    fresh[key] = now
                    accepted.append(row)
                elif not before.is_told_by(_microseconds(event), now.content):
                    conflicts.append(event)
                elif key in self._known:
                    again.setdefault(key, row)
            new = table.take(np.array(accepted, np.int64))
            if accepted:
                self._write(new, fresh)
        known = table.take(np.array(list(again.values()), np.int64))
        duplicates = _as_first_told(known, [self._known[key] for key in again])
        rows = pa.concat_tables([new, duplicates]).combine_chunks()
        return Appended(rows, np.arange(len(rows)) < len(accepted), conflicts)

    def table(self, files: Sequence[Path] | None = None) -> pa.Table:
        """Events of the journal, or of these of its files, as EVENTS rows in order of arrival."""
        rows, damaged = [], False
        for path in files or self.files():
            good, bad = _lines(path.read_bytes())
            rows.extend(good)
            damaged |= bool(bad)
        if damaged:
            with locked(self._folder / LOCK):
                for path in files or self.files():
                    self._set_aside(path, 0, path.read_bytes())
        return _table(rows)

    def files(self) -> list[Path]:
        """Its files, in order; events are appended to the last one."""
        return sorted(self._folder.glob("*.jsonl"))

    def seal(self) -> list[Path]:
        """Start a new file for later events; returns the files before it, which no longer change."""
        with locked(self._folder / LOCK):
            sealed = self.files()
            if sealed:
                following = self._folder / f"{int(sealed[-1].stem) + 1:08}.jsonl"
                with writing(following):
                    following.touch()
                    fsync(self._folder)
        return sealed

    def archive(self, sealed: Sequence[Path]) -> None:
        """Move files whose events are in the offline log to the archive."""
        folded = self._folder / FOLDED
        make_folder(folded)
        with writing(folded):
            for path in sealed:
                path.rename(folded / path.name)

    def event_ids(self) -> np.ndarray:
        """Ids of all events ever accepted, folded ones included, int64."""
        paths = [*(self._folder / FOLDED).glob("*.jsonl"), *self.files()]
        return np.array([row["event_id"] for path in paths for row in _lines(path.read_bytes())[0]], np.int64)

    def newest_us(self) -> int:
        """Available time of the newest event in the journal, microseconds since 1970 UTC; 0 without any."""
        rows = (row for path in self.files() for row in _lines(path.read_bytes())[0])
        return max((row["available_time"] for row in rows), default=0)

    def _refresh(self) -> None:
        """Read what other processes have appended or folded since the last call."""
        written = self._log.stat().st_mtime_ns
        if written != self._logged_at:
            self._logged, self._logged_at = LoggedEvents.read(self._log), written
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
            self._remember(dict(told(_table(self._set_aside(path, at, content[:whole])))))
            self._read[path.name] = at + whole

    def _set_aside(self, path: Path, at: int, content: bytes) -> list[dict[str, Any]]:
        """Move damaged lines of a file to the dead letter; the lock must be held.

        They are overwritten with blanks, so that no line moves: other processes remember how far they have read.

        Args:
            path: of the file.
            at: place in it at which the content begins.
            content: of the file from there on.

        Returns:
            the events in the content.
        """
        good, bad = _lines(content)
        for start, line, reason in bad:
            log.warning("%s: a damaged line is set aside: %s", path, reason)
            dead_letters.put(
                self._store_dir, dead_letters.EVENTS, "journal", reason, line.decode(errors="replace")
            )
            with path.open("r+b") as stream:
                stream.seek(at + start)
                stream.write(b" " * len(line))
                stream.flush()
                os.fsync(stream.fileno())
        return good

    def _remember(self, events: Mapping[int, Told]) -> None:
        self._known.update(events)
        self._newest = max([self._newest, *(one.available_us for one in events.values())])

    def _write(self, table: pa.Table, events: Mapping[int, Told]) -> None:
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
        with writing(path):
            self._read[path.name] = _append(path, lines.encode())
            if not files:
                fsync(self._folder)
        self._remember(events)


def _table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    kept = list(rows)
    return table_of({name: [row.get(name) for row in kept] for name in EVENTS.names})


def _microseconds(event: Event) -> int | None:
    return None if event.event_time is None else (event.event_time - EPOCH) // US


def _as_first_told(rows: pa.Table, events: Sequence[Told]) -> pa.Table:
    """EVENTS rows with the times of their first arrival."""
    times = {
        "event_time": [one.event_us for one in events],
        "available_time": [one.available_us for one in events],
    }
    for name, us in times.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.field(name), pa.array(us, pa.int64()).cast(rows.field(name).type))
    return rows


def _append(path: Path, lines: bytes) -> int:
    """Append to a file, all or nothing; its size then."""
    with path.open("ab", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        try:
            if stream.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(size)  # an event that is refused may not be found here later
            raise
    return size + len(lines)


def _lines(content: bytes) -> tuple[list[dict[str, Any]], list[tuple[int, bytes, str]]]:
    """The events of whole lines, and the damaged lines: place of the first byte, content, reason."""
    good, bad, at = [], [], 0
    latest_us = (datetime.now(UTC) + CLOCK_SKEW - EPOCH) // US
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        if line.strip():  # a line that was set aside is blank
            try:
                good.append(_event(line, latest_us))
            except ValueError as error:
                bad.append((at, line.rstrip(b"\n"), str(error)))
        at += len(line)
    return good, bad


def _event(line: bytes, latest_us: int) -> dict[str, Any]:
    """The event of a line, as ``Journal._write`` wrote it.

    Raises:
        ValueError: the line is no JSON, or holds no event.
    """
    try:
        row = Line.model_validate_json(line).model_dump()
    except ValidationError as error:
        raise ValueError(f"expected an event, found {first_error(error)}") from None
    if row["available_time"] > latest_us:
        raise ValueError(f"available_time: expected a time by now, found {row['available_time']} us")
    return row
