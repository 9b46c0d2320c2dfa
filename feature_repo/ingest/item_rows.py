"""The rows of new items: written online when they come in, added to the offline sources when they are folded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore

from dataset.contracts import ITEMS, DataError
from feature_repo import source_tables
from feature_repo.ingest.new_items import NewItem, check_picture, new_items, set_aside
from feature_repo.sources import DATA, TIMESTAMP, replace_source
from feature_repo.vectors import VectorTable
from feature_repo.views import Embedding
from moonstore.batch import sift
from moonstore.engine import ColumnStore
from moonstore.errors import StoreError
from moonstore.matrix import matrix_reader, read_matrix

PROFILE = "item_profile"
SECOND_US = 1_000_000


class RowsRefused(StoreError):
    """A row of a new item breaks a rule that materialization enforces."""


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
    ids = np.array([one.item_id for one in items], np.int64)
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
    ids = np.array([one.item_id for one in items], np.int64)
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

    An item whose picture does not decode is moved to the dead letter.

    Returns:
        number of profiles added.
    """
    data = Path(store.config.repo_path or ".") / DATA
    items = _sound(data, new_items(data.parent))
    if not items:
        return 0
    added = _append(data / f"{PROFILE}.parquet", source_tables.item_profile(items_table(items)))
    ids = np.array([one.item_id for one in items], np.int64)
    for embedding in embeddings:
        there = read_matrix(store, embedding.item_view, ids, ["vector"])
        found = np.flatnonzero(there.found)
        if len(found):
            table = VectorTable(ids[found], np.stack([there["vector"][row] for row in found]))
            rows = source_tables.item_embedding(table, embedding, there.event_us[found])
            _append(data / f"{embedding.item_view}.parquet", rows)
    return added


def _sound(data: Path, items: Sequence[NewItem]) -> list[NewItem]:
    """The items without those that are not folded yet and have a picture that does not decode."""
    if not items:
        return []
    fresh = _unknown(
        pq.read_table(data / f"{PROFILE}.parquet"), source_tables.item_profile(items_table(items))
    )
    kept = []
    for one, is_fresh in zip(items, fresh.tolist(), strict=True):
        try:
            if is_fresh:
                check_picture(one)
            kept.append(one)
        except DataError as error:
            set_aside(data.parent, one, str(error))
    return kept


def _append(path: Path, rows: pa.Table) -> int:
    """Append the rows whose (item, time) the file does not hold; returns their number."""
    there = pq.read_table(path)
    fresh = rows.filter(pa.array(_unknown(there, rows)))
    if fresh.num_rows:
        fresh = fresh.select(there.column_names).cast(there.schema)
        replace_source(path, pa.concat_tables([there, fresh]))
    return int(fresh.num_rows)


def _unknown(there: pa.Table, rows: pa.Table) -> np.ndarray:
    """Which rows are of an (item, time) that ``there`` does not hold, bool."""
    same = there.filter(pc.is_in(there.column("item_id"), value_set=rows.column("item_id")))
    known = {*zip(same.column("item_id").to_pylist(), same.column(TIMESTAMP).to_pylist(), strict=True)}
    asked = zip(rows.column("item_id").to_pylist(), rows.column(TIMESTAMP).to_pylist(), strict=True)
    return np.array([one not in known for one in asked], bool)
