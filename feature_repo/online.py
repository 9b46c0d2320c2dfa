"""Online reads: one user and N items in two batched reads, as a frame like those the models were trained on."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from feast import FeatureStore, FeatureView

from dataset.contracts import TIME
from feature_repo import dead_letters
from feature_repo.columns import as_read, by_view, item_columns, nothing, user_columns
from feature_repo.event_log import EventLog, open_event_log
from feature_repo.frame import Frame, History
from feature_repo.history import BEHAVIOURS, Behaviour, behaviours
from feature_repo.on_demand import STORED, Reads, compute, reads_of, request_table
from feature_repo.services import CTR, RELEVANCE, RETRIEVAL
from feature_repo.side_information import open_side_information
from feature_repo.signature import Feature, open_signature, united
from feature_repo.store import open_store
from feature_repo.views import HISTORY
from moonstore.errors import UNREACHABLE, StoreError
from moonstore.freshness import EPOCH, US, as_of
from moonstore.matrix import Matrix, Reader, matrix_reader, to_arrow


class StoreUnavailable(ConnectionError):
    """The online store does not answer; callers serve without it and try again later."""


@dataclass(frozen=True)
class Stored:
    """Stored features of N entities.

    Attributes:
        columns: feature -> N values, null where nothing is stored.
        found: view -> bool of shape (N).
    """

    columns: dict[str, pa.Array]
    found: dict[str, np.ndarray]


class Items(Protocol):
    """A snapshot of stored item features."""

    def read(self, item_ids: np.ndarray, time: datetime) -> Stored:
        """Stored features of N items at ``time``."""


class OnlineReader:
    """Reads frames from a run's online store.

    Args:
        store_dir: the run's store.
        history: K, most behaviours in a frame's history. The online store keeps the newest ``views.HISTORY`` of each
            user; those before them are gathered from the event log, as of the last load.
        services: the FeatureServices whose features a frame holds.

    Attributes:
        store: the open feature store.
        features: of the services, each once.
        reads: what its frames take from the store.
        side: the features of behaviours, as of the last load.

    Raises:
        StoreError: there is no store, or a service is missing, wrong or names a feature that is not online.
        ValueError: ``history`` is none.
    """

    def __init__(
        self, store_dir: Path, history: int, services: Sequence[str] = (RETRIEVAL, CTR, RELEVANCE)
    ) -> None:
        if history < 1:
            raise ValueError(f"expected a history of at least one behaviour, found {history}")
        self.history = history
        self.store = open_store(store_dir)
        self.features = united(open_signature(self.store, service) for service in services)
        self.reads = reads_of(self.store, self.features)
        check_online(self.store, self.reads)
        self.side = open_side_information(self.store, self.features)
        self._log = self._older()
        self._readers: dict[tuple[str, ...], Reader] = {}
        self._items: Items | None = None

    def read(
        self,
        user_id: int,
        item_ids: Sequence[int] | np.ndarray,
        time: datetime,
        query_id: int | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Frame:
        """The frame of one request: a user and N candidate items at ``time``, and what the caller sent with it.

        Features of unknown users and items are null, and their "found" column is false. ``request_id`` is 0.
        Behaviours available at or after ``time`` are left out. Rows older at ``time`` than
        their view's time to live count as not found.

        Raises:
            StoreUnavailable: the store does not answer.
            DataError: the context has a name that no on-demand view reads, or a value of another type.
            ValueError: an id is not a 64-bit integer, or ``time`` has no time zone.
        """
        return self.with_candidates(self.read_user(user_id, time, query_id, context), item_ids)

    def with_candidates(self, user: Frame, item_ids: Sequence[int] | np.ndarray) -> Frame:
        """Add N candidates to the frame of a request read by ``read_user``; raises like ``read``."""
        ids = int64_ids(item_ids, "item_id")
        time = user.requests.column("time")[0].as_py()
        stored = self.read_items(ids, time)
        candidates = self._candidates(user.requests, ids, stored.columns)
        return Frame(user.requests, candidates, np.array([0, len(ids)]), user.history)

    def _candidates(self, request: pa.Table, ids: np.ndarray, stored: dict[str, pa.Array]) -> pa.Table:
        columns = item_columns(self.reads.asked["candidate"], stored)
        computed: dict[str, pa.Array] = {}
        if self.reads.of_candidates():
            of_request = request.take(pa.array(np.zeros(len(ids), np.int64))).combine_chunks()
            inputs = {name: of_request.column(name) for name in of_request.column_names} | stored
            time_us = of_request.column("time").cast(pa.int64()).to_numpy()
            computed = compute(self.reads, True, inputs, time_us)
        return pa.table({"item_id": pa.array(ids, pa.int64()), **computed, **columns})

    def read_user(
        self,
        user_id: int,
        time: datetime,
        query_id: int | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Frame:
        """The frame of a request, still without candidates; raises like ``read``."""
        users = int64_ids([user_id], "user_id")
        queries = [None if query_id is None else int(int64_ids([query_id], "query_id")[0])]
        sent = self.reads.sent(context or {})
        stored = self.stored("user_id", users, (*self.reads.stored["user"], *BEHAVIOURS), time)
        kept = behaviours(stored.columns)[0]
        known = kept.before(_us(time))
        item_id, code, time_us, _, _ = self._with_older(user_id, kept, known.last(self.history), _us(time))
        of_user = {one.name: stored.columns[one.name] for one in self.reads.stored["user"]}
        requests = request_table(
            self.reads,
            {
                "request_id": pa.array([0], pa.int64()),
                "user_id": pa.array(users),
                "time": pa.array([_us(time)], pa.int64()).cast(TIME),
                "query_id": pa.array(queries, pa.int64()),
            },
            user_columns(self.reads.asked["user"], of_user, np.array([known.position])),
            of_user | self._query(queries[0], time) | sent,
        )
        no_items = nothing(self.reads.stored["candidate"], 0)
        history = History(np.array([0, len(item_id)]), item_id, code, time_us, self.side)
        candidates = self._candidates(requests, users[:0], no_items)
        return Frame(requests, candidates, np.zeros(2, dtype=np.int64), history)

    def _with_older(self, user_id: int, kept: Behaviour, newest: np.ndarray, before_us: int) -> np.ndarray:
        """The newest behaviours of a user, int64 (5, n), after those that the online store no longer keeps."""
        if self._log is None or kept.position == kept.rows.shape[1]:
            return newest
        first, most = kept.rows[:, 0], self.history - newest.shape[1]
        older = self._log.before(user_id, int(first[3]), int(first[4]), before_us, most)
        return np.concatenate([older, newest], axis=1)

    def _query(self, query_id: int | None, time: datetime) -> dict[str, pa.Array]:
        features = self.reads.stored["query"]
        if query_id is None or not features:
            return nothing(features, 1)
        return self.stored("query_id", np.array([query_id]), features, time).columns

    def read_items(self, item_ids: np.ndarray, time: datetime) -> Stored:
        """Stored features of N items, with found masks per view; raises like ``read``."""
        if self._items is not None:
            return self._items.read(item_ids, time)
        return self.stored("item_id", item_ids, self.reads.stored["candidate"], time)

    def with_items(self, items: Items | None) -> OnlineReader:
        """A reader that takes item features from a snapshot of the last load (``feature_repo.item_matrix``)."""
        other = copy.copy(self)
        other.side = open_side_information(self.store, self.features)
        other._log = other._older()
        other._items = items
        return other

    def reading(self, history: int) -> OnlineReader:
        """A reader of longer or shorter histories."""
        other = copy.copy(self)
        other.history = history
        other._log = other._older()
        return other

    def _older(self) -> EventLog | None:
        """Where behaviours are that the online store no longer keeps, if they are read."""
        return open_event_log(Path(self.store.config.repo_path or ".")) if self.history > HISTORY else None

    def stored(self, key: str, ids: np.ndarray, features: Sequence[Feature], time: datetime) -> Stored:
        """Stored values of ``features`` for N entities; raises like ``read``."""
        if not len(ids) or not features:
            return Stored(
                nothing(features, len(ids)), {view: np.zeros(len(ids), bool) for view in by_view(features)}
            )
        try:
            with as_of(time - US):  # the moment at which a training frame is joined
                matrices = self._reader(features)(ids)
        except UNREACHABLE as error:
            raise StoreUnavailable(f"the online store does not answer: {error}") from error
        return unpacked(matrices, features)

    def _reader(self, features: Sequence[Feature]) -> Reader:
        key = tuple(one.reference for one in features)
        if key not in self._readers:
            self._readers[key] = matrix_reader(self.store, asked_of(self.store, features))
        return self._readers[key]


def check_online(store: FeatureStore, reads: Reads) -> None:
    """Refuse features that training frames have and the online store can never have.

    Raises:
        StoreError: a view is not online.
    """
    for name, features in by_view(_stored(reads)).items():
        if not store.get_feature_view(name).online:
            raise StoreError(
                f"view {name}: expected a view with online=True, as a model reads {features[0].field} of it when "
                f"serving, found online=False. Change it, or take it out of the service, and run 'moon materialize'."
            )


def check_loaded(reader: OnlineReader) -> None:
    """Refuse to serve before a view has been loaded for the first time, if others have been.

    A view whose load failed is in the dead letter: it costs its own features, and the service goes on.

    Raises:
        StoreError: naming the views.
    """
    store, views = reader.store, by_view(_stored(reader.reads))
    store_dir = Path(store.config.repo_path or ".")
    failed = {one.id for one in dead_letters.letters(store_dir)}
    never = [name for name in views if store.get_feature_view(name).most_recent_end_time is None]
    forgotten = [name for name in never if f"{dead_letters.VIEWS}/{name}" not in failed]
    if forgotten and len(never) < len(views):
        raise StoreError(
            f"{store_dir}: expected the views {', '.join(views)} online, found {', '.join(forgotten)} never "
            f"loaded: a model would read nulls where it was trained with values. Run 'moon materialize'."
        )


def _stored(reads: Reads) -> list[Feature]:
    return [one for role in STORED for one in reads.stored[role]]


def asked_of(store: FeatureStore, features: Sequence[Feature]) -> list[tuple[FeatureView, list[str]]]:
    """What ``matrix_reader`` shall read: each view with its fields."""
    return [
        (store.get_feature_view(view), list(dict.fromkeys(one.field for one in some)))
        for view, some in by_view(features).items()
    ]


def unpacked(matrices: Sequence[Matrix], features: Sequence[Feature]) -> Stored:
    """What a reader of ``asked_of`` answered, by the names of the features."""
    columns, found = {}, {}
    for (view, some), matrix in zip(by_view(features).items(), matrices, strict=True):
        found[view] = matrix.found
        for one in some:
            columns[one.name] = as_read(to_arrow(matrix.columns[one.field], one.dtype), one.dtype)
    return Stored({one.name: columns[one.name] for one in features}, found)


def int64_ids(ids: Sequence[int] | np.ndarray, name: str) -> np.ndarray:
    """Ids as int64; refuses values that Feast would silently coerce (1.9, "1" and True become item 1).

    Raises:
        ValueError: an id is not an integer, or does not fit 64 bits.
    """
    if isinstance(ids, np.ndarray) and ids.dtype == np.int64:
        return ids
    good = []
    for value in ids:
        if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
            raise ValueError(f"expected {name}s that are integers, found {value!r}")
        number = operator.index(value)
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"expected {name}s of 64 bits, found {number}")
        good.append(number)
    return np.array(good, dtype=np.int64)


def _us(time: datetime) -> int:
    if time.tzinfo is None:
        raise ValueError(f"expected a time with a zone, found {time.isoformat()}")
    return (time - EPOCH) // US
