"""The journal becomes part of the offline log: what training reads is then what serving saw.

The log's events are kept whole (``data/events/log.parquet``), and everything that follows from them is made again
beside what is there and put in its place: the event log that histories are cut from, the pointers into it, the
histories, and the counts of items and queries. Whatever is killed in between is made good by doing it again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import source_tables
from feature_repo.event_log import FOLDER, EventLog, log_version, write_event_log
from feature_repo.journal import LOG, Journal
from feature_repo.sources import DATA, replace_source
from feature_repo.statistics import daily_stats
from feature_repo.views import HISTORY

END = np.iinfo(np.int64).max


def fold(store_dir: Path) -> int:
    """Make what came in since the last time part of the offline log of the store at ``store_dir``.

    Returns:
        how many events that was.
    """
    data = Path(store_dir) / DATA
    journal = Journal(store_dir)
    sealed = journal.seal()
    log = pq.read_table(data / LOG)
    events = first_of_each(pa.concat_tables([log, journal.table(sealed)]))
    added = len(events) - len(log)
    if added:
        write_behaviour(data, events)
    journal.archive(sealed)
    return added


def first_of_each(events: pa.Table) -> pa.Table:
    """EVENTS rows with each event once, as it became available first; ascending by (available_time, event_id)."""
    order = [("event_id", "ascending"), ("available_time", "ascending")]
    events = events.sort_by(order)
    ids = events.column("event_id").to_numpy()
    first = np.append(True, ids[1:] != ids[:-1])[: len(ids)]
    return events.filter(pa.array(first)).sort_by(
        [("available_time", "ascending"), ("event_id", "ascending")]
    )


def write_behaviour(data: Path, events: pa.Table) -> EventLog:
    """Write ``events`` and every source that follows from them into the folder ``data``.

    The pointers say which version of the event log they point into; the version before it is kept for those who have
    just read them.
    """
    before = log_version(data)
    log = write_event_log(data / FOLDER, events)
    tables = {
        "user_events": source_tables.user_events(log),
        "user_history": log.snapshot(before_us=END, history=HISTORY),
        "item_stats": daily_stats(events, "item_id"),
        "query_stats": source_tables.query_stats(events),
    }
    for name, table in tables.items():
        replace_source(data / f"{name}.parquet", table)
    (data / LOG).parent.mkdir(exist_ok=True)
    replace_source(data / LOG, events)  # last: until then the journal is folded again
    for other in (data / FOLDER).iterdir():
        if other.name not in (log.version, before):
            shutil.rmtree(other)
    return log
