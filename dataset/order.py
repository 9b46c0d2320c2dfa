"""The order of events with equal times.

Logs in whole seconds or days hold many events of one time. They are in the order of ``sequence`` (EVENTS): the
source's own order where it has one, else a hash. An id would not do: a sequence model would learn that the next item
has a larger id.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.identity import stable_hash

SOURCE = "the source's order"  # recorded in the manifest as ``ties``
HASH = "hash of user and item"
SORTED = "hash of user and item, because the source lists events of equal time by item"
FEW = 20  # neighbours of equal time
NEARLY_ALL = 0.95  # share of them in the order of an id, which shows that the source is sorted


def hashed(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """A sequence number from a hash of user and item, int64."""
    return (stable_hash(user, item) >> np.uint64(1)).astype(np.int64)


def sequence_of(events: pa.Table) -> np.ndarray:
    """The column ``sequence`` of EVENTS, int64; 0 where it is null.

    Null are received events, each of which has an available time of its own, and events of a run of an earlier
    release, whose rows are in order. So a stable sort by (available_time, sequence) orders every log.
    """
    return np.asarray(events.column("sequence").fill_null(0).to_numpy())


def in_order(events: pa.Table) -> pa.Table:
    """The events by (available_time, sequence), those with equal ones as they are; no copy if they already lie so."""
    time_us = events.column("available_time").cast(pa.int64()).to_numpy()
    sequence = sequence_of(events)
    later = np.diff(time_us)
    if (later < 0).any() or ((later == 0) & (np.diff(sequence) < 0)).any():
        return events.take(pa.array(np.lexsort((sequence, time_us))))
    return events


def sequenced(events: pa.Table, items: pa.Table) -> tuple[pa.Table, str]:
    """Give every event a sequence number.

    Args:
        events: EVENTS; the numbers that are there are kept if every event has one and they say more than the items'
            ids do.
        items: ITEMS.

    Returns:
        EVENTS and what the order is: SOURCE, HASH or SORTED.
    """
    user, item = events.column("user_id").to_numpy(), events.column("item_id").to_numpy()
    if events.column("sequence").null_count:
        ties = HASH
    elif _listed_by_item(events, items):
        ties = SORTED
    else:
        return events, SOURCE
    place = events.column_names.index("sequence")
    return events.set_column(place, events.field("sequence"), pa.array(hashed(user, item))), ties


def _listed_by_item(events: pa.Table, items: pa.Table) -> bool:
    """Whether nearly all neighbours of equal time are in rising, or falling, order of one of the items' ids."""
    user, item = events.column("user_id").to_numpy(), events.column("item_id").to_numpy()
    time_us = events.column("event_time").cast(pa.int64()).to_numpy()
    order = np.lexsort((sequence_of(events), time_us, user))
    tied = np.flatnonzero((np.diff(user[order]) == 0) & (np.diff(time_us[order]) == 0))
    before, after = item[order[tied]], item[order[tied + 1]]
    changed = before != after
    before, after = before[changed], after[changed]
    if len(before) < FEW:
        return False
    by_name = pc.rank(items.column("external_id"), tiebreaker="dense").to_numpy().astype(np.int64)
    known = np.argsort(items.column("item_id").to_numpy())
    ids = items.column("item_id").to_numpy()[known]
    names = by_name[known]
    for left, right in (
        (before, after),
        (names[np.searchsorted(ids, before)], names[np.searchsorted(ids, after)]),
    ):
        rising = float(np.mean(right > left))
        if max(rising, 1 - rising) >= NEARLY_ALL:
            return True
    return False
