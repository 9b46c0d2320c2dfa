"""Items received since the catalogue was imported: stored as files, written online, and folded into the sources.

An item is one JSON file in ``data/new_items``, written atomically; an item that is sent again replaces it. Every
service of the store watches that folder, encodes new items and writes their rows online (``put_online``), so that all
running services see an item, and so do services that start later.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore

from dataset.contracts import ITEMS, content_hash
from dataset.records import Item
from feature_repo import source_tables
from feature_repo.sources import DATA, NEW_ITEMS, TIMESTAMP, replace_source
from feature_repo.vectors import VectorTable
from feature_repo.views import Embedding
from moonstore.batch import sift
from moonstore.engine import DEAD_LETTER, ColumnStore
from moonstore.errors import StoreError
from moonstore.freshness import EPOCH, US
from moonstore.matrix import matrix_reader, read_matrix
from run.artifacts import write_json

PROFILE = "item_profile"
SECOND_US = 1_000_000


class RowsRefused(StoreError):
    """A row of a new item breaks a rule that materialization enforces."""


@dataclass(frozen=True)
class NewItem:
    """A received item and when it became available.

    Attributes:
        item: as received.
        available_us: microseconds since 1970 UTC.
    """

    item: Item
    available_us: int

    @property
    def image(self) -> bytes | None:
        """Its encoded picture."""
        text = self.item.image_base64
        return None if text is None else base64.b64decode(text)

    @property
    def row(self) -> dict[str, Any]:
        """Its row of ``dataset.contracts.ITEMS``."""
        one, image = self.item, self.image
        return {
            "item_id": one.item_id,
            "external_id": str(one.item_id),
            "title": one.title,
            "description": one.description,
            "category": one.category,
            "attributes": list(one.attributes.items()),
            "price": one.price,
            "spu": one.item_id if one.spu is None else one.spu,
            "image_id": None if image is None else content_hash(image),
            "first_seen": EPOCH + self.available_us * US,
        }


def keep_item(store_dir: Path, item: Item, now: datetime) -> None:
    """Store an item that becomes available at ``now``, for all services of the store."""
    folder = _folder(store_dir)
    folder.mkdir(exist_ok=True)
    content = {"item": item.model_dump(exclude_none=True), "available_us": (now - EPOCH) // US}
    write_json(folder / f"{item.item_id}.json", content)


def kept_item(store_dir: Path, item_id: int) -> Item | None:
    """An item as it was received last; None: it was not, or was set aside."""
    try:
        return Item(**json.loads((_folder(store_dir) / f"{item_id}.json").read_text())["item"])
    except FileNotFoundError:
        return None


def new_items(store_dir: Path) -> list[NewItem]:
    """All items received, ascending by id."""
    found = [json.loads(path.read_text()) for path in _files(store_dir)]
    items = [NewItem(Item(**one["item"]), one["available_us"]) for one in found]
    return sorted(items, key=lambda one: one.item.item_id)


def set_aside(store_dir: Path, item: NewItem, reason: str) -> None:
    """Move an item that cannot be encoded or stored to the dead letter, with the reason."""
    folder = Path(store_dir) / DATA / DEAD_LETTER / NEW_ITEMS
    folder.mkdir(parents=True, exist_ok=True)
    path = _folder(store_dir) / f"{item.item.item_id}.json"
    taken = path.rename(folder / f"{path.name}.taken")
    content = json.loads(taken.read_text())
    if content["available_us"] == item.available_us:
        write_json(folder / path.name, {**content, "reason": reason})
        taken.unlink()
    elif not path.exists():  # the item was sent again in the meantime: try that one
        taken.rename(path)


def refused_items(store_dir: Path) -> dict[int, str]:
    """Items in the dead letter: item id -> why it cannot be encoded or stored."""
    folder = Path(store_dir) / DATA / DEAD_LETTER / NEW_ITEMS
    return {int(path.stem): json.loads(path.read_text())["reason"] for path in sorted(folder.glob("*.json"))}


def state(store_dir: Path) -> tuple[tuple[str, int], ...]:
    """Fingerprint of the folder; changes when an item is received or removed."""
    return tuple(sorted((path.name, path.stat().st_mtime_ns) for path in _files(store_dir)))


def items_table(items: Sequence[NewItem]) -> pa.Table:
    """The items as ITEMS rows."""
    return pa.Table.from_pylist([one.row for one in items], schema=ITEMS)


def put_online(
    store: FeatureStore, items: Sequence[NewItem], vectors: np.ndarray, embedding: Embedding
) -> None:
    """Write the profiles and the vectors of N items to the online store.

    Args:
        store: an open feature store.
        items: N of them.
        vectors: float32 (N, D), of unit norm.
        embedding: the embedding the vectors belong to.

    Raises:
        RowsRefused: a row breaks a rule that materialization enforces; none is written.
    """
    ids = np.array([one.item.item_id for one in items], np.int64)
    stamp_us = np.array([one.available_us for one in items], np.int64)
    order = np.argsort(ids)
    table = VectorTable(ids[order], vectors[order])
    rows = {  # the profile last: it marks an item as written
        embedding.item_view: source_tables.item_embedding(table, embedding, stamp_us[order]),
        PROFILE: source_tables.item_profile(items_table(items)),
    }
    online = store._get_provider().online_store  # type: ignore[attr-defined]
    assert isinstance(online, ColumnStore)
    sifted = {
        name: sift(store.get_feature_view(name), some, datetime.now(UTC)) for name, some in rows.items()
    }
    for name, one in sifted.items():
        if one.refused.num_rows:
            raise RowsRefused(
                f"{name}: expected {len(items)} valid rows, found {one.refused.num_rows} refused: {one.reasons}"
            )
    for name, one in sifted.items():
        online.write_columns(store.config, store.get_feature_view(name), one.batch)


def are_online(store: FeatureStore, items: Sequence[NewItem], embedding: Embedding) -> np.ndarray:
    """Which items are online, profile and vector, at least as new as received; bool (N)."""
    ids = np.array([one.item.item_id for one in items], np.int64)
    received_us = np.array([one.available_us for one in items], np.int64)
    profile, vector = matrix_reader(
        store,
        [
            (store.get_feature_view(PROFILE), ["first_seen_us"]),
            (store.get_feature_view(embedding.item_view), ["version"]),
        ],
    )(ids)
    # SQLite keeps event times to the second.
    profiled = profile["first_seen_us"] >= received_us
    encoded = vector.event_us // SECOND_US >= received_us // SECOND_US
    return np.asarray(profile.found & vector.found & profiled & encoded)


def fold_items(store: FeatureStore, embeddings: Sequence[Embedding]) -> int:
    """Add received items to the offline sources: their profiles, and those of their vectors that are online.

    Returns:
        number of profiles added.
    """
    data = Path(store.config.repo_path or ".") / DATA
    items = new_items(data.parent)
    if not items:
        return 0
    profiles = source_tables.item_profile(items_table(items))
    added = _append(data / f"{PROFILE}.parquet", profiles)
    ids = np.array([one.item.item_id for one in items], np.int64)
    for embedding in embeddings:
        there = read_matrix(store, embedding.item_view, ids, ["vector"])
        found = np.flatnonzero(there.found)
        if len(found):
            table = VectorTable(ids[found], np.stack([there["vector"][row] for row in found]))
            rows = source_tables.item_embedding(table, embedding, there.event_us[found])
            _append(data / f"{embedding.item_view}.parquet", rows)
    return added


def _append(path: Path, rows: pa.Table) -> int:
    """Append the rows whose (item, time) the file does not hold; returns their number."""
    there = pq.read_table(path)
    same = there.filter(pc.is_in(there.column("item_id"), value_set=rows.column("item_id")))
    known = {*zip(same.column("item_id").to_pylist(), same.column(TIMESTAMP).to_pylist(), strict=True)}
    asked = zip(rows.column("item_id").to_pylist(), rows.column(TIMESTAMP).to_pylist(), strict=True)
    fresh = rows.filter(pa.array([one not in known for one in asked]))
    if fresh.num_rows:
        fresh = fresh.select(there.column_names).cast(there.schema)
        replace_source(path, pa.concat_tables([there, fresh]))
    return int(fresh.num_rows)


def _files(store_dir: Path) -> list[Path]:
    return list(_folder(store_dir).glob("*.json"))


def _folder(store_dir: Path) -> Path:
    return Path(store_dir) / DATA / NEW_ITEMS
