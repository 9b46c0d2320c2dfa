"""The online door: one user and N items in two batched reads, as the frame the models were trained on."""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import redis

from dataset.contracts import TIME, DataError, behaviour_codes
from feature_repo.batch import CLOCK_SKEW
from feature_repo.event_log import COLUMNS
from feature_repo.features import (
    ITEM_FEATURES,
    USER_FEATURES,
    Features,
    item_columns,
    user_columns,
)
from feature_repo.frame import Frame, History
from feature_repo.freshness import EPOCH, US, as_of
from feature_repo.matrix import Matrix, Reader, matrix_reader, to_arrow
from feature_repo.store import open_store
from feature_repo.views import HISTORY

UNREACHABLE = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ClusterError,
    redis.exceptions.RedisClusterException,
    sqlite3.OperationalError,
)
BEHAVIOURS: Features = {
    **{f"recent_{name}": ("user_history", pa.list_(pa.int64()), []) for name in COLUMNS},
    "recent_position": ("user_history", pa.int64(), 0),
}


class StoreUnavailable(ConnectionError):
    """The online store does not answer; serve without it and try again later."""


@dataclass(frozen=True)
class Stored:
    """What the online store holds for N entities.

    Attributes:
        columns: feature -> N values, null where nothing is stored.
        found: view -> bool of shape (N).
        age_s: view -> float64 of shape (N), seconds from the row's stamp to the request; NaN: not found.
    """

    columns: dict[str, pa.Array]
    found: dict[str, np.ndarray]
    age_s: dict[str, np.ndarray]


@dataclass(frozen=True)
class Behaviour:
    """One user's stored behaviours, ordered by (available_us, event_id), and how many there were in all.

    Attributes:
        rows: int64 of shape (5, n): item_id, code, time_us, available_us, event_id.
        position: count of all behaviours, those no longer stored included.
    """

    rows: np.ndarray
    position: int

    def before(self, time_us: int) -> Behaviour:
        """What was available strictly before ``time_us``."""
        known = self.rows[3] < time_us
        return Behaviour(self.rows[:, known], self.position - int((~known).sum()))

    def last(self, history: int) -> np.ndarray:
        """The newest ``history`` rows."""
        return self.rows[:, max(self.rows.shape[1] - history, 0) :]

    def merged(self, new: np.ndarray) -> Behaviour:
        """With ``new`` rows added, each event once.

        An event that sorts before a full window is taken as one that was counted and has left it.
        """
        fresh = new[:, ~np.isin(new[4], self.rows[4])]
        if self.position > self.rows.shape[1]:
            oldest = tuple(self.rows[3:, 0])
            fresh = fresh[:, [tuple(row) > oldest for row in fresh[3:].T]]
        _, once = np.unique(fresh[4], return_index=True)
        rows = np.concatenate([self.rows, fresh[:, once]], axis=1)
        rows = rows[:, np.lexsort((rows[4], rows[3]))]
        return Behaviour(rows[:, -HISTORY:], self.position + len(once))


