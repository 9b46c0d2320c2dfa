"""The immutable event log: every behaviour once, in the order it became available, read by position.

A user's history at any moment is "the first ``position`` rows of this user", so a training row stores one
integer instead of a copy of the sequence, and any history length can be cut from the same log.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.contracts import TIME, behaviour_codes
from dataset.order import sequence_of
from feature_repo.frame import History
from feature_repo.sources import DATA
from moonstore.disk import writing
from moonstore.errors import StoreError
from moonstore.files import fsync
from moonstore.readable import readable

COLUMNS = ("item_id", "code", "time_us", "available_us", "event_id")
FOLDER, POINTERS = "event_log", "user_events.parquet"
LOG_VERSION = "log_version"  # column and metadata key of the version that pointers refer to


@dataclass(frozen=True)
class EventLog:
    """Behaviours of all users, grouped by user, each user's ordered by (available_time, sequence).

    Attributes:
        users: int64 of shape (U), ascending.
        starts: int64 of shape (U + 1); user u owns rows starts[u]:starts[u + 1].
        item_id, code, time_us, available_us, event_id: int64 of shape (N), memory-mapped; code as in
            ``dataset.contracts.BEHAVIOUR_CODES``, times in microseconds since 1970 UTC.
        version: hash of the content.
    """

    users: np.ndarray
    starts: np.ndarray
    item_id: np.ndarray
    code: np.ndarray
    time_us: np.ndarray
    available_us: np.ndarray
    event_id: np.ndarray
    version: str

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
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(
                f"{folder}: missing or damaged ({error}). Run 'moon store' to make it again."
            ) from None
        return cls(**arrays, version=folder.name)

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

    def positions_before(self, time_us: int) -> np.ndarray:
        """Number of behaviours of each of ``users`` available strictly before ``time_us``, int64 (U)."""
        known = np.append(0, np.cumsum(self.available_us < time_us))
        return known[self.starts[1:]] - known[self.starts[:-1]]

    def snapshot(self, before_us: int, history: int) -> pa.Table:
        """The rows of the view ``user_history`` as of a moment: one per user with behaviour before it."""
        positions = self.positions_before(before_us)
        active = positions > 0
        users, positions = self.users[active], positions[active]
        rows, offsets = self._rows(users, positions, history)
        newest = self.starts[:-1][active] + positions - 1
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
        offsets = np.append(0, np.cumsum(length)).astype(np.int64)
        begin = first + positions - length
        return np.repeat(begin - offsets[:-1], length) + np.arange(offsets[-1]), offsets


def open_event_log(store_dir: Path, version: str | None = None) -> EventLog:
    """Open a version of the event log of the store at ``store_dir``; None: the one its pointers refer to."""
    data = Path(store_dir) / DATA
    return EventLog.open(data / FOLDER / (version or log_version(data) or ""))


def log_version(data: Path) -> str | None:
    """The event-log version that the pointers in the folder ``data`` refer to; None: there are no pointers."""
    path = data / POINTERS
    if not path.exists():
        return None
    with readable(path, "Run 'moon store' to make it again."):
        metadata = pq.read_schema(path).metadata or {}
    version = metadata.get(LOG_VERSION.encode(), b"").decode(errors="replace")
    if not version:
        raise StoreError(f"{path}: damaged, it names no event log. Run 'moon store' to make it again.")
    return version


def write_event_log(folder: Path, log: pa.Table) -> EventLog:
    """Write the behaviours of an EVENTS table beside the other versions in ``folder`` and open them."""
    code = behaviour_codes(log.column("type"), log.column("value"))
    keep = code > 0
    columns = {
        "user_id": log.column("user_id").to_numpy()[keep],
        "item_id": log.column("item_id").to_numpy()[keep],
        "code": code[keep],
        "time_us": log.column("event_time").cast(pa.int64()).to_numpy()[keep],
        "available_us": log.column("available_time").cast(pa.int64()).to_numpy()[keep],
        "event_id": log.column("event_id").to_numpy()[keep],
    }
    order = np.lexsort((sequence_of(log)[keep], columns["available_us"], columns["user_id"]))
    columns = {name: values[order] for name, values in columns.items()}
    users, first = np.unique(columns["user_id"], return_index=True)
    arrays = {
        "users": users,
        "starts": np.append(first, len(order)).astype(np.int64),
        **{name: columns[name] for name in COLUMNS},
    }
    digest = hashlib.sha256()
    for values in arrays.values():
        digest.update(np.ascontiguousarray(values).tobytes())
    version = folder / digest.hexdigest()[:16]
    if not version.exists():
        building = folder / (version.name + ".tmp")
        shutil.rmtree(building, ignore_errors=True)
        with writing(version):
            building.mkdir(parents=True)
            for name, values in arrays.items():
                np.save(building / f"{name}.npy", values, allow_pickle=False)
                fsync(building / f"{name}.npy")
            building.rename(version)
    return EventLog.open(version)
