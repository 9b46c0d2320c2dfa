"""A frame read from its files in windows: few requests are in memory at once, however many there are.

What stays in memory is where each request lies, 24 bytes of each. A window is a stretch of the frame of about so many
candidates; the one that was read last is kept, so that whoever goes through the requests window after window, in any
order of windows and of the requests within one, reads each file once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.jagged import offsets_of
from feature_repo.event_log import EventLog
from feature_repo.frame import Frame
from feature_repo.frames.files import ITEM_ROW, POINTERS, TABLES, frame_of, month_folders
from feature_repo.frames.join import TrainingFrame
from feature_repo.frames.shards import open_parts
from feature_repo.side_information import SideInformation
from feature_repo.signature import Signature
from run.artifacts import Artifact

WINDOW = 1 << 16  # candidates


@dataclass(frozen=True)
class FrameStream:
    """Requests of a frame, in the order of its files.

    Attributes:
        months: folders of the frame, in order.
        rows: int64 (R), the requests' places in the frame, ascending.
        offsets: int64, of the candidates of all requests of the frame.
        starts: int64, the first request of each month in the frame, and their number.
        window: candidates that are read together.
        log, history, side, signature: as of ``TrainingFrame``.
    """

    months: Sequence[Path]
    rows: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    window: int
    log: EventLog
    history: int
    side: SideInformation
    signature: Signature
    _kept: dict[int, tuple[int, TrainingFrame]] = field(default_factory=dict)

    @classmethod
    def open(cls, artifact: Artifact, store_dir: Path, window: int = WINDOW) -> FrameStream:
        """Open a frame that ``write_frame`` wrote; see ``shards.open_frame`` for what raises."""
        return cls.of(artifact.path, *open_parts(artifact, store_dir), window)

    @classmethod
    def of(
        cls,
        folder: Path,
        log: EventLog,
        history: int,
        side: SideInformation,
        signature: Signature,
        window: int,
    ) -> FrameStream:
        """Open the files of ``write_frame_files``."""
        months = month_folders(folder)
        count = POINTERS[1]
        counts = [pq.read_table(month / "requests.parquet", columns=[count])[count] for month in months]
        starts = np.cumsum([0, *(len(one) for one in counts)])
        each = np.concatenate([one.to_numpy() for one in counts])
        offsets = offsets_of(each)
        return cls(months, np.arange(len(each)), offsets, starts, window, log, history, side, signature)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def windows(self) -> np.ndarray:
        """The window that each request is read with, int64 (R), ascending."""
        return self.offsets[self.rows] // self.window

    def of_part(self, part: str) -> FrameStream:
        """The requests of one part of the split (train, valid or test), as their first candidate says."""
        mine = [np.empty(0, dtype=bool)]
        for month, start, stop in zip(self.months, self.starts[:-1], self.starts[1:], strict=True):
            said = pq.read_table(month / "candidates.parquet", columns=["part"], read_dictionary=["part"])[
                "part"
            ]
            first = said.take(pa.array(self.offsets[start:stop] - self.offsets[start])).cast(pa.string())
            mine.append(pc.equal(first, part).to_numpy())
        return replace(self, rows=self.rows[np.concatenate(mine)[self.rows]], _kept={})

    def reading(self, history: int) -> FrameStream:
        """The same requests with longer or shorter histories: at most so many behaviours."""
        return replace(self, history=history, _kept={})

    @property
    def folder(self) -> Path:
        """Where the frame lies."""
        return self.months[0].parent.parent

    def take(self, start: int, stop: int) -> Frame:
        """The frame of requests ``start`` to ``stop``."""
        return self.select(np.arange(start, min(stop, len(self))))

    def select(self, request_rows: np.ndarray) -> Frame:
        """The frame of these requests, in this order; those of one window cost least."""
        asked = np.asarray(request_rows, dtype=np.int64)
        places = self.rows[asked]
        if not len(places):
            return self._read(0, 0).select(places)
        first, frame = self._window(asked)
        return frame.select(places - first)

    def _window(self, asked: np.ndarray) -> tuple[int, TrainingFrame]:
        """A stretch of the frame that holds these requests, and its first one."""
        windows = self.windows[asked]
        number = int(windows[0])
        if (windows != number).any():
            places = self.rows[asked]
            return int(places.min()), self._read(int(places.min()), int(places.max()) + 1)
        if number not in self._kept:
            own = self.rows[
                np.searchsorted(self.windows, number) : np.searchsorted(self.windows, number, "right")
            ]
            self._kept.clear()
            self._kept[number] = int(own[0]), self._read(int(own[0]), int(own[-1]) + 1)
        return self._kept[number]

    def _read(self, start: int, stop: int) -> TrainingFrame:
        """The requests at these places of the frame."""
        parts = [
            (month, max(start, first) - first, min(stop, last) - first, first)
            for month, first, last in zip(self.months, self.starts[:-1], self.starts[1:], strict=True)
            if start < last and stop > first
        ] or [(self.months[0], 0, 0, 0)]
        read: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        for month, begin, end, first in parts:
            read["requests"].append(_rows(month / "requests.parquet", begin, end))
            base, bounds = self.offsets[first], self.offsets[[first + begin, first + end]]
            own = _rows(month / "candidates.parquet", *(bounds - base).tolist())
            row = own[ITEM_ROW].to_numpy()
            low, high = (int(row.min()), int(row.max()) + 1) if len(row) else (0, 0)
            read["items"].append(_rows(month / "items.parquet", low, high))
            place = own.column_names.index(ITEM_ROW)
            read["candidates"].append(own.set_column(place, ITEM_ROW, pa.array(row - low)))
        return frame_of(read, self.log, self.history, self.side, self.signature)


def _rows(path: Path, start: int, stop: int) -> pa.Table:
    """Rows of a file; only the row groups that hold them are read."""
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        needed = np.flatnonzero((ends > start) & (ends - sizes < stop))
        if start == stop or not len(needed):
            return file.schema_arrow.empty_table()
        begin = int(ends[needed[0]] - sizes[needed[0]])
        return file.read_row_groups(needed.tolist()).slice(start - begin, stop - start)
