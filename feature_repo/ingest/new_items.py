"""Items that came in since the catalogue was imported: kept whole, written online, and folded into the sources.

An item is one JSON file in ``data/new_items``, written whole or not at all; one that comes again replaces it. Whoever
serves the store looks there, encodes what is new and writes its rows online (``put_online``), so that any number of
services know of it and a service that starts later does too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dataset.contracts import ITEMS, content_hash
from dataset.text import clean
from feature_repo import source_tables
from feature_repo.ingest.arrivals import Id
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
MOST_TEXT, MOST_PARTS = 10_000, 100
SECOND_US = 1_000_000
REFUSED_ITEMS = "new_items"  # folder within DEAD_LETTER
Word = Annotated[str, AfterValidator(clean), Field(min_length=1, max_length=1000)]
Text = Annotated[str, AfterValidator(clean), Field(max_length=MOST_TEXT)]


class RowsRefused(StoreError):
    """A row of a new item is one that no load would write."""


class Item(BaseModel):
    """Something for sale, as it is told of.

    Attributes:
        item_id: a new one, or one that is to be replaced.
        title, description, category (broadest part first), attributes, price: as in ``dataset.contracts.ITEMS``.
        spu: product code; None: the item's own id.
        image_base64: an encoded picture, see ``dataset.pictures``, as base64.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: Id
    title: Text | None = None
    description: Text | None = None
    category: Annotated[list[Word], Field(max_length=MOST_PARTS)] = []
    attributes: Annotated[dict[Word, Word], Field(max_length=MOST_PARTS)] = {}
    price: Annotated[float, Field(ge=0, le=float(np.finfo(np.float32).max))] | None = (
        None  # stored as float32
    )
    spu: Id | None = None
    image_base64: str | None = None

    @model_validator(mode="after")
    def _there_is_something_to_encode(self) -> Item:
        if self.image_base64 is None and not (self.title or "").strip():
            raise ValueError("expected a title, a picture or both")
        return self


@dataclass(frozen=True)
class NewItem:
    """An item and when it came.

    Attributes:
        item: as it was told of.
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
    """Keep an item, as of ``now``, for whoever serves the store."""
    folder = _folder(store_dir)
    folder.mkdir(exist_ok=True)
    content = {"item": item.model_dump(exclude_none=True), "available_us": (now - EPOCH) // US}
    write_json(folder / f"{item.item_id}.json", content)


def new_items(store_dir: Path) -> list[NewItem]:
    """All that came in, by id."""
    found = [json.loads(path.read_text()) for path in _files(store_dir)]
    items = [NewItem(Item(**one["item"]), one["available_us"]) for one in found]
    return sorted(items, key=lambda one: one.item.item_id)


def set_aside(store_dir: Path, item: NewItem, reason: str) -> None:
    """Move an item that cannot be encoded or stored to the dead letter, with the reason; the others go on."""
    folder = Path(store_dir) / DATA / DEAD_LETTER / REFUSED_ITEMS
    folder.mkdir(parents=True, exist_ok=True)
    path = _folder(store_dir) / f"{item.item.item_id}.json"
    taken = path.rename(folder / f"{path.name}.taken")
    content = json.loads(taken.read_text())
    if content["available_us"] == item.available_us:
        write_json(folder / path.name, {**content, "reason": reason})
        taken.unlink()
    elif not path.exists():  # it was posted again in the meantime, and is tried again
        taken.rename(path)


def refused_items(store_dir: Path) -> dict[int, str]:
    """Items in the dead letter: item id -> why it cannot be encoded or stored."""
    folder = Path(store_dir) / DATA / DEAD_LETTER / REFUSED_ITEMS
    return {int(path.stem): json.loads(path.read_text())["reason"] for path in sorted(folder.glob("*.json"))}


def state(store_dir: Path) -> tuple[tuple[str, int], ...]:
    """Changes when an item comes in."""
    return tuple(sorted((path.name, path.stat().st_mtime_ns) for path in _files(store_dir)))


def items_table(items: Sequence[NewItem]) -> pa.Table:
    """ITEMS rows."""
    return pa.Table.from_pylist([one.row for one in items], schema=ITEMS)


def put_online(
    store: FeatureStore, items: Sequence[NewItem], vectors: np.ndarray, embedding: Embedding
) -> None:
    """Write the profile and the vector of some items to the online store.

    Args:
        store: an open feature store.
        items: some.
        vectors: float32 (N, D), theirs, of unit norm.
        embedding: whose view the vectors belong to.

    Raises:
        RowsRefused: a row is one that no load would write; none is written.
    """
    ids = np.array([one.item.item_id for one in items], np.int64)
    stamp_us = np.array([one.available_us for one in items], np.int64)
    order = np.argsort(ids)
    table = VectorTable(ids[order], vectors[order])
    rows = {  # the profile last: with it an item counts as written
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
                f"{name}: {one.refused.num_rows} of {len(items)} new items are refused: {one.reasons}"
            )
    for name, one in sifted.items():
        online.write_columns(store.config, store.get_feature_view(name), one.batch)


def are_online(store: FeatureStore, items: Sequence[NewItem], embedding: Embedding) -> np.ndarray:
    """bool (N): of which items the online store has the profile and the vector as they came last, or later ones."""
    ids = np.array([one.item.item_id for one in items], np.int64)
    came_us = np.array([one.available_us for one in items], np.int64)
    profile, vector = matrix_reader(
        store,
        [
            (store.get_feature_view(PROFILE), ["first_seen_us"]),
            (store.get_feature_view(embedding.item_view), ["version"]),
        ],
    )(ids)
    # SQLite keeps event times to the second.
    told, encoded = profile["first_seen_us"] >= came_us, vector.event_us // SECOND_US >= came_us // SECOND_US
    return np.asarray(profile.found & vector.found & told & encoded)


def fold_items(store: FeatureStore, embeddings: Sequence[Embedding]) -> int:
    """Make what came in part of the offline sources: profiles, and the vectors that are online.

    Returns:
        how many items' profiles that was.
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
    """Add the rows whose (item, time) the file does not hold; how many that was."""
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
