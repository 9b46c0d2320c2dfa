"""A user's behaviours in the online store, and how new events are merged into them.

Merged rows are written by compare-and-set (``CompareAndSetStore``): only if the row they were merged with is still
the stored one. So any number of writers may send any event any number of times, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig

from feature_repo.event_log import COLUMNS
from feature_repo.signature import Feature
from feature_repo.views import HISTORY
from moonstore.batch import Batch

VIEW = "user_history"
POSITION = "recent_position"
LISTS = [f"recent_{name}" for name in COLUMNS]
BEHAVIOURS = (
    *(Feature(name, VIEW, name, "user", "categories", pa.list_(pa.int64())) for name in LISTS),
    Feature(POSITION, VIEW, POSITION, "user", "number", pa.int64()),
)


@runtime_checkable
class CompareAndSetStore(Protocol):
    """An online store with compare-and-set."""

    def compare_and_set(
        self, config: RepoConfig, view: FeatureView, batch: Batch, guard: str, before: list[bytes]
    ) -> np.ndarray:
        """Write the rows whose stored value of the guard feature is unchanged since it was read.

        Args:
            config: of the repository.
            view: with one join key.
            batch: N rows of distinct entities.
            guard: name of the guard feature.
            before: its serialized values when read, empty where there was none.

        Returns:
            bool (N): which rows were written.
        """


@dataclass(frozen=True)
class Behaviour:
    """One user's stored behaviours, in the order of the log, and the count of all behaviours.

    Attributes:
        rows: int64 of shape (5, n): item_id, code, time_us, available_us, event_id.
        position: count of all behaviours, those no longer stored included.
    """

    rows: np.ndarray
    position: int

    def before(self, time_us: int) -> Behaviour:
        """The behaviours available strictly before ``time_us``."""
        known = self.rows[3] < time_us
        return Behaviour(self.rows[:, known], self.position - int((~known).sum()))

    def last(self, history: int) -> np.ndarray:
        """The newest ``history`` rows."""
        return self.rows[:, max(self.rows.shape[1] - history, 0) :]

    def merged(self, new: np.ndarray) -> Behaviour:
        """Add ``new`` rows, each event once; returns self if all are duplicates, else a row of higher position.

        An event older than a full window counts as a duplicate that has already left the window.
        """
        fresh = new[:, ~np.isin(new[4], self.rows[4])]
        if self.position > self.rows.shape[1]:
            fresh = fresh[:, fresh[3] > self.rows[3, 0]]
        if not fresh.shape[1]:
            return self
        _, once = np.unique(fresh[4], return_index=True)
        rows = np.concatenate([self.rows, fresh[:, once]], axis=1)
        rows = rows[
            :, np.argsort(rows[3], kind="stable")
        ]  # stored ones of equal time keep the order of the log
        return Behaviour(rows[:, -HISTORY:], self.position + len(once))


def behaviours(columns: dict[str, pa.Array]) -> list[Behaviour]:
    """The behaviours of N users from the columns of BEHAVIOURS, null where nothing is stored."""
    positions = columns[POSITION].fill_null(0).to_pylist()
    lists = [columns[f"recent_{name}"] for name in COLUMNS]
    values = [one.flatten().to_numpy() for one in lists]
    ends = [np.append(0, np.cumsum(one.value_lengths().fill_null(0).to_numpy())).tolist() for one in lists]
    return [
        Behaviour(
            np.stack([flat[end[user] : end[user + 1]] for flat, end in zip(values, ends, strict=True)]),
            position,
        )
        for user, position in enumerate(positions)
    ]


def history_batch(user_ids: np.ndarray, of: Sequence[Behaviour]) -> Batch:
    """Rows of ``user_history``, stamped with the available time of the newest behaviour."""
    lengths = [one.rows.shape[1] for one in of]
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    rows = np.concatenate([one.rows for one in of], axis=1)
    return Batch(
        [pa.array(user_ids, pa.int64())],
        {
            **{
                f"recent_{name}": pa.ListArray.from_arrays(offsets, pa.array(rows[place], pa.int64()))
                for place, name in enumerate(COLUMNS)
            },
            POSITION: pa.array([one.position for one in of], pa.int64()),
        },
        np.array([one.rows[3, -1] for one in of], np.int64),
        None,
    )
