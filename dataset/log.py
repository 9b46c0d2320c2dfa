"""The event log as arrays in canonical order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import POSITIVE_CODES, behaviour_codes


@dataclass(frozen=True)
class Log:
    """Events as arrays in canonical order, (available_time, sequence); times are microseconds since 1970."""

    table: pa.Table
    user: np.ndarray
    item: np.ndarray
    event_us: np.ndarray
    available_us: np.ndarray
    positive: np.ndarray

    @classmethod
    def of(cls, events: pa.Table) -> Log:
        """Sort an EVENTS table and unpack its columns into arrays."""
        table = events.sort_by([("available_time", "ascending"), ("sequence", "ascending")]).combine_chunks()
        return cls(
            table=table,
            user=table.column("user_id").to_numpy(),
            item=table.column("item_id").to_numpy(),
            event_us=microseconds(table.column("event_time")),
            available_us=microseconds(table.column("available_time")),
            positive=np.isin(behaviour_codes(table.column("type"), table.column("value")), POSITIVE_CODES),
        )

    def is_type(self, name: str) -> np.ndarray:
        """Mask of the events of this type, bool."""
        return np.asarray(pc.equal(self.table.column("type"), name).to_numpy())


def microseconds(times: pa.ChunkedArray) -> np.ndarray:
    """Timestamps as int64 microseconds since 1970 UTC."""
    return np.asarray(times.cast(pa.int64()).to_numpy())


def pairs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """An int64 code per row; rows have equal codes exactly where both columns are equal."""
    _, left_code = np.unique(left, return_inverse=True)
    values, right_code = np.unique(right, return_inverse=True)
    return left_code * max(len(values), 1) + right_code
