"""The journal becomes part of the offline log: what training reads is then what serving saw.

The log's events are kept whole (``data/events/log.parquet``), and everything that follows from them is made again
beside what is there and put in its place: the event log that histories are cut from, the pointers into it, the
histories, and the counts of items and queries. Whatever is killed in between is made good by doing it again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.ingest.journal import Journal
from feature_repo.source_tables import write_behaviour
from feature_repo.sources import DATA, LOG


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
