"""Requests to retrieval: one at a time when serving, thousands at once when training.

Legend: R requests, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa

from dataset.contracts import POSITIVE_CODES
from dataset.jagged import entries, offsets_of, owners
from feature_repo.frame import Frame, History
from feature_repo.side_information import SideInformation
from moonstore.freshness import EPOCH, US

HISTORY_ITEMS = 20  # the newest distinct items that represent a user; older ones weigh less than 0.13
RECENCY = 0.9  # weight of a behaviour relative to the next newer one, where none was fitted

NO_IDS = np.empty(0, dtype=np.int64)
NO_QUERY = -1


def history_of(item_ids: Sequence[int] | np.ndarray) -> History:
    """The history of one request from item ids alone, oldest first: a session that no store has seen."""
    items = np.asarray(item_ids, dtype=np.int64)
    return History(
        offsets=np.array([0, len(items)], dtype=np.int64),
        item_id=items,
        code=np.ones(len(items), dtype=np.int64),
        time_us=np.zeros(len(items), dtype=np.int64),
    )


@dataclass(frozen=True)
class Request:
    """One question: what should this user see now?

    Attributes:
        user_id: who asks.
        history: behaviour of this one user, oldest first.
        time: when, UTC.
        query_vector: float32 [D] unit norm, the encoded text or picture of a search; None: no query.
        category: only items under this path (see ``retrieval.index``); None: all.
        exclude: int64 item ids never to return.
        user: one row of user features (``Frame.requests``), read by the two-tower source; None: unknown user.
        text, image: what was searched for, as it was sent.
    """

    user_id: int
    history: History
    time: datetime
    query_vector: np.ndarray | None = None
    category: str | None = None
    exclude: np.ndarray = field(default_factory=lambda: NO_IDS)
    user: pa.Table | None = None
    text: str | None = None
    image: bytes | None = None


@dataclass(frozen=True)
class Requests:
    """R requests in columns.

    Attributes:
        history: behaviours of the R users.
        time_us: int64 [R], when they ask, microseconds since 1970 UTC.
        query_vectors: float32 [R, D], rows of zeros where there is no query; None: nobody has one.
        categories: R paths, None where any category will do.
        exclude: R arrays of int64 item ids.
        users: R rows of user features; None: the two-tower source answers nothing.
        user_id: int64 [R], who asks.
        query_id: int64 [R], the logged query, NO_QUERY where there is none.
        texts, pictures: R each, what was searched for where it is not logged; None where nothing was.
    """

    history: History
    time_us: np.ndarray
    query_vectors: np.ndarray | None
    categories: tuple[str | None, ...]
    exclude: tuple[np.ndarray, ...]
    users: pa.Table | None
    user_id: np.ndarray
    query_id: np.ndarray
    texts: tuple[str | None, ...]
    pictures: tuple[bytes | None, ...]

    def __len__(self) -> int:
        return len(self.history)

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Requests:
        """The same requests in columns. Users' features are kept when every request has them."""
        histories = [request.history for request in requests]
        counts = np.array([len(history.item_id) for history in histories], dtype=np.int64)
        widths = {len(r.query_vector) for r in requests if r.query_vector is not None}
        queries_RD = None
        if widths:
            (width,) = widths
            queries_RD = np.zeros((len(requests), width), dtype=np.float32)
            for row, request in enumerate(requests):
                if request.query_vector is not None:
                    queries_RD[row] = request.query_vector
        item_id, code, time_us = (
            np.concatenate([getattr(h, name) for h in histories] or [NO_IDS])
            for name in ("item_id", "code", "time_us")
        )
        side = histories[0].side if histories else SideInformation()  # of one store, the same for all
        offsets = offsets_of(counts)
        users = [request.user for request in requests if request.user is not None]
        return cls(
            history=History(offsets, item_id, code, time_us, side),
            time_us=np.array([(request.time - EPOCH) // US for request in requests], dtype=np.int64),
            query_vectors=queries_RD,
            categories=tuple(request.category for request in requests),
            exclude=tuple(request.exclude for request in requests),
            users=pa.concat_tables(users) if requests and len(users) == len(requests) else None,
            user_id=np.array([request.user_id for request in requests], dtype=np.int64),
            query_id=np.full(len(requests), NO_QUERY),
            texts=tuple(request.text for request in requests),
            pictures=tuple(request.image for request in requests),
        )

    @classmethod
    def from_frame(cls, frame: Frame) -> Requests:
        """The requests of a frame, without the vectors of queries; its candidates are ignored.

        Args:
            frame: R requests, offline or online.
        """
        return cls(
            history=frame.history,
            time_us=frame.requests["time"].combine_chunks().cast(pa.int64()).to_numpy(zero_copy_only=False),
            query_vectors=None,
            categories=(None,) * len(frame),
            exclude=(NO_IDS,) * len(frame),
            users=frame.requests,
            user_id=frame.requests["user_id"].combine_chunks().to_numpy(zero_copy_only=False),
            query_id=frame.requests["query_id"]
            .combine_chunks()
            .fill_null(NO_QUERY)
            .to_numpy(zero_copy_only=False),
            texts=(None,) * len(frame),
            pictures=(None,) * len(frame),
        )

    def select(self, rows: np.ndarray) -> Requests:
        """The requests at ``rows`` int64 [n], in that order."""
        starts = self.history.offsets[rows]
        place, offsets = entries(starts, self.history.offsets[rows + 1] - starts)
        return Requests(
            history=self.history.rows(place, offsets),
            time_us=self.time_us[rows],
            query_vectors=None if self.query_vectors is None else self.query_vectors[rows],
            categories=tuple(self.categories[row] for row in rows),
            exclude=tuple(self.exclude[row] for row in rows),
            users=None if self.users is None else self.users.take(pa.array(rows)),
            user_id=self.user_id[rows],
            query_id=self.query_id[rows],
            texts=tuple(self.texts[row] for row in rows),
            pictures=tuple(self.pictures[row] for row in rows),
        )

    def has_query(self) -> np.ndarray:
        """Which requests carry a query vector, bool [R]."""
        if self.query_vectors is None:
            return np.zeros(len(self), dtype=bool)
        return np.any(self.query_vectors != 0, axis=1)

    def two_tower_frame(self) -> Frame:
        """The users' side as a frame without candidates, for the two-tower model."""
        assert self.users is not None
        return Frame(
            requests=self.users,
            candidates=pa.table({"item_id": pa.array([], pa.int64())}),
            offsets=np.zeros(len(self) + 1, dtype=np.int64),
            history=self.history,
        )


@dataclass(frozen=True)
class Interests:
    """The items that represent each user: distinct, positive, the newest HISTORY_ITEMS, newest first.

    Attributes:
        offsets: int64 of shape (R + 1).
        item_id: int64 of shape (T).
        weight: float32 of shape (T), the recency to the power of the item's rank from the newest.
    """

    offsets: np.ndarray
    item_id: np.ndarray
    weight: np.ndarray


def interests(history: History, recency: float = RECENCY) -> Interests:
    """Weigh histories: an item counts once, at its newest positive behaviour; dislikes are left out."""
    request = owners(history.offsets)
    place = np.arange(len(history.item_id))
    positive = np.isin(history.code, POSITIVE_CODES)
    request, place, item_id = request[positive], place[positive], history.item_id[positive]
    order = np.lexsort((-place, item_id, request))
    request, place, item_id = request[order], place[order], item_id[order]
    newest = np.ones(len(request), dtype=bool)
    newest[1:] = (request[1:] != request[:-1]) | (item_id[1:] != item_id[:-1])
    request, place, item_id = request[newest], place[newest], item_id[newest]
    order = np.lexsort((-place, request))
    request, item_id = request[order], item_id[order]
    rank = np.arange(len(request)) - np.searchsorted(request, request)
    kept = rank < HISTORY_ITEMS
    offsets = offsets_of(np.bincount(request[kept], minlength=len(history)))
    weight = (recency ** rank[kept]).astype(np.float32)
    return Interests(offsets, item_id[kept], weight)
