"""Folding: move the journal's events into the offline log, so that training reads the events that serving saw.

The complete log is ``data/events/log.parquet``. Everything derived from it (the event log that histories are cut
from, the pointers into it, the histories, the counts of items and queries) is rebuilt beside the old files and then
replaces them. A fold that was killed is completed by folding again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset.contracts import EVENTS, completed
from feature_repo.ingest.journal import Journal
from feature_repo.source_tables import write_behaviour
from feature_repo.sources import DATA, LOG, read_source


def fold(store_dir: Path) -> int:
    """Add the events received since the last fold to the offline log of the store at ``store_dir``.

    Returns:
        number of events added.
    """
    data = Path(store_dir) / DATA
    journal = Journal(store_dir)
    sealed = journal.seal()
    log = completed(read_source(data / LOG), EVENTS)
    events = deduplicate(pa.concat_tables([log, journal.table(sealed)]))
    added = len(events) - len(log)
    if added:
        write_behaviour(data, events)
    journal.archive(sealed)
    return added


def deduplicate(events: pa.Table) -> pa.Table:
    """Keep the earliest available row of each event_id (EVENTS), ascending by (available_time, sequence)."""
    order = [("event_id", "ascending"), ("available_time", "ascending")]
    events = events.sort_by(order)
    ids = events.column("event_id").to_numpy()
    first = np.append(True, ids[1:] != ids[:-1])[: len(ids)]
    return events.filter(pa.array(first)).sort_by(
        [("available_time", "ascending"), ("sequence", "ascending")]
    )
