"""The files of a frame: the requests of a month, their candidates, and the features of the distinct (item, time).

Months lie one beside the other, so that a frame that grows takes those that are as before from the frame it replaces.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.jagged import offsets_of
from dataset.months import FIRST, month_of
from feature_repo.event_log import EventLog
from feature_repo.frames.join import TrainingFrame
from feature_repo.side_information import SideInformation
from feature_repo.signature import Signature
from moonstore.files import link
from run.artifacts import Artifact

TABLES = ("requests", "candidates", "items")
# Of a request: how much of the log its user had, and how many candidates are its own.
POINTERS = ("log_position", "candidates")
ITEM_ROW = "item_row"  # of a candidate: its row of the item features
ROW_GROUP = 1 << 14  # rows of a table that are read together, so that few are in memory at once
ORDER = "order.parquet"  # where requests of several months are mixed: the place of each, month after month


def months_of_requests(time_us: np.ndarray) -> np.ndarray:
    """The month of each request, text; times are int64 microseconds since 1970 UTC."""
    return np.datetime_as_string(month_of(time_us))


def write_frame_files(
    folder: Path,
    frame: TrainingFrame | None,
    time_us: np.ndarray,
    kept: Collection[str] = (),
    old: Path | None = None,
) -> None:
    """Write a frame in months.

    Args:
        folder: empty.
        frame: the requests that are not of a month that is kept, in order; None: all are kept.
        time_us: int64, of all requests, those that are kept included, in order.
        kept: months that are taken from ``old``.
        old: a folder that this function has written.
    """
    month = months_of_requests(time_us)
    names = sorted(set(month.tolist())) or [FIRST]
    new = month[~np.isin(month, list(kept))]
    for name in names:
        if name in kept:
            assert old is not None
            (folder / name).mkdir()
            for table in TABLES:
                link(old / name / f"{table}.parquet", folder / name / f"{table}.parquet")
        else:
            assert frame is not None
            _write_month(folder / name, frame.only(np.flatnonzero(new == name)))
    place = np.argsort(month, kind="stable")
    if (np.diff(place) < 0).any():
        pq.write_table(pa.table({"place": place}), folder / ORDER)


def _write_month(folder: Path, frame: TrainingFrame) -> None:
    folder.mkdir()
    requests = frame.requests
    for name, values in zip(POINTERS, (frame.positions, np.diff(frame.offsets)), strict=True):
        requests = requests.append_column(name, pa.array(values))
    # Items in the order in which candidates first need them: what some requests need lies together.
    own, first, row = np.unique(frame.item_row, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    given = frame.given.append_column(ITEM_ROW, pa.array(place[row]))
    tables = (requests, given, frame.items.take(pa.array(own[order])))
    for name, table in zip(TABLES, tables, strict=True):
        pq.write_table(
            table.combine_chunks(),
            folder / f"{name}.parquet",
            row_group_size=ROW_GROUP,
            compression="zstd",
            use_compliant_nested_type=False,  # would rename the elements of lists: other bytes after a join
        )


def read_frame_files(
    artifact: Artifact, log: EventLog, history: int, side: SideInformation, signature: Signature
) -> TrainingFrame:
    """Read what ``write_frame_files`` wrote: the frame that was given, its items in the order of months.

    Args:
        artifact: of a frame or a shard.
        log, history, side, signature: of the frame.
    """
    folders = month_folders(artifact.path)
    read = {name: [pq.read_table(folder / f"{name}.parquet") for folder in folders] for name in TABLES}
    frame = frame_of(read, log, history, side, signature)
    if not artifact.file(ORDER).exists():
        return frame
    place = pq.read_table(artifact.file(ORDER)).column("place").to_numpy()
    back = np.empty_like(place)
    back[place] = np.arange(len(place))
    return frame.only(back)


def month_folders(folder: Path) -> list[Path]:
    """The folders of a frame's months, in order."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def frame_of(
    read: Mapping[str, Sequence[pa.Table]],
    log: EventLog,
    history: int,
    side: SideInformation,
    signature: Signature,
) -> TrainingFrame:
    """The frame of TABLES in pieces, one after the other; item rows count from the first item of their piece."""
    requests, candidates, items = (pa.concat_tables(read[name]).combine_chunks() for name in TABLES)
    before = np.cumsum([0, *(len(table) for table in read["items"])])[:-1]
    of_piece = np.repeat(before, [len(table) for table in read["candidates"]])
    position, count = (requests.column(name).to_numpy() for name in POINTERS)
    return TrainingFrame(
        requests=requests.drop_columns(list(POINTERS)),
        given=candidates.drop_columns([ITEM_ROW]),
        items=items,
        item_row=candidates.column(ITEM_ROW).to_numpy() + of_piece,
        offsets=offsets_of(count),
        log=log,
        positions=position,
        history=history,
        side=side,
        signature=signature,
    )
