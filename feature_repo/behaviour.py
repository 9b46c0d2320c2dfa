"""Everything that a store derives from its log, made again only from the first month that has changed.

The event log that histories are cut from, the pointers into it, the histories, and the counts of items and queries.
What is made of a month depends on this month and those before it, so the result is that of the whole log, to the
byte, whatever came first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from dataset.months import Month, first_change, parts_of, stored_months
from feature_repo.event_log import FOLDER, POINTERS, EventLog, log_version
from feature_repo.event_log_growth import write_event_log
from feature_repo.source_tables import query_stats, user_events
from feature_repo.sources import LOG, as_folder, replace_months, replace_source_in_parts
from feature_repo.statistics import daily_stats
from feature_repo.views import HISTORY
from moonstore.disk import make_folder
from moonstore.files import link, replacing, sha256, write_json

FORMAT = 2  # of what is derived; another one is made again
RECORD = "behaviour.json"  # within DATA: the files that may be kept, and their hashes
COUNTED = "statistics"  # within DATA: what was counted before the last month
STATISTICS: dict[str, Callable[..., Iterator[tuple[str, Iterator[pa.Table]]]]] = {
    "item_stats": partial(daily_stats, key="item_id"),
    "query_stats": query_stats,
}
FOLDERS = (*(f"{name}.parquet" for name in STATISTICS), POINTERS, COUNTED)


def write_behaviour(data: Path, months: Sequence[Month], previous: Path | None = None) -> EventLog:
    """Write a log and every source derived from it into the folder ``data``.

    The pointers name the version of the event log they refer to; the previous version is kept for readers that have
    just read the old pointers.

    Args:
        data: of a store.
        months: the log.
        previous: the folder of a store of an earlier state of the log, perhaps ``data`` itself: what it has of the
            months before the first that differs is kept. None: there is none.
    """
    known = {} if previous is None else _sound(previous)
    old = previous if previous is not None and known else data
    before = EventLog.open(old / FOLDER / (log_version(old) or "")) if known else None
    since = first_change(stored_months(old / LOG), months) if known else ""
    log = write_event_log(data / FOLDER, months, since, before)
    replace_source_in_parts(data / "user_history.parquet", log.histories(HISTORY))
    make_folder(data / COUNTED)
    for name, count in STATISTICS.items():
        file = f"{name}.parquet"
        state = data / COUNTED / file
        if known and old != data:
            link(old / COUNTED / file, state)
        replace_months(data / file, count(months, since=since, state=state), since, old / file)
    replace_months(data / POINTERS, user_events(log, months, since), since, old / POINTERS)
    _record(data, log.version, {name: digest for name, digest in known.items() if Path(name).stem < since})
    _write_log(data / LOG, months)  # last: a kill before this line is repaired by folding again
    kept = {log.version, None if before is None else before.version}
    for other in (data / FOLDER).iterdir():
        if other.name not in kept:
            shutil.rmtree(other)
    return log


def _sound(data: Path) -> dict[str, str]:
    """The files that a ``write_behaviour`` recorded, with their hashes, if all are as it wrote them; else none."""
    try:
        record = json.loads((data / RECORD).read_text())
        files = dict(record["files"]) if record["format"] == FORMAT else {}
        return files if all(sha256(data / name).hex() == digest for name, digest in files.items()) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _record(data: Path, version: str, known: Mapping[str, str]) -> None:
    """Record the files of the months and of a version of the event log; of ``known`` ones the hash is known."""
    paths = [part for name in FOLDERS for part in parts_of(data / name)]
    paths += (data / FOLDER / version).iterdir()
    names = sorted(path.relative_to(data).as_posix() for path in paths)
    files = {name: known.get(name) or sha256(data / name).hex() for name in names}
    write_json(data / RECORD, {"format": FORMAT, "files": files})


def _write_log(path: Path, months: Sequence[Month]) -> None:
    make_folder(path.parent)
    as_folder(path)
    for month in months:
        file = path / f"{month.name}.parquet"
        if month.stored != file:
            with replacing(file) as temporary:
                month.write(temporary)
    names = {f"{month.name}.parquet" for month in months}
    for other in path.iterdir():
        if other.name not in names:
            other.unlink()