class OnlineReader:
    """Reads frames from a run's online store, and writes users' newest behaviours to it.

    Args:
        store_dir: the run's store.
        history: K, most behaviours in a frame's history; at most ``views.HISTORY``.

    Raises:
        StoreError: there is no store.
        ValueError: ``history`` is more than the store keeps.
    """

    def __init__(self, store_dir: Path, history: int) -> None:
        if not 0 < history <= HISTORY:
            raise ValueError(f"expected a history of 1 to {HISTORY} behaviours, found {history}")
        self.history = history
        self._store = open_store(store_dir)
        self._readers: dict[tuple[str, ...], Reader] = {}

    def read(
        self,
        user_id: int,
        item_ids: Sequence[int] | np.ndarray,
        time: datetime,
        query_id: int | None = None,
    ) -> Frame:
        """The frame of one request: a user and N candidate items at ``time``.

        Unknown users and items get the defaults of ``feature_repo.features`` and false found columns.
        ``request_id`` is 0. Behaviours available at or after ``time`` are left out. What is older at ``time`` than
        its view's time to live is as good as unknown.

        Raises:
            StoreUnavailable: the store does not answer.
            ValueError: an id is not an integer of 64 bits, or ``time`` has no zone.
        """
        user_frame = self.read_user(user_id, time, query_id)
        ids = int64_ids(item_ids, "item_id")
        stored = self.read_items(ids, time)
        columns = item_columns(stored.columns, np.full(len(ids), _us(time)))
        candidates = pa.table({"item_id": pa.array(ids, pa.int64()), **columns})
        return Frame(user_frame.requests, candidates, np.array([0, len(ids)]), user_frame.history)

    def read_user(self, user_id: int, time: datetime, query_id: int | None = None) -> Frame:
        """The frame of a request without candidates yet; raises like ``read``."""
        users = int64_ids([user_id], "user_id")
        queries = [None if query_id is None else int(int64_ids([query_id], "query_id")[0])]
        stored = self._read("user_id", users, {**USER_FEATURES, **BEHAVIOURS}, time)
        known = _behaviours(stored)[0].before(_us(time))
        item_id, code, time_us, _, _ = known.last(self.history)
        requests = pa.table(
            {
                "request_id": pa.array([0], pa.int64()),
                "user_id": pa.array(users),
                "time": pa.array([_us(time)], pa.int64()).cast(TIME),
                "query_id": pa.array(queries, pa.int64()),
                **user_columns(stored.columns, np.array([known.position])),
            }
        )
        candidates = pa.table({"item_id": pa.array([], pa.int64()), **_no_items()})
        history = History(np.array([0, len(item_id)]), item_id, code, time_us)
        return Frame(requests, candidates, np.zeros(2, dtype=np.int64), history)

    def read_items(self, item_ids: np.ndarray, time: datetime) -> Stored:
        """What is stored about N items, with found masks and ages per view; raises like ``read``."""
        return self._read("item_id", item_ids, ITEM_FEATURES, time)

    def push_events(self, events: pa.Table) -> None:
        """Add behaviours to their users' online histories; an event already there changes nothing.

        Args:
            events: EVENTS rows; impressions are ignored. One writer per user at a time.

        Raises:
            DataError: an event claims to have become available more than five minutes from now, which would
                hide later ones.
            StoreUnavailable: the store does not answer.
        """
        code = behaviour_codes(events.column("type"), events.column("value"))
        available_us = events.column("available_time").cast(pa.int64()).to_numpy()
        limit = _us(datetime.now(UTC) + CLOCK_SKEW)
        if (available_us > limit).any():
            late = events.column("event_id").to_numpy()[available_us > limit]
            raise DataError(
                f"expected events known by now, found {len(late)} of the future "
                f"(event_id {late[:3].tolist()}). Check the sender's clock."
            )
        rows = np.stack(
            [
                events.column("item_id").to_numpy(),
                code,
                events.column("event_time").cast(pa.int64()).to_numpy(),
                available_us,
                events.column("event_id").to_numpy(),
            ]
        )[:, code > 0]
        user = events.column("user_id").to_numpy()[code > 0]
        users = np.unique(user)
        if not len(users):
            return
        stored = self._read("user_id", users, BEHAVIOURS, EPOCH)
        merged = [
            known.merged(rows[:, user == user_id])
            for user_id, known in zip(users, _behaviours(stored), strict=True)
        ]
        stamp = pd.to_datetime([int(known.rows[3, -1]) for known in merged], unit="us", utc=True)
        position = [known.position for known in merged]
        arrays = {f"recent_{name}": [known.rows[row] for known in merged] for row, name in enumerate(COLUMNS)}
        self._write(
            "user_history",
            {"user_id": users, **arrays, "recent_position": position, "event_timestamp": stamp},
        )

    def _read(self, key: str, ids: np.ndarray, features: Features, time: datetime) -> Stored:
        if not len(ids):
            views = {view for view, _, _ in features.values()}
            empty = {name: pa.array([], dtype) for name, (_, dtype, _) in features.items()}
            none = {view: np.zeros(0) for view in views}
            return Stored(empty, {view: np.zeros(0, bool) for view in views}, none)
        try:
            with as_of(time - US):  # when the training frame's join would look
                matrices = self._reader(features)(ids)
        except UNREACHABLE as error:
            raise StoreUnavailable(f"the online store does not answer: {error}") from error
        return _unpack(matrices, features, _us(time))

    def _reader(self, features: Features) -> Reader:
        key = tuple(features)
        if key not in self._readers:
            asked = [(self._store.get_feature_view(view), names) for view, names in _views(features).items()]
            self._readers[key] = matrix_reader(self._store, asked)
        return self._readers[key]

    def _write(self, view: str, columns: dict[str, Any]) -> None:
        try:
            self._store.write_to_online_store(view, df=pd.DataFrame(columns))
        except UNREACHABLE as error:
            raise StoreUnavailable(f"the online store does not answer: {error}") from error


def int64_ids(ids: Sequence[int] | np.ndarray, name: str) -> np.ndarray:
    """Ids as int64, refusing what Feast would silently read as another id (1.9, "1" and True as item 1).

    Raises:
        ValueError: an id is not an integer, or not one of 64 bits.
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


def _views(features: Features) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, (view, _, _) in features.items():
        names.setdefault(view, []).append(name)
    return names


def _unpack(matrices: Sequence[Matrix], features: Features, time_us: int) -> Stored:
    columns, found, age_s = {}, {}, {}
    for view, matrix in zip(_views(features), matrices, strict=True):
        found[view] = matrix.found
        age_s[view] = np.where(matrix.found, (time_us - matrix.event_us) / 1e6, np.nan)
        for name, column in matrix.columns.items():
            columns[name] = to_arrow(column, features[name][1])
    return Stored(columns, found, age_s)


def _behaviours(stored: Stored) -> list[Behaviour]:
    positions = stored.columns["recent_position"].fill_null(0).to_pylist()
    lists = [stored.columns[f"recent_{name}"].to_pylist() for name in COLUMNS]
    return [
        Behaviour(np.array([column[user] or [] for column in lists], dtype=np.int64), position)
        for user, position in enumerate(positions)
    ]


def _no_items() -> dict[str, pa.Array]:
    empty = {name: pa.array([], dtype) for name, (_, dtype, _) in ITEM_FEATURES.items()}
    return item_columns(empty, np.zeros(0, np.int64))


def _us(time: datetime) -> int:
    if time.tzinfo is None:
        raise ValueError(f"expected a time with a zone, found {time.isoformat()}")
    return (time - EPOCH) // US
