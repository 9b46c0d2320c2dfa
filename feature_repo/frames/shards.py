"""A training frame on disk, made in one go or in shards: the same rows in the same order, the same bytes.

A shard is the requests of some users, or those of a stretch of time. It reads every request row but keeps only its
own; shards are made apart, on one machine or on several, and joined. Histories stay pointers into the event log, item
features are kept once per distinct (item, time). A frame lies in months: one that is made again takes from the frame
before the months whose inputs have not changed (``frames.inputs``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataset.contracts import DataError
from dataset.jagged import offsets_of
from feature_repo.event_log import EventLog, open_event_log
from feature_repo.frames.files import months_of_requests, read_frame_files, write_frame_files
from feature_repo.frames.inputs import month_keys
from feature_repo.frames.join import TrainingFrame, distinct, training_frame
from feature_repo.frames.source import FrameSource
from feature_repo.side_information import SideInformation, open_side_information
from feature_repo.signature import Signature
from feature_repo.store import open_store
from moonstore.errors import StoreError
from moonstore.files import locked
from run.artifacts import Artifact, ArtifactError, discard, open_artifact, write_artifact
from run.progress import track
from run.resume import find_artifact, is_made_from, whole_artifact
from run.shards import WHOLE, Shard, check_complete, check_shard

WAYS = ("users", "time")
INPUTS = "inputs.json"  # of a frame: what each month was made from
MADE_BY = "moon frame"


def write_frame(source: FrameSource, out: Path, shard: Shard = WHOLE, by: str = "users") -> Artifact:
    """Write a frame, or one shard of it; one that exists and has the same source is kept.

    Args:
        source: what it is made from.
        out: directory of the artifact, kind ``frame``, or ``frame-shard`` for ``join_frame``: ``requests.parquet``
            {the requests, log_position, candidates}, ``candidates.parquet`` {the candidates, item_row} and
            ``items.parquet`` {features of the distinct (item, time)} of each month.
        shard: (number from 1, how many).
        by: ``users``, a user's requests stay together; or ``time``, as many requests each.

    Raises:
        ShardError: there is no such shard.
        DataError: there is no such way, or the rows are not requests, see ``training_frame``.
        StoreError: there is no store, or it returned other rows than were asked for.
    """
    _check(shard, by)
    config = source.config if shard == WHOLE else {**source.config, "by": by, "shard": list(shard)}
    there = whole_artifact(out, _kind(config))
    if there is not None and is_made_from(there, config, source.parents):
        return there
    places = source.places(shard, by)
    keys, before = (month_keys(source), _months(there)) if shard == WHOLE else ({}, {})
    kept = [month for month, key in keys.items() if before.get(month) == key]
    month = months_of_requests(source.requests["time_us"])
    new = places[~np.isin(month[places], kept)]
    frame = None
    if not kept or len(new):
        frame = training_frame(source.store_dir, source.rows_of(new), source.history, source.service)
    return _write(source, out, config, frame, source.requests["time_us"][places], keys, kept)


def join_frame(source: FrameSource, shards: Sequence[Artifact], out: Path) -> Artifact:
    """Join the shards of a frame: the artifact that ``write_frame`` makes in one go, to the byte.

    Args:
        source: what they were made from.
        shards: all of them, in any order.
        out: directory of the artifact.

    Raises:
        ShardError: a shard is missing or there twice.
        ArtifactError: one was made from another store, other rows or settings, or sharded in another way.
    """
    check_complete((tuple(shard.config["shard"]) for shard in shards), f"{MADE_BY} --shard")
    by = shards[0].config["by"]
    for shard in shards:
        _check_kin(source, shard, by)
    found = _made(source, out, source.config)
    if found is None:
        parts = [_read(shard, source.store_dir) for shard in track(shards, "join frame", unit="shards")]
        places = [source.places(tuple(shard.config["shard"]), by) for shard in shards]
        frame = _joined(parts, np.argsort(np.concatenate(places)))
        found = _write(source, out, source.config, frame, source.requests["time_us"], month_keys(source))
    return found


def write_or_join(source: FrameSource, out: Path, shard: Shard, by: str = "users") -> list[str]:
    """Write one shard beside ``out``; the last one joins them all into ``out`` and removes them.

    Args:
        source: what the frame is made from.
        out: directory of the joined frame; nothing is done if it exists and has the same source.
        shard: (number from 1, how many).
        by: ``users`` or ``time``.

    Returns:
        the commands that make the shards still missing.

    Raises:
        ArtifactError: a shard was damaged; and whatever ``write_frame`` and ``join_frame`` raise.
    """
    _check(shard, by)
    folder, count = out.with_name("shards"), shard[1]
    paths = {place: folder / f"{place}-of-{count}-by-{by}" for place in range(1, count + 1)}
    commands = {place: f"{MADE_BY} --by {by} --shard {place}/{count}" for place in paths}
    if _made(source, out, source.config) is not None:
        discard(folder)
        return []
    if shard == WHOLE:
        write_frame(source, out)
        return []
    write_frame(source, paths[shard[0]], shard, by)
    with locked(out.parent / "lock"):  # of two that finish together one joins, the other finds a frame
        missing = [commands[place] for place, path in paths.items() if not path.exists()]
        if missing and _made(source, out, source.config) is None:
            return missing
        if not missing:
            parts = [open_artifact(path, "frame-shard", commands[place]) for place, path in paths.items()]
            join_frame(source, parts, out)
            discard(folder)
    return []


def open_frame(path: Path, store_dir: Path) -> TrainingFrame:
    """Open a frame that ``moon frame`` or ``write_frame`` wrote, as ``training_frame`` would return it.

    Args:
        path: of the artifact.
        store_dir: the store it was made from, for its event log.

    Raises:
        ArtifactError: missing, damaged, or only a shard.
        StoreError: the store's event log is another one.
    """
    return _read(open_artifact(path, "frame", MADE_BY), store_dir)


def find_frame(source: FrameSource, out: Path) -> TrainingFrame | None:
    """The frame at ``out`` if it is whole and was made from this source."""
    found = _made(source, out, source.config)
    return None if found is None else _read(found, source.store_dir)


def _check(shard: Shard, by: str) -> None:
    check_shard(shard)
    if by not in WAYS:
        raise DataError(f"by: expected {' or '.join(WAYS)}, found {by!r}.")


def _made(source: FrameSource, out: Path, config: Mapping[str, Any]) -> Artifact | None:
    """The artifact at ``out``, if it is whole and was made from this."""
    return find_artifact(out, _kind(config), config, source.parents)


def _kind(config: Mapping[str, Any]) -> str:
    return "frame-shard" if "shard" in config else "frame"


def _check_kin(source: FrameSource, shard: Artifact, by: str) -> None:
    expected = {**source.config, "by": by, **{role: one.id for role, one in source.parents.items()}}
    found = {**shard.config, **shard.parents}
    strange = [name for name, value in expected.items() if found.get(name) != value]
    if strange:
        said = ", ".join(f"{name} {found.get(name)} instead of {expected[name]}" for name in strange)
        number, count = shard.config["shard"]
        raise ArtifactError(
            f"{shard.path}: shard {number}/{count} is of another frame: {said}. "
            f"Run '{MADE_BY} --by {by} --shard {number}/{count}' to make it again."
        )


def _months(frame: Artifact | None) -> dict[str, str]:
    """The months of a frame with what each was made from; none of no frame, or of one of an earlier release."""
    if frame is None or not frame.file(INPUTS).exists():
        return {}
    return dict(json.loads(frame.file(INPUTS).read_text()))


def _write(
    source: FrameSource,
    out: Path,
    config: Mapping[str, Any],
    frame: TrainingFrame | None,
    time_us: np.ndarray,
    keys: Mapping[str, str],
    kept: Sequence[str] = (),
) -> Artifact:
    with write_artifact(out, _kind(config), config, source.parents) as folder:
        write_frame_files(folder, frame, time_us, kept, out)
        if keys:  # a shard has none: it is no whole month
            (folder / INPUTS).write_text(json.dumps(keys, indent=2) + "\n")
    return open_artifact(out, _kind(config), MADE_BY)


def open_parts(artifact: Artifact, store_dir: Path) -> tuple[EventLog, int, SideInformation, Signature]:
    """What a frame points to: the event log, how much of it is a history, and the features of behaviours.

    Raises:
        StoreError: the store's event log is another one.
    """
    log = open_event_log(store_dir)
    if not log.holds([artifact.config["log"]]):
        raise StoreError(
            f"{artifact.path}: pointers into event log {artifact.config['log']}, but that of {store_dir} is "
            f"{log.version}. Run '{MADE_BY}' again."
        )
    signature = Signature.from_json(artifact.config["signature"])
    side = open_side_information(open_store(store_dir), signature.features)
    return log, int(artifact.config["history"]), side, signature


def _read(artifact: Artifact, store_dir: Path) -> TrainingFrame:
    return read_frame_files(artifact, *open_parts(artifact, store_dir))


def _joined(parts: Sequence[TrainingFrame], order: np.ndarray) -> TrainingFrame:
    """The requests of all parts in this order, item features that several parts have kept once."""
    before = np.cumsum([0, *(len(part.items) for part in parts)])
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    apart = TrainingFrame(
        requests=pa.concat_tables(part.requests for part in parts).combine_chunks(),
        given=pa.concat_tables(part.given for part in parts).combine_chunks(),
        items=pa.concat_tables(part.items for part in parts).combine_chunks(),
        item_row=np.concatenate([part.item_row + start for part, start in zip(parts, before, strict=False)]),
        offsets=offsets_of(counts),
        log=parts[0].log,
        positions=np.concatenate([part.positions for part in parts]),
        history=parts[0].history,
        side=parts[0].side,
        signature=parts[0].signature,
    )
    frame = apart.only(order)
    time_us = np.repeat(frame.requests.column("time").cast(pa.int64()).to_numpy(), np.diff(frame.offsets))
    items, _, item_row = distinct(frame.given.column("item_id").to_numpy(), time_us)
    some = np.empty(len(items), np.int64)
    some[item_row] = frame.item_row  # of equal rows, whichever comes last
    return replace(frame, items=frame.items.take(some), item_row=item_row)
