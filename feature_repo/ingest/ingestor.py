"""Behaviour as it happens: from a caller, over HTTP or from a stream into the offline log and the online histories.

An event is first made durable (``feature_repo.ingest.journal``) and then joins its user's history in the online store
(``feature_repo.history``). It becomes available ``VISIBLE_AFTER`` later than it came: by then it is online, so that
what a request sees and what a training frame will say it saw are the same. Telling of an event again changes nothing;
whatever was killed in between, telling again, or opening the store again, completes it.
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
from feature_repo.history import BEHAVIOURS, POSITION, VIEW, SwapStore, behaviours, history_batch
from feature_repo.ingest.arrivals import Event
from feature_repo.ingest.clock import wall
from feature_repo.ingest.journal import Journal
from feature_repo.online import UNREACHABLE, OnlineReader, StoreUnavailable
from moonstore.batch import refuse_future
from moonstore.encode import encode
from moonstore.errors import StoreError
from moonstore.freshness import EPOCH, US

log = logging.getLogger(__name__)

VISIBLE_AFTER = timedelta(milliseconds=25)  # journal and online store are written in less
TRIES = 50  # of a swap, each lost to another writer of the same user
AT_ONCE = 2000  # events of one round of the journal


class HistoryWriter:
    """Adds behaviours to their users' online histories; any number of them may work at once.

    Args:
        store_dir: the run's store.

    Raises:
        StoreError: there is no store, or its online store cannot compare and set.
    """

    def __init__(self, store_dir: Path) -> None:
        self._reader = OnlineReader(store_dir, history=1)
        self._store = self._reader.store
        self._view = self._store.get_feature_view(VIEW)
        online = self._store._get_provider().online_store  # type: ignore[attr-defined]
        if not isinstance(online, SwapStore):
            raise StoreError(
                f"{store_dir}: expected an online store of feature_repo, found {type(online).__name__}"
            )
        self._online = online

    def push(self, events: pa.Table) -> None:
        """Add some; an event already there changes nothing.

        Args:
            events: EVENTS rows; impressions are ignored.

        Raises:
            DataError: an event claims to have become available more than five minutes from now, which would
                hide later ones.
            StoreUnavailable: the store does not answer; some may have been added.
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
        """One round: those users that somebody else wrote in the meantime."""
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
            done = self._online.swap_columns(self._store.config, self._view, batch, POSITION, cells)
        except UNREACHABLE as error:
            raise StoreUnavailable(f"the online store does not answer: {error}") from error
        return users[changed][~done]


@dataclass(frozen=True)
class Ingested:
    """What became of some events.

    Attributes:
        new: told of for the first time.
        known: told of before, or twice now.
        late: of the new ones, those that were online only after they had become available.
        refused: what was no event, and is set aside.
    """

    new: int
    known: int
    late: int
    refused: int = 0

    def plus(self, other: Ingested) -> Ingested:
        """Both together."""
        return Ingested(
            self.new + other.new,
            self.known + other.known,
            self.late + other.late,
            self.refused + other.refused,
        )


class Ingestor:
    """Takes in events of the store at ``store_dir``; one per thread, any number of processes.

    What an earlier one left undone is done first, or, when the online store does not answer, with the next events.

    Args:
        store_dir: the run's store.
        now: the time in the shop, with a zone.

    Raises:
        StoreError: there is no store, or its online store cannot compare and set.
    """

    def __init__(self, store_dir: Path, now: Callable[[], datetime] = wall) -> None:
        self._now = now
        self._histories = HistoryWriter(store_dir)
        self._journal = Journal(store_dir)
        self._undone = [self._journal.table()]
        try:
            self._push()
        except StoreUnavailable as error:
            log.warning("the journal is not online yet: %s", error)

    def ingest(self, events: Sequence[Event]) -> Ingested:
        """Keep events, and add those that are behaviour to their users' histories.

        Returns:
            once they are in the journal, on disk, and online.

        Raises:
            DataError: one is of the future; none is kept.
            StoreUnavailable: the online store does not answer. The events are kept, and go online with the next
                ones; telling of them again is safe.
        """
        rows, new = self._journal.append(events, lambda: self._us(VISIBLE_AFTER))
        self._undone.append(rows)
        self._push()
        visible = self._us()
        available = rows.column("available_time").cast(pa.int64()).to_numpy()
        late = int((available[new] < visible).sum())
        return Ingested(int(new.sum()), len(events) - int(new.sum()), late)

    def _push(self) -> None:
        waiting = pa.concat_tables(self._undone)
        for start in range(0, len(waiting), AT_ONCE):
            self._histories.push(waiting.slice(start, AT_ONCE).combine_chunks())
        self._undone.clear()

    def _us(self, ahead: timedelta = timedelta(0)) -> int:
        return (self._now() + ahead - EPOCH) // US
