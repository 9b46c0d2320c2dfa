"""A visit: the items of this moment, joined to the history that the store knows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from feature_repo.frame import History
from moonstore.freshness import EPOCH, US
from retrieval.requests import history_of


def with_session(history: History, session: Sequence[int], time: datetime) -> History:
    """The stored history of one user followed by this visit's items, as clicks of this moment.

    Args:
        history: of one user, oldest first.
        session: items of this visit, int64 inside, oldest first.
        time: of the request.
    """
    if not len(session):
        return history
    visit = history_of(session)
    return History(
        np.array([0, len(history.item_id) + len(session)], dtype=np.int64),
        np.concatenate([history.item_id, visit.item_id]),
        np.concatenate([history.code, visit.code]),
        np.concatenate([history.time_us, np.full(len(session), (time - EPOCH) // US)]),
        history.side,
    )


def newest_of(history: History, most: int) -> History:
    """The last ``most`` behaviours of one user's history."""
    offsets = np.array([0, min(most, len(history.item_id))], dtype=np.int64)
    return history.rows(slice(-most, None), offsets)
