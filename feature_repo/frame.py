"""The frame: the input of the models, identical whether read offline (training) or online (serving)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from feature_repo.side_information import SideInformation
from feature_repo.signature import Signature


@dataclass(frozen=True)
class History:
    """Behaviour sequences of R requests, newest last, at most K each, all available before the request.

    Attributes:
        offsets: int64 of shape (R + 1); request r owns rows offsets[r]:offsets[r + 1].
        item_id: int64 of shape (T).
        code: int64 of shape (T), values of ``dataset.contracts.BEHAVIOUR_CODES``.
        time_us: int64 of shape (T), event time in microseconds since 1970 UTC.
        side: what the store knew of items at any moment: the features of the behaviours.
    """

    offsets: np.ndarray
    item_id: np.ndarray
    code: np.ndarray
    time_us: np.ndarray
    side: SideInformation = field(default_factory=SideInformation)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def rows(self, rows: np.ndarray | slice, offsets: np.ndarray) -> History:
        """Some of the behaviours, grouped by new offsets."""
        return replace(
            self,
            offsets=offsets,
            item_id=self.item_id[rows],
            code=self.code[rows],
            time_us=self.time_us[rows],
        )

    def table(self) -> pa.Table:
        """T rows: item_id and the features of the behaviours, as of the moment of each."""
        return pa.table({"item_id": self.item_id, **self.side.columns(self.item_id, self.time_us)})


@dataclass(frozen=True)
class Frame:
    """R requests and their C candidates with every stored feature the models read.

    Attributes:
        requests: R rows: request_id int64, user_id int64, time timestamp[us, UTC], query_id int64 (null:
            none), then the features of user, query and request, and ``user_events`` and ``user_found``
            (``feature_repo.columns``). Null: the store has nothing.
        candidates: C rows, grouped by request in the order of ``requests``: item_id int64, then the item
            features and ``item_found``; training frames also carry label float32 and position int64 (null when
            not logged).
            Columns named ``match_*`` (float32) are retrieval scores of the (request, item) pair.
        offsets: int64 of shape (R + 1); request r owns candidates offsets[r]:offsets[r + 1].
        history: behaviour of each request's user before its time.
    """

    requests: pa.Table
    candidates: pa.Table
    offsets: np.ndarray
    history: History

    def __len__(self) -> int:
        return len(self.offsets) - 1


class StoredRequests(Protocol):
    """R requests with candidates, read as frames: the interface that training and evaluation use.

    Implemented by ``feature_repo.frames.join.TrainingFrame``, ``feature_repo.frames.stream.FrameStream`` and
    ``retrieval.examples.MatchedFrames``.
    """

    @property
    def signature(self) -> Signature:
        """The features of the store that the frames hold."""
        ...

    @property
    def windows(self) -> np.ndarray | None:
        """The part of the frame that each request is read with, int64 (R) ascending; None: all are in memory."""
        ...

    def __len__(self) -> int:
        """Number of requests R."""
        ...

    def take(self, start: int, stop: int) -> Frame:
        """The frame of requests ``start`` to ``stop``."""
        ...

    def select(self, request_rows: np.ndarray) -> Frame:
        """The frame of the requests at these rows, in this order."""
        ...
