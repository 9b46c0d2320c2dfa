"""Folding: move the journal's events into the offline log, so that training reads the events that serving saw.

The complete log is ``data/events/log.parquet``, a file for each month. Everything derived from it (the event log that
histories are cut from, the pointers into it, the histories, the counts of items and queries) is made again from the
first month with a new event, beside the old files, and then replaces them. A fold that was killed is completed by
folding again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset.log import among
from dataset.months import Month, months_of, stored_months
from dataset.order import in_order
from feature_repo.behaviour import write_behaviour
from feature_repo.ingest.journal import Journal
from feature_repo.sources import DATA, LOG
from moonstore.readable import readable


def fold(store_dir: Path) -> int:
    """Add the events received since the last fold to the offline log of the store at ``store_dir``.

    Returns:
        number of events added.
    """
    data = Path(store_dir) / DATA
    journal = Journal(store_dir)
    sealed = journal.seal()
    with readable(data / LOG, "Run 'moon store' to make it again."):
        months, added = with_events(stored_months(data / LOG), journal.table(sealed))
    if added:
        write_behaviour(data, months, data)
    journal.archive(sealed)
    return added


def with_events(log: Sequence[Month], events: pa.Table) -> tuple[list[Month], int]:
    """The log with these events (EVENTS); of those with one id the one that was available first stays.

    Returns:
        the months, of which only those that change are read, and how many events are new.
    """
    ids = events.column("event_id").to_numpy()
    told: dict[str, pa.Table] = {}  # by month, what the log says under these ids
    for month in log:
        there = among(month.table(["event_id"]).column(0).to_numpy(), ids)
        if there.any():
            told[month.name] = month.table().filter(pa.array(there))
    kept = deduplicate(pa.concat_tables([events, *told.values()]))
    new = {month.name: month.table() for month in months_of(kept)} if len(kept) else {}
    months = {month.name: month for month in log if len(log) > 1 or not new or len(month.table(["event_id"]))}
    for name in {*new, *told}:
        parts = [new[name]] if name in new else []
        if name in months:
            others = months[name].table()
            own = among(others.column("event_id").to_numpy(), ids)
            parts.insert(0, others.filter(pa.array(~own)))
        months[name] = Month(name, in_order(pa.concat_tables(parts)).combine_chunks())
    return [months[name] for name in sorted(months)], len(kept) - sum(map(len, told.values()))


def deduplicate(events: pa.Table) -> pa.Table:
    """Keep the earliest available row of each event_id (EVENTS), ascending by (available_time, sequence)."""
    order = [("event_id", "ascending"), ("available_time", "ascending")]
    events = events.sort_by(order)
    ids = events.column("event_id").to_numpy()
    first = np.append(True, ids[1:] != ids[:-1])[: len(ids)]
    return in_order(events.filter(pa.array(first)))
