"""Online reads: one user and N items in two batched reads, as a frame like those the models were trained on."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from dataset.contracts import TIME
from feature_repo.columns import (
    ITEM_FEATURES,
    USER_FEATURES,
    Features,
    item_columns,
    user_columns,
)
from feature_repo.frame import Frame, History
from feature_repo.history import BEHAVIOURS, behaviours
from feature_repo.store import open_store
from feature_repo.views import HISTORY
from moonstore.errors import UNREACHABLE
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
        history: K, most behaviours in a frame's history; at most ``views.HISTORY``.

    Attributes:
        store: the open feature store.

    Raises:
        StoreError: there is no store.
        ValueError: ``history`` is more than the store keeps.
    """

    def __init__(self, store_dir: Path, history: int) -> None:
        if not 0 < history <= HISTORY:
            raise ValueError(f"expected a history of 1 to {HISTORY} behaviours, found {history}")
        self.history = history
        self.store = open_store(store_dir)
        self._readers: dict[tuple[str, ...], Reader] = {}
        self._items: Items | None = None

    def read(
        self,
        user_id: int,
        item_ids: Sequence[int] | np.ndarray,
        time: datetime,
        query_id: int | None = None,
    ) -> Frame:
        """The frame of one request: a user and N candidate items at ``time``.

        Unknown users and items get the defaults of ``feature_repo.features`` and a false "found" column.
        ``request_id`` is 0. Behaviours available at or after ``time`` are left out. Rows older at ``time`` than
        their view's time to live count as not found.

        Raises:
            StoreUnavailable: the store does not answer.
            ValueError: an id is not a 64-bit integer, or ``time`` has no time zone.
        """
        return self.with_candidates(self.read_user(user_id, time, query_id), item_ids)

    def with_candidates(self, user: Frame, item_ids: Sequence[int] | np.ndarray) -> Frame:
        """Add N candidates to the frame of a request read by ``read_user``; raises like ``read``."""
        ids = int64_ids(item_ids, "item_id")
        time = user.requests.column("time")[0].as_py()
        stored = self.read_items(ids, time)
        columns = item_columns(stored.columns, np.full(len(ids), _us(time)))
        candidates = pa.table({"item_id": pa.array(ids, pa.int64()), **columns})
        return Frame(user.requests, candidates, np.array([0, len(ids)]), user.history)

    def read_user(self, user_id: int, time: datetime, query_id: int | None = None) -> Frame:
        """The frame of a request, still without candidates; raises like ``read``."""
        users = int64_ids([user_id], "user_id")
        queries = [None if query_id is None else int(int64_ids([query_id], "query_id")[0])]
        stored = self.stored("user_id", users, {**USER_FEATURES, **BEHAVIOURS}, time)
        known = behaviours(stored.columns)[0].before(_us(time))
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
        """Stored features of N items, with found masks per view; raises like ``read``."""
        if self._items is not None:
            return self._items.read(item_ids, time)
        return self.stored("item_id", item_ids, ITEM_FEATURES, time)

    def with_items(self, items: Items | None) -> OnlineReader:
        """A reader that takes item features from a snapshot (``feature_repo.item_matrix``)."""
        other = copy.copy(self)
        other._items = items
        return other

    def stored(self, key: str, ids: np.ndarray, features: Features, time: datetime) -> Stored:
        """Stored values of ``features`` for N entities; raises like ``read``."""
        if not len(ids):
            views = {view for view, _, _ in features.values()}
            empty = {name: pa.array([], dtype) for name, (_, dtype, _) in features.items()}
            return Stored(empty, {view: np.zeros(0, bool) for view in views})
        try:
            with as_of(time - US):  # the moment at which a training frame is joined
                matrices = self._reader(features)(ids)
        except UNREACHABLE as error:
            raise StoreUnavailable(f"the online store does not answer: {error}") from error
        return _unpack(matrices, features)

    def _reader(self, features: Features) -> Reader:
        key = tuple(features)
        if key not in self._readers:
            asked = [(self.store.get_feature_view(view), names) for view, names in _views(features).items()]
            self._readers[key] = matrix_reader(self.store, asked)
        return self._readers[key]


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


def _views(features: Features) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, (view, _, _) in features.items():
        names.setdefault(view, []).append(name)
    return names


def _unpack(matrices: Sequence[Matrix], features: Features) -> Stored:
    columns, found = {}, {}
    for view, matrix in zip(_views(features), matrices, strict=True):
        found[view] = matrix.found
        for name, column in matrix.columns.items():
            columns[name] = to_arrow(column, features[name][1])
    return Stored(columns, found)


def _no_items() -> dict[str, pa.Array]:
    empty = {name: pa.array([], dtype) for name, (_, dtype, _) in ITEM_FEATURES.items()}
    return item_columns(empty, np.zeros(0, np.int64))


def _us(time: datetime) -> int:
    if time.tzinfo is None:
        raise ValueError(f"expected a time with a zone, found {time.isoformat()}")
    return (time - EPOCH) // US
