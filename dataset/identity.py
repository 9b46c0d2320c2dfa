"""What makes two events the same: who tells of them, their id, and what they say.

An event is known by its sender and the id that the sender gave it. Told again with the same content it is a
duplicate; with other content it is another event under a used id, which is refused.
"""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import EVENT_TYPES
from dataset.shop_ids import CANONICAL, LARGEST_ID, ShopId

# Importers number events from here on, so that a client that counts from 1 and names no sender does not meet them.
IMPORTED = 2**62
CONTENT = ("user_id", "item_id", "query_id", "request_id", "position")  # and type and value


def event_key(sender: str, event_id: ShopId) -> int:
    """The int64 that an event is stored under: its id, if no sender is named and it is one, else a hash of both.

    A text of decimal digits is the same id as the integer.
    """
    if isinstance(event_id, str) and re.fullmatch(CANONICAL, event_id, flags=re.ASCII):
        event_id = int(event_id)
    if not sender and isinstance(event_id, int) and 0 <= event_id <= LARGEST_ID:
        return event_id
    name = json.dumps([sender, event_id]).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1


def event_content(events: pa.Table) -> np.ndarray:
    """A hash of what each event says, its times left out, the same on every machine.

    The time is compared apart (``feature_repo.ingest.known``): an event without one gets that of its arrival.

    Args:
        events: EVENTS rows, or at least their columns of ids, type, position and value.

    Returns:
        int64 (N).
    """
    columns = [pc.fill_null(events.column(name).cast(pa.int64()), -1).to_numpy() for name in CONTENT]
    kind = pc.fill_null(pc.index_in(events.column("type"), value_set=pa.array(EVENT_TYPES)), -1).to_numpy()
    value = events.column("value").to_numpy().astype(np.float32) + np.float32(0)  # -0.0 is 0.0
    bits = np.where(np.isnan(value), np.int64(-1), value.view(np.int32).astype(np.int64))
    return stable_hash(*columns, kind.astype(np.int64), bits).view(np.int64)


def stable_hash(*columns: np.ndarray) -> np.ndarray:
    """A uint64 hash of the values of int64 columns (splitmix64), the same on every machine."""
    mixed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        mixed = mixed + np.uint64(0x9E3779B97F4A7C15) + column.astype(np.int64).view(np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed
