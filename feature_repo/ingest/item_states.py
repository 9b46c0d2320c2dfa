"""Which items may be answered: their states, shared by every process of a store.

An item without a record is active. One that is inactive, out of stock or deleted is in no answer, but stays in the
histories, in the offline sources and in the online store, because users have acted on it.
"""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.records import ACTIVE, DELETED, ITEM_STATES
from dataset.shop_ids import ShopId
from feature_repo.databases import opened
from feature_repo.shop_ids import shop_ids
from feature_repo.sources import DATA, NEW_ITEMS, STATES_FILE
from moonstore.disk import writing
from moonstore.freshness import EPOCH, US

STATES = (*ITEM_STATES, DELETED)
OUT_OF_STOCK = "out_of_stock"
TABLE = """CREATE TABLE IF NOT EXISTS item_states
    (item_id INTEGER PRIMARY KEY, state TEXT, since_us INTEGER, change INTEGER)"""


class UnknownItem(LookupError):
    """An item that the store does not know, or that was deleted."""


def set_state(store_dir: Path, item_id: int, state: str, now: datetime) -> None:
    """Set the state of an item; durable once this returns, idempotent.

    Args:
        store_dir: the run's store.
        item_id: of the item, inside.
        state: one of STATES.
        now: the time of the change.

    Raises:
        ValueError: no such state.
        DiskError: the disk does not take it.
        StoreError: the states cannot be written for another reason.
    """
    if state not in STATES:
        raise ValueError(f"state is {state!r}: expected one of {', '.join(STATES)}")
    if state == ACTIVE and not _path(store_dir).exists():
        return
    with writing(_path(store_dir)), _opened(store_dir) as states, states:
        states.execute("BEGIN IMMEDIATE")
        (change,) = states.execute("SELECT coalesce(max(change), 0) + 1 FROM item_states").fetchone()
        found = states.execute("SELECT state FROM item_states WHERE item_id = ?", (item_id,)).fetchone()
        if (ACTIVE if found is None else found[0]) != state:
            states.execute(
                "INSERT OR REPLACE INTO item_states VALUES (?, ?, ?, ?)",
                (item_id, state, (now - EPOCH) // US, change),
            )


def withdraw(store_dir: Path, item_ids: np.ndarray, since: datetime) -> None:
    """Set items out of stock that no state was ever set of: what a person or a program said of an item stays so.

    Args:
        store_dir: the run's store.
        item_ids: int64, inside.
        since: the time of the change.

    Raises:
        DiskError, StoreError: as ``set_state``.
    """
    if not len(item_ids):
        return
    with writing(_path(store_dir)), _opened(store_dir) as states, states:
        states.execute("BEGIN IMMEDIATE")
        (change,) = states.execute("SELECT coalesce(max(change), 0) + 1 FROM item_states").fetchone()
        rows = [(int(item), OUT_OF_STOCK, (since - EPOCH) // US, change) for item in item_ids]
        states.executemany("INSERT OR IGNORE INTO item_states VALUES (?, ?, ?, ?)", rows)


def change_state(store_dir: Path, item_id: ShopId, state: str, now: datetime) -> None:
    """``set_state`` of an item that the store knows by the shop's id; a deleted one can only be deleted again.

    Raises:
        UnknownItem: it was deleted, or the store does not know it.
        ValueError, StoreError: as ``set_state``.
    """
    inside = shop_ids(store_dir).one("item_id", item_id)
    if state != DELETED and state_of(store_dir, item_id) == DELETED:
        raise UnknownItem(f"item {item_id} was deleted; post it again to bring it back")
    if not _is_known(store_dir, inside):
        raise UnknownItem(f"no item {item_id}")
    set_state(store_dir, inside, state, now)


def state_of(store_dir: Path, item_id: ShopId) -> str:
    """The state of one item, by the shop's id.

    Raises:
        StoreError: the states cannot be read.
    """
    if not _path(store_dir).exists():
        return ACTIVE
    inside = shop_ids(store_dir).one("item_id", item_id)
    with _opened(store_dir) as states:
        found = states.execute("SELECT state FROM item_states WHERE item_id = ?", (inside,)).fetchone()
        return ACTIVE if found is None else str(found[0])


def withdrawn(store_dir: Path) -> dict[int, str]:
    """The items that may not be answered: item id -> state.

    Raises:
        StoreError: the states cannot be read.
    """
    if not _path(store_dir).exists():
        return {}
    with _opened(store_dir) as states:
        return dict(states.execute("SELECT item_id, state FROM item_states WHERE state != ?", (ACTIVE,)))


def changes(store_dir: Path) -> int:
    """Number of changes of any item's state so far.

    Raises:
        StoreError: the states cannot be read.
    """
    if not _path(store_dir).exists():
        return 0
    with _opened(store_dir) as states:
        return int(states.execute("SELECT coalesce(max(change), 0) FROM item_states").fetchone()[0])


def _is_known(store_dir: Path, item_id: int) -> bool:
    data = Path(store_dir) / DATA
    if (data / NEW_ITEMS / f"{item_id}.json").exists():
        return True
    profile = pq.read_table(data / "item_profile.parquet", columns=["item_id"])
    return bool(pc.any(pc.equal(profile.column(0), item_id)).as_py())


def _path(store_dir: Path) -> Path:
    return Path(store_dir) / DATA / STATES_FILE


def _opened(store_dir: Path) -> AbstractContextManager[sqlite3.Connection]:
    advice = " Items that were deleted stay hidden in running services; restore the file before another is started."
    return opened(_path(store_dir), TABLE, "the states of the items", advice)
