"""What users liked, as arrays: what co-occurrence counts, and what is popular.

Legend: T likes (distinct items of users), U users, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dataset.contracts import POSITIVE_CODES, behaviour_codes
from dataset.jagged import offsets_of, owners
from dataset.order import sequence_of

MOST_ITEMS = 500  # of a user's newest distinct items; pairs grow with its square, and such users are robots
FLOOR = 1e-6  # of a like, for ever: so that items of which nothing is new are in an order, too


@dataclass(frozen=True)
class Likes:
    """The distinct items that each user acted on, at the newest time: each user's newest MOST_ITEMS, oldest first.

    Attributes:
        items: int64 [I], ascending.
        column: int64 [T], place among ``items``.
        time_us: int64 [T], when, microseconds since 1970 UTC.
        offsets: int64 [U + 1]; user u owns column[offsets[u]:offsets[u + 1]].
    """

    items: np.ndarray
    column: np.ndarray
    time_us: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, log: pa.Table) -> Likes:
        """The positive behaviours of an EVENTS table."""
        user_id, item_id, time_us = _positive_pairs(log)
        items, column = np.unique(item_id, return_inverse=True)
        _, count = np.unique(user_id, return_counts=True)
        return cls(items, column, time_us, offsets_of(count))

    def where(self, kept: np.ndarray) -> Likes:
        """Those of the likes that bool [T] says, of the same items and users."""
        count = np.bincount(owners(self.offsets)[kept], minlength=len(self.offsets) - 1)
        return Likes(self.items, self.column[kept], self.time_us[kept], offsets_of(count))

    def trend(self, half_life_us: float | None) -> np.ndarray:
        """How popular each item is at the newest like, float64 [I]: a like is halved with every half-life of its age.

        Args:
            half_life_us: microseconds; None: all likes count alike.
        """
        worth = np.ones(len(self.column))
        if half_life_us is not None and len(worth):
            worth = FLOOR + 2.0 ** ((self.time_us - self.time_us.max()) / half_life_us)
        return np.bincount(self.column, weights=worth, minlength=len(self.items))

    @property
    def users_of(self) -> np.ndarray:
        """How many users acted on each item, int64 [I]."""
        return np.bincount(self.column, minlength=len(self.items))


def _positive_pairs(log: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, item and newest time of each pair with positive behaviour: a user's newest MOST_ITEMS, oldest first."""
    positive = np.isin(behaviour_codes(log["type"], log["value"]), POSITIVE_CODES)
    user, item = (log[name].to_numpy()[positive] for name in ("user_id", "item_id"))
    time = log["available_time"].cast(pa.int64()).to_numpy()[positive]
    place = np.argsort(np.lexsort((sequence_of(log)[positive], time)))  # of each event in the log
    order = np.lexsort((-place, item, user))
    user, item, place, time = user[order], item[order], place[order], time[order]
    newest = np.ones(len(user), dtype=bool)
    newest[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    user, item, place, time = user[newest], item[newest], place[newest], time[newest]
    order = np.lexsort((place, user))
    user, item, time = user[order], item[order], time[order]
    kept = np.searchsorted(user, user, side="right") - np.arange(len(user)) <= MOST_ITEMS
    return user[kept], item[kept], time[kept]
