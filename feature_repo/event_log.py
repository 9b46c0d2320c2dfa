"""The immutable event log: every behaviour once, in the order it became available, read by position.

A user's history at any moment is "the first ``position`` rows of this user", so a training row stores one
integer instead of a copy of the sequence, and any history length can be cut from the same log.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.contracts import TIME
from dataset.jagged import entries
from dataset.months import parts_of
from feature_repo.frame import History
from feature_repo.sources import DATA
from moonstore.errors import StoreError
from moonstore.readable import readable

COLUMNS = ("item_id", "code", "time_us", "available_us", "event_id")
FOLDER, POINTERS = "event_log", "user_events.parquet"
LOG_VERSION = "log_version"  # column and metadata key of the version that pointers refer to
USERS_AT_ONCE = 1 << 14  # whose histories are in memory together
MONTHS = "months.json"  # of a version
AGAIN = "Run 'moon store' to make it again."


@dataclass(frozen=True)
class EventLog:
    """Behaviours of all users, grouped by user, each user's ordered by (available_time, sequence).

    Attributes:
        users: int64 of shape (U), ascending.
        starts: int64 of shape (U + 1); user u owns rows starts[u]:starts[u + 1].
        item_id, code, time_us, available_us, event_id: int64 of shape (N), memory-mapped; code as in
            ``dataset.contracts.BEHAVIOUR_CODES``, times in microseconds since 1970 UTC.
        version: hash of the content.
        months: of each month of the log, the version that the log up to its end is: a log that grew holds the rows of
            these versions at the same positions, so that what points into one of them points into this one. A log of
            an earlier release has none.
    """

    users: np.ndarray
    starts: np.ndarray
    item_id: np.ndarray
    code: np.ndarray
    time_us: np.ndarray
    available_us: np.ndarray
    event_id: np.ndarray
    version: str
    months: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> EventLog:
        """Memory-map the log at ``folder``, which is named after its version.

        Raises:
            StoreError: it is missing or damaged.
        """
        try:
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("users", "starts", *COLUMNS)
            }
            months = json.loads((folder / MONTHS).read_text()) if (folder / MONTHS).exists() else {}
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"{folder}: missing or damaged ({error}). {AGAIN}") from None
        return cls(**arrays, version=folder.name, months=months)

    def holds(self, versions: Collection[str]) -> bool:
        """Whether pointers into these versions point into this one."""
        return set(versions) <= {self.version, *self.months.values()}

    def __len__(self) -> int:
        return len(self.item_id)

    def gather(self, user_ids: np.ndarray, positions: np.ndarray, history: int) -> History:
        """The last ``history`` of each user's first ``positions`` behaviours.

        Args:
            user_ids: int64 of shape (R); a user without behaviour must have position 0.
            positions: int64 of shape (R), number of behaviours available to each request.
            history: K, most behaviours per request.
        """
        rows, offsets = self._rows(user_ids, positions, history)
        return History(offsets, self.item_id[rows], self.code[rows], self.time_us[rows])

    def before(self, user_id: int, available_us: int, event_id: int, until_us: int, most: int) -> np.ndarray:
        """The last behaviours of a user before one that somebody else keeps, which the log may not have yet.

        Args:
            user_id: of the user.
            available_us: when the kept behaviour became available.
            event_id: its event.
            until_us: the behaviours became available strictly before this moment.
            most: how many, at most.

        Returns:
            int64 (5, n): the rows of COLUMNS, in the order of the log.
        """
        place = int(np.searchsorted(self.users, user_id))
        if place == len(self.users) or self.users[place] != user_id:
            return np.empty((len(COLUMNS), 0), np.int64)
        start, stop = (int(one) for one in self.starts[place : place + 2])
        known = self.available_us[start:stop]
        end, after = (int(np.searchsorted(known, available_us, side=side)) for side in ("left", "right"))
        end += int((self.event_id[start + end : start + after] == event_id).argmax()) if after > end else 0
        end = min(end, int(np.searchsorted(known, until_us)))
        rows = slice(start + max(end - most, 0), start + end)
        return np.stack([np.asarray(getattr(self, name)[rows]) for name in COLUMNS])

    def positions_before(self, time_us: int) -> np.ndarray:
        """Number of behaviours of each of ``users`` available strictly before ``time_us``, int64 (U)."""
        if not len(self.users):
            return np.zeros(0, np.int64)
        known = (
            np.asarray(self.available_us) < time_us
        )  # of every user there is a behaviour, so no sum is of none
        return np.add.reduceat(known, self.starts[:-1], dtype=np.int64)

    def snapshot(self, before_us: int, history: int) -> pa.Table:
        """The rows of the view ``user_history`` as of a moment: one per user with behaviour before it."""
        return self._snapshot(self.positions_before(before_us), history, slice(None))

    def histories(self, history: int) -> Iterator[pa.Table]:
        """``snapshot`` of the whole log, some users at a time."""
        positions = np.diff(self.starts)
        for start in range(0, max(len(self.users), 1), USERS_AT_ONCE):
            yield self._snapshot(positions, history, slice(start, start + USERS_AT_ONCE))

    def _snapshot(self, positions: np.ndarray, history: int, some: slice) -> pa.Table:
        users, starts, positions = self.users[some], self.starts[:-1][some], positions[some]
        active = positions > 0
        users, positions = users[active], positions[active]
        rows, offsets = self._rows(users, positions, history)
        newest = starts[active] + positions - 1
        lists = {
            f"recent_{name}": pa.ListArray.from_arrays(
                pa.array(offsets, pa.int32()), pa.array(np.asarray(getattr(self, name))[rows], pa.int64())
            )
            for name in COLUMNS
        }
        return pa.table(
            {
                "user_id": pa.array(np.asarray(users), pa.int64()),
                **lists,
                "recent_position": pa.array(positions, pa.int64()),
                "event_timestamp": pa.array(self.available_us[newest], pa.int64()).cast(TIME),
            }
        )

    def _rows(
        self, user_ids: np.ndarray, positions: np.ndarray, history: int
    ) -> tuple[np.ndarray, np.ndarray]:
        positions = np.asarray(positions, dtype=np.int64)
        place = np.searchsorted(self.users, user_ids)
        first = self.starts[:-1][place.clip(max=max(len(self.users) - 1, 0))] if len(self.users) else place
        length = np.minimum(positions, history)
        return entries(first + positions - length, length)


def open_event_log(store_dir: Path, versions: Collection[str] = ()) -> EventLog:
    """Open the event log of the store at ``store_dir`` that pointers into these versions point into.

    Args:
        store_dir: of the run.
        versions: as rows of ``user_events`` name them; none: the log that the pointers refer to now.

    Raises:
        StoreError: it is missing or damaged, or no log holds all of these versions.
    """
    folder = Path(store_dir) / DATA / FOLDER
    log = EventLog.open(folder / (log_version(Path(store_dir) / DATA) or ""))
    if log.holds(versions):
        return log
    others = (EventLog.open(path) for path in sorted(folder.iterdir()) if path.name != log.version)
    found = next((one for one in others if one.holds(versions)), None)
    if found is None:
        raise StoreError(
            f"{store_dir}: expected pointers into one event log, found some into {len(versions)} versions that no "
            f"log holds together: {sorted(versions)[:3]}. {AGAIN}"
        )
    return found


def log_version(data: Path) -> str | None:
    """The event-log version that the pointers in the folder ``data`` refer to; None: there are no pointers."""
    if not (data / POINTERS).exists():
        return None
    path = (parts_of(data / POINTERS) or [data / POINTERS])[-1]
    with readable(path, AGAIN):
        metadata = pq.read_schema(path).metadata or {}
    version = metadata.get(LOG_VERSION.encode(), b"").decode(errors="replace")
    if not version:
        raise StoreError(f"{path}: damaged, it names no event log. {AGAIN}")
    return version
