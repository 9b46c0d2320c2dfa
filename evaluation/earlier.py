"""What came before: ranges of rows strictly earlier than a moment, for logs too long to search one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dataset.log import distinct

NO_QUERY = -1


@dataclass(frozen=True)
class Moments:
    """Who asks, when and for what: R requests.

    Attributes:
        user_id: int64 (R).
        time_us: int64 (R), microseconds since 1970 UTC.
        query_id: int64 (R), NO_QUERY where nothing is asked.
    """

    user_id: np.ndarray
    time_us: np.ndarray
    query_id: np.ndarray

    @classmethod
    def of(cls, requests: pa.Table) -> Moments:
        """Of a table with user_id, time and, unless nothing is asked, query_id."""
        asks = "query_id" in requests.column_names
        query = (
            requests["query_id"].fill_null(NO_QUERY).to_numpy() if asks else np.full(len(requests), NO_QUERY)
        )
        time_us = requests["time"].cast(pa.int64()).to_numpy()
        return cls(requests["user_id"].to_numpy(), time_us, query)

    def __len__(self) -> int:
        return len(self.user_id)

    def take(self, rows: slice | np.ndarray) -> Moments:
        """These requests, in this order."""
        return Moments(self.user_id[rows], self.time_us[rows], self.query_id[rows])


def rows_before(
    key: np.ndarray, time_us: np.ndarray, who: np.ndarray, when_us: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of each asked key that are strictly earlier than the moment asked for.

    Args:
        key, time_us: int64 (T), ordered by (key, time).
        who, when_us: int64 (R), keys and moments asked for; unknown keys have no rows.

    Returns:
        start, stop: int64 (R); the rows of question r are start[r]:stop[r].
    """
    # Ranks of key and time combine to one ascending number, so that one search answers all.
    keys, times = distinct(key), distinct(time_us)
    place = np.searchsorted(keys, key) * (len(times) + 1) + np.searchsorted(times, time_us)
    asked = np.searchsorted(keys, who) * (len(times) + 1) + np.searchsorted(times, when_us)
    start = np.searchsorted(key, who)
    stop = np.where(np.isin(who, keys), np.searchsorted(place, asked), start)
    return start, stop


@dataclass(frozen=True)
class Counts:
    """How often each key occurred before any moment.

    Attributes:
        key, time_us: int64 (T), ordered by (key, time).
    """

    key: np.ndarray
    time_us: np.ndarray

    @classmethod
    def of(cls, key: np.ndarray, time_us: np.ndarray) -> Counts:
        """Of rows in any order."""
        order = np.lexsort((time_us, key))
        return cls(key[order], time_us[order])

    def before(self, who: np.ndarray, when_us: np.ndarray, window_us: int | None = None) -> np.ndarray:
        """Rows of each key strictly before the moment, and not longer ago than the window, int64 (R)."""
        start, stop = rows_before(self.key, self.time_us, who, when_us)
        if window_us is not None:
            start = rows_before(self.key, self.time_us, who, when_us - window_us)[1]
        return stop - start
