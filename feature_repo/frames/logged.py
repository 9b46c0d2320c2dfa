"""Logged requests as training frames: what was shown in them, or what was taken where nothing was shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.split import Split
from feature_repo.frames.join import TrainingFrame, training_frame
from feature_repo.frames.shards import find_frame, write_frame
from feature_repo.frames.source import FrameSource
from feature_repo.frames.stream import FrameStream
from run.sizes import Size

LOGGED = "frames/logged"  # of a run: its frame of logged requests
BATCH_ROWS = 1 << 16  # of logged rows in memory at once, beside those that are kept


def logged_frames(folder: Path, split: Split, size: Size, parts: Sequence[str]) -> list[TrainingFrame]:
    """The logged impressions of some parts: from the frame that ``moon frame`` wrote, or joined now.

    A frame of another store, split or history is ignored.
    """
    frame = _found(folder, split, size)
    if frame is None:
        rows = [of_part(split.ranking, part) for part in parts]
        return [training_frame(folder / "store", some, size.history) for some in rows]
    part = frame.given["part"].take(frame.offsets[:-1])
    return [frame.only(np.flatnonzero(pc.equal(part, one).to_numpy())) for one in parts]


def logged_frame(folder: Path, split: Split, size: Size, requests: np.ndarray) -> TrainingFrame:
    """Some of the logged requests, numbered as in ``split.ranking``, int64, ascending; see ``logged_frames``."""
    found = _found(folder, split, size)
    if found is not None:
        return found.only(requests)
    return training_frame(folder / "store", of_requests(split.ranking, requests), size.history)


def logged_streams(folder: Path, split: Split, size: Size, parts: Sequence[str]) -> list[FrameStream]:
    """The logged impressions of some parts, read in windows from the run's frame, which is written if need be."""
    frame = FrameStream.open(
        write_frame(logged_source(folder, split, size), folder / LOGGED), folder / "store"
    )
    return [frame.of_part(part) for part in parts]


def _found(folder: Path, split: Split, size: Size) -> TrainingFrame | None:
    return find_frame(logged_source(folder, split, size), folder / LOGGED)


def logged_source(folder: Path, split: Split, size: Size) -> FrameSource:
    """What the run's frame of logged requests is made from."""
    rows = partial(logged_rows, split)
    return FrameSource(folder / "store", rows, size.history, {"split": split.artifact})


def logged_rows(split: Split) -> Iterator[pa.Table]:
    """The logged requests (RANKING), as request rows for ``training_frame``, a few at a time."""
    file = pq.ParquetFile(split.artifact.file("ranking.parquet"))
    yield file.schema_arrow.empty_table()
    for batch in file.iter_batches(BATCH_ROWS):
        yield pa.Table.from_batches([batch])


def of_requests(table: pa.Table, requests: np.ndarray) -> pa.Table:
    """The RANKING rows of some requests, numbered from 0 in the order of the table, int64."""
    request = table["request_id"].to_numpy()
    number = np.cumsum(np.append(True, request[1:] != request[:-1])[: len(request)]) - 1
    return table.filter(pa.array(np.isin(number, requests)))


def of_part(table: pa.Table, part: str) -> pa.Table:
    """The rows of one part of the split: train, valid or test."""
    return table.filter(pc.equal(table["part"], part))
