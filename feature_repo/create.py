"""Create the store of a run: write its feature sources and register its definitions (``feast apply``)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from feast import FeatureStore

from dataset.extra import NOTHING, LeftOver
from dataset.log import among
from dataset.months import Month
from dataset.shop_ids import ALL_INT64, Kinds
from feature_repo import source_tables
from feature_repo.behaviour import write_behaviour
from feature_repo.dead_letters import DEAD_LETTER, EVENTS
from feature_repo.extras import write_extras
from feature_repo.ingest.journal import Journal
from feature_repo.shop_ids import RECEIVED, write_shop_ids
from feature_repo.sources import DATA, LOG, NEW_ITEMS, STATES_FILE, replace_source
from feature_repo.store import apply_definitions, open_store, use_profile
from feature_repo.views import EmbeddingRecord
from moonstore.disk import writing
from moonstore.errors import StoreError

if TYPE_CHECKING:
    from dataset.split import Split
    from dataset.tables import Dataset


def create_store(
    store_dir: Path,
    dataset: Dataset,
    split: Split,
    profile: str = "embedded",
    redis_url: str | None = None,
    id_kinds: Kinds = ALL_INT64,
    left_over: LeftOver = NOTHING,
) -> FeatureStore:
    """Write the sources of a run and register its definitions, replacing an existing store.

    What that one derived from the months of the log that have not changed is kept, as are the states of its items,
    the ids that were received, and the refused items and events.

    Args:
        store_dir: the repository folder to create.
        dataset: items, users and queries.
        split: its log holds every event that behaviour features may see.
        profile: online store, "embedded" (SQLite) or "redis".
        redis_url: ``redis://host:port/db``; the profile's own address by default.
        id_kinds: what the dataset's ids are.
        left_over: columns of the dataset that no table has a place for.

    Raises:
        StoreError: unknown profile, malformed address, or the existing store holds events or items that were received
            since it was created and are not in the data.
    """
    store_dir = Path(store_dir)
    months = split.months
    refuse_to_lose(store_dir, dataset.items, months)
    building, previous = (store_dir.with_name(store_dir.name + end) for end in (".tmp", ".previous"))
    shutil.rmtree(building, ignore_errors=True)
    with writing(store_dir):
        _build(building, dataset, profile, redis_url, left_over)
        write_behaviour(building / DATA, months, store_dir / DATA)
        apply_definitions(building)
        tables = {"items": dataset.items, "users": dataset.users, "queries": dataset.queries}
        write_shop_ids(building, id_kinds, tables)
        _keep(store_dir / DATA, building / DATA)
        shutil.rmtree(previous, ignore_errors=True)
        if store_dir.exists():
            store_dir.rename(previous)
        building.rename(store_dir)
    shutil.rmtree(previous, ignore_errors=True)
    return open_store(store_dir)


def _build(folder: Path, dataset: Dataset, profile: str, redis_url: str | None, left_over: LeftOver) -> None:
    """Write what a store has of the catalogue into an empty place."""
    data = folder / DATA
    data.mkdir(parents=True)
    use_profile(folder, profile, redis_url)
    tables = {
        "item_profile": source_tables.item_profile(dataset.items),
        "user_profile": source_tables.user_profile(dataset.users),
    }
    for view, table in tables.items():
        replace_source(data / f"{view}.parquet", table)
    write_extras(
        data, left_over, {"items": dataset.items, "users": dataset.users, "queries": dataset.queries}
    )
    EmbeddingRecord().save(folder)


def _keep(old: Path, new: Path) -> None:
    """Copy what no dataset holds: what was refused, which items are withdrawn, and the ids that were received."""
    for name in (STATES_FILE, RECEIVED):
        if (old / name).exists():
            shutil.copy2(old / name, new / name)
    for kind in (NEW_ITEMS, EVENTS):
        if (old / DEAD_LETTER / kind).exists():
            shutil.copytree(old / DEAD_LETTER / kind, new / DEAD_LETTER / kind)


def refuse_to_lose(store_dir: Path, items: pa.Table, log: Sequence[Month]) -> None:
    """Refuse to replace a store that holds the only copy of received events or items.

    Args:
        store_dir: the store.
        items, log: the data that the new store would be created from.

    Raises:
        StoreError: events or items received since the store was created are missing from the data; says how many.
    """
    if not (store_dir / DATA / LOG).exists():
        return
    missing = Journal(store_dir).event_ids()
    for month in log if len(missing) else ():
        missing = missing[~among(missing, month.table(["event_id"]).column(0).to_numpy())]
    events = len(missing)
    names = [path.stem for path in (store_dir / DATA / NEW_ITEMS).glob("*.json")]
    ids = [int(name) for name in names if name.isdigit() and int(name) < 2**63]
    others = int((~np.isin(np.array(ids, np.int64), items.column("item_id").to_numpy())).sum())
    if events or others:
        raise StoreError(
            f"{store_dir}: expected a store to replace, found {events} events and {others} items in it that were "
            f"received since and are not in the dataset. Add them to it, or move the folder away, and run this again."
        )
