"""What every user was shown, what they made of it, and what anybody would have made of it.

The online store keeps what users did, not what they passed over; this is the log's own record, as of when it was
loaded. Legend: T rows, R requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import LIKED_RATING
from dataset.log import pairs

NEVER = np.iinfo(np.int64).max
PRIOR = 10.0  # rows at the usual rate, by which rates are smoothed
PLACES = 50  # of a slate that are told apart
LEAST, MOST = 0.01, 0.99  # chance of a like that anybody is expected to have
KINDS = pa.array(["impression", "rating"])


@dataclass(frozen=True)
class Shown:
    """Impressions and ratings of all users, ordered by (user, time they became available).

    Attributes:
        user_id, item_id: int64 (T).
        available_us: int64 (T), microseconds since 1970 UTC.
        liked_us: int64 (T), when the click on it became available, NEVER without one; of a liked rating its own
            ``available_us``.
        expected: float32 (T), the chance of a like by whoever: by place, with or without a query, and item.
    """

    user_id: np.ndarray
    item_id: np.ndarray
    available_us: np.ndarray
    liked_us: np.ndarray
    expected: np.ndarray

    @classmethod
    def of(cls, log: pa.Table, learned: pa.Table) -> Shown:
        """Of EVENTS rows.

        Args:
            log: what may be known of users, at their requests.
            learned: the rows that the expected chances are counted from.
        """
        rates = Rates.of(learned)
        rows = log.filter(pc.is_in(log["type"], value_set=KINDS))
        available = rows["available_time"].cast(pa.int64()).to_numpy()
        user, sequence = rows["user_id"].to_numpy(), rows["sequence"].fill_null(0).to_numpy()
        order = np.lexsort((sequence, available, user))
        liked = liked_us(rows, log)
        return cls(
            user[order],
            rows["item_id"].to_numpy()[order],
            available[order],
            liked[order],
            rates.expected(rows)[order],
        )

    def __len__(self) -> int:
        return len(self.user_id)

    @cached_property
    def end_us(self) -> int:
        """When the last row became available; 0 without rows."""
        return int(self.available_us.max(initial=0))

    def of_user(self, user_id: int) -> slice:
        """The rows of a user."""
        first, stop = np.searchsorted(self.user_id, [user_id, user_id + 1])
        return slice(int(first), int(stop))

    def before(self, user_id: int, time_us: int) -> slice:
        """The rows of a user that were available strictly before a moment."""
        own = self.of_user(user_id)
        stop = own.start + int(np.searchsorted(self.available_us[own], time_us))
        return slice(own.start, stop)


@dataclass(frozen=True)
class Rates:
    """How often what is shown is liked.

    Attributes:
        usual: over all rows.
        places: float64 (2, PLACES + 1), without and with a query, at each place; the first is of rows without one.
        item_ids: int64 (M), ascending.
        items: float64 (M), log-odds of an item less those of all rows.
    """

    usual: float
    places: np.ndarray
    item_ids: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, log: pa.Table) -> Rates:
        """Count EVENTS rows."""
        rows = log.filter(pc.is_in(log["type"], value_set=KINDS))
        liked = liked_us(rows, log) < NEVER
        usual = float((liked.sum() + 1) / (len(liked) + 20))
        cell = _cells(rows)
        size = 2 * (PLACES + 1)
        shown, good = np.bincount(cell, minlength=size), np.bincount(cell, weights=liked, minlength=size)
        item_ids, item = np.unique(rows["item_id"].to_numpy(), return_inverse=True)
        smoothed = (np.bincount(item, weights=liked) + PRIOR * usual) / (np.bincount(item) + PRIOR)
        return cls(
            usual,
            (good + PRIOR * usual) / (shown + PRIOR),
            item_ids,
            log_odds(smoothed) - log_odds(np.array(usual)),
        )

    def expected(self, rows: pa.Table) -> np.ndarray:
        """The chance of a like of EVENTS rows, float32 (T)."""
        item = np.searchsorted(self.item_ids, rows["item_id"].to_numpy()).clip(
            max=max(len(self.item_ids) - 1, 0)
        )
        level = log_odds(self.places[_cells(rows)])
        if len(self.item_ids):
            level = level + np.where(self.item_ids[item] == rows["item_id"].to_numpy(), self.items[item], 0)
        return np.clip(1 / (1 + np.exp(-level)), LEAST, MOST).astype(np.float32)


def liked_us(rows: pa.Table, log: pa.Table) -> np.ndarray:
    """When it became known that what was shown was liked, int64 (T): NEVER where it was not.

    Args:
        rows: T impressions and ratings.
        log: EVENTS rows with the clicks on them; a click belongs to the impression of its request and item.
    """
    available = rows["available_time"].cast(pa.int64()).to_numpy()
    value = rows["value"].fill_null(0).to_numpy()
    liked = pc.equal(rows["type"], "rating").to_numpy() & (value >= LIKED_RATING)
    found = np.where(liked, available, NEVER)
    clicks = log.filter(pc.and_(pc.equal(log["type"], "click"), log["request_id"].is_valid()))
    if not len(clicks):
        return found
    both = [
        np.concatenate([table[name].fill_null(-1).to_numpy() for table in (rows, clicks)])
        for name in ("request_id", "item_id")
    ]
    pair = pairs(*both)
    own, of_click = pair[: len(rows)], pair[len(rows) :]
    clicked_us = clicks["available_time"].cast(pa.int64()).to_numpy()
    order = np.lexsort((clicked_us, of_click))
    known, first = np.unique(of_click[order], return_index=True)
    place = np.searchsorted(known, own).clip(max=len(known) - 1)
    there = (known[place] == own) & rows["request_id"].is_valid().to_numpy()
    return np.where(there, np.minimum(found, clicked_us[order][first][place]), found)


def log_odds(chance: np.ndarray) -> np.ndarray:
    """Log-odds of chances, which are kept off 0 and 1."""
    kept = np.clip(chance, 1e-4, 1 - 1e-4)
    return np.log(kept / (1 - kept))


def _cells(rows: pa.Table) -> np.ndarray:
    place = (rows["position"].fill_null(-1).to_numpy().astype(np.int64) + 1).clip(max=PLACES)
    return place + (PLACES + 1) * rows["query_id"].is_valid().to_numpy()
