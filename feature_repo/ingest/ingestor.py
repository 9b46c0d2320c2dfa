"""Ingestion of events into the journal and the online histories.

An event is first made durable (``feature_repo.ingest.journal``) and then added to its user's history in the online
store (``feature_repo.history``). It counts as available ``VISIBLE_AFTER`` after it was received: by then it is
online, so a training frame later shows exactly what the request saw. Ingestion is idempotent: a duplicate event
changes nothing, and an ingestion that was killed is completed by sending the event or opening the store again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset.contracts import behaviour_codes
from dataset.records import Event, Rule
from feature_repo import dead_letters
from feature_repo.history import BEHAVIOURS, POSITION, VIEW, CompareAndSetStore, behaviours, history_batch
from feature_repo.ingest.clock import wall
from feature_repo.ingest.journal import Journal
from feature_repo.online import UNREACHABLE, OnlineReader, StoreUnavailable
from moonstore.batch import refuse_future
from moonstore.disk import DiskError
from moonstore.encode import encode
from moonstore.errors import StoreError
from moonstore.freshness import EPOCH, US

log = logging.getLogger(__name__)

VISIBLE_AFTER = timedelta(milliseconds=25)  # writing journal and online store takes less
TRIES = 50  # of a compare-and-set, each lost to another writer of the same user
AT_ONCE = 2000  # events pushed per batch


class HistoryWriter:
    """Adds behaviours to their users' online histories; any number of writers may run concurrently.

    Args:
        store_dir: the run's store.

    Raises:
        StoreError: there is no store, or its online store cannot compare and set.
    """

    def __init__(self, store_dir: Path) -> None:
        self._reader = OnlineReader(store_dir, history=1, services=())
        self._store = self._reader.store
        self._view = self._store.get_feature_view(VIEW)
        online = self._store._get_provider().online_store  # type: ignore[attr-defined]
        if not isinstance(online, CompareAndSetStore):
            raise StoreError(
                f"{store_dir}: expected an online store of feature_repo, found {type(online).__name__}"
            )
        self._online = online

    def push(self, events: pa.Table) -> None:
        """Add events to the histories; idempotent.

        Args:
            events: EVENTS rows; impressions are ignored.

        Raises:
            FutureRowError: an event claims to have become available more than five minutes from now, which would
                hide later ones.
            StoreUnavailable: the store does not answer; part of the events may have been added.
        """
        refuse_future(VIEW, events.column("available_time").to_pylist())
        code = behaviour_codes(events.column("type"), events.column("value"))
        rows = np.stack(
            [
                events.column("item_id").to_numpy(),
                code,
                events.column("event_time").cast(pa.int64()).to_numpy(),
                events.column("available_time").cast(pa.int64()).to_numpy(),
                events.column("event_id").to_numpy(),
            ]
        )[:, code > 0]
        user = events.column("user_id").to_numpy()[code > 0]
        if not len(user):
            return
        order = np.argsort(user, kind="stable")
        users, first = np.unique(user[order], return_index=True)
        new = dict(zip(users.tolist(), np.split(rows[:, order], first[1:], axis=1), strict=True))
        for _ in range(TRIES):
            users = self._merge(users, new)
            if not len(users):
                return
        raise StoreUnavailable(f"{len(users)} histories changed {TRIES} times while they were written")

    def _merge(self, users: np.ndarray, new: dict[int, np.ndarray]) -> np.ndarray:
        """Try once to write every user; returns the users that another writer changed in the meantime."""
        stored = self._reader.stored("user_id", users, BEHAVIOURS, EPOCH)
        known = behaviours(stored.columns)
        merged = [one.merged(new[user]) for user, one in zip(users.tolist(), known, strict=True)]
        changed = [place for place, one in enumerate(merged) if one is not known[place]]
        if not changed:
            return users[:0]
        before = pa.array([known[place].position for place in changed], pa.int64())
        there = stored.found[VIEW][changed]
        cells = [
            cell if is_there else b"" for cell, is_there in zip(encode(before, "int64"), there, strict=True)
        ]
        batch = history_batch(users[changed], [merged[place] for place in changed])
        try:
            done = self._online.compare_and_set(self._store.config, self._view, batch, POSITION, cells)
        except UNREACHABLE as error:
            raise StoreUnavailable(f"the online store does not answer: {error}") from error
        return users[changed][~done]


@dataclass(frozen=True)
class Ingested:
    """Counts of ingested events.

    Attributes:
        accepted: events received for the first time.
        duplicates: events received before, or repeated in this call.
        late: accepted events that were online only after they had become available.
        refused: invalid entries, moved to the dead letter.
        conflicts: other events under the identity of a known one, moved to the dead letter.
    """

    accepted: int
    duplicates: int
    late: int
    refused: int = 0
    conflicts: tuple[Event, ...] = ()

    def plus(self, other: Ingested) -> Ingested:
        """The sum of both counts."""
        return Ingested(
            self.accepted + other.accepted,
            self.duplicates + other.duplicates,
            self.late + other.late,
            self.refused + other.refused,
            self.conflicts + other.conflicts,
        )


class Ingestor:
    """Ingests events into the store at ``store_dir``; use one per thread, in any number of processes.

    Journal events that an earlier ingestor may not have written online are written first, or, while the online store
    does not answer, together with the next events.

    Args:
        store_dir: the run's store.
        now: the shop's clock, with a time zone.

    Raises:
        StoreError: there is no store, or its online store cannot compare and set.
    """

    def __init__(self, store_dir: Path, now: Callable[[], datetime] = wall) -> None:
        self._now, self._store_dir = now, store_dir
        self._histories = HistoryWriter(store_dir)
        self._journal = Journal(store_dir)
        self._undone = [self._journal.table()]
        try:
            self._push()
        except (StoreUnavailable, DiskError) as error:
            log.warning("the journal is not online yet: %s", error)

    def ingest(self, events: Sequence[Event], door: str = "call") -> Ingested:
        """Append events to the journal and add behaviours to their users' histories; idempotent.

        Args:
            events: to ingest.
            door: the way they came in, recorded with those that go to the dead letter.

        Returns:
            the counts, once the events are on disk and online.

        Raises:
            DataError: an event time lies in the future, or an id cannot be told from another inside; no event is
                accepted.
            DiskError: the journal or the online store cannot be written; sending the events again is safe.
            StoreUnavailable: the online store does not answer. The events are in the journal and go online with the
                next ones; sending them again is safe.
        """
        appended = self._journal.append(events, lambda: self._us(VISIBLE_AFTER))
        for one in appended.conflicts:
            record = one.model_dump(mode="json", exclude_defaults=True)
            dead_letters.put(
                self._store_dir, dead_letters.EVENTS, door, Rule.USED_ID.format("event_id"), record
            )
        self._undone.append(appended.rows)
        self._push()
        visible = self._us()
        available = appended.rows.column("available_time").cast(pa.int64()).to_numpy()
        late = int((available[appended.accepted] < visible).sum())
        accepted, conflicts = int(appended.accepted.sum()), tuple(appended.conflicts)
        duplicates = len(events) - accepted - len(conflicts)
        return Ingested(accepted, duplicates, late, conflicts=conflicts)

    def _push(self) -> None:
        waiting = pa.concat_tables(self._undone)
        for start in range(0, len(waiting), AT_ONCE):
            self._histories.push(waiting.slice(start, AT_ONCE).combine_chunks())
        self._undone.clear()

    def _us(self, ahead: timedelta = timedelta(0)) -> int:
        return (self._now() + ahead - EPOCH) // US
