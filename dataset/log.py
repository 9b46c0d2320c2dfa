"""The event log as arrays in canonical order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import POSITIVE_CODES, behaviour_codes
from dataset.order import in_order


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
        table = in_order(events).combine_chunks()
        return cls(
            table=table,
            user=table.column("user_id").to_numpy(),
            item=table.column("item_id").to_numpy(),
            event_us=microseconds(table.column("event_time")),
            available_us=microseconds(table.column("available_time")),
            positive=np.isin(behaviour_codes(table.column("type"), table.column("value")), POSITIVE_CODES),
        )

    @cached_property
    def likes(self) -> tuple[np.ndarray, np.ndarray]:
        """What users liked.

        Returns:
            rows of positive events, int64, those of one user and item one after the other in the order of the log;
            and the places among them at which each such pair begins, int64.
        """
        rows = np.flatnonzero(self.positive)
        pair = pairs(self.user[rows], self.item[rows])
        order = np.argsort(pair, kind="stable")
        pair = pair[order]
        return rows[order], np.flatnonzero(np.append(True, pair[1:] != pair[:-1])[: len(pair)])

    @cached_property
    def rated_before(self) -> np.ndarray:
        """Whether the user of each pair of ``likes`` had rated its item, and not liked it, before; bool."""
        rows, first = self.likes
        low = np.flatnonzero(self.is_type("rating") & ~self.positive)
        if not len(low):
            return np.zeros(len(first), dtype=bool)
        both = np.concatenate([rows[first], low])
        known, pair = np.unique(pairs(self.user[both], self.item[both]), return_inverse=True)
        earliest = np.full(len(known), len(self.user))
        np.minimum.at(earliest, pair[len(first) :], low)
        return earliest[pair[: len(first)]] < rows[first]

    @cached_property
    def liked_by_user(self) -> np.ndarray:
        """Rows of positive events, int64, those of one user one after the other in the order of the log."""
        rows = np.flatnonzero(self.positive)
        return rows[np.argsort(self.user[rows], kind="stable")]

    def is_type(self, name: str) -> np.ndarray:
        """Mask of the events of this type, bool."""
        return np.asarray(pc.equal(self.table.column("type"), name).to_numpy())


def microseconds(times: pa.ChunkedArray) -> np.ndarray:
    """Timestamps as int64 microseconds since 1970 UTC."""
    return np.asarray(times.cast(pa.int64()).to_numpy())


def pairs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """An int64 code per row; rows have equal codes exactly where both columns are equal."""
    codes = [pa.array(one).dictionary_encode() for one in (left, right)]
    left_code, right_code = (one.indices.to_numpy().astype(np.int64) for one in codes)
    return np.asarray(left_code * max(len(codes[1].dictionary), 1) + right_code)


def distinct(values: np.ndarray) -> np.ndarray:
    """The distinct values, ascending; by sorting, as NumPy 2.4's own hash table is a hundred times slower."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each of these values is one of the known ones, bool; several times as fast as NumPy's."""
    return np.asarray(pc.is_in(pa.array(values), value_set=pa.array(known)).to_numpy(zero_copy_only=False))
