"""What answers, brought up to date: the items' features after a load, and the items that came in since.

A generation is opened once; from it, the last load and the items that came in, the next recommender is made beside
the one that answers, and shares models with it. Nothing is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from feast import FeatureStore

from encoder.encode import item_content
from feature_repo.features import item_columns
from feature_repo.ingest.new_items import NewItem, are_online, items_table, put_online
from feature_repo.item_matrix import ItemMatrix, read_now
from feature_repo.online import UNREACHABLE, StoreUnavailable
from feature_repo.vectors import Vectors
from feature_repo.views import Embedding
from moonstore.errors import StoreError
from moonstore.freshness import EPOCH, US
from retrieval.index import category_path
from serving.recommend import Recommender


def refreshed(
    opened: Recommender, store: FeatureStore, matrix: ItemMatrix, items: Sequence[NewItem]
) -> Recommender:
    """``opened`` with what the store holds now.

    Args:
        opened: as it was opened, without new items.
        store: the run's store.
        matrix: the snapshot of the last load, of the embedding that ``opened`` answers with.
        items: all that came in since the catalogue was imported.

    Raises:
        StoreError: vectors of the embedding are not online, or the store refuses an item.
        StoreUnavailable: the online store does not answer.
    """
    known = opened.retriever.vectors
    missing = known.ids[matrix.vectors.rows(known.ids) < 0]
    if len(missing):
        raise StoreError(
            f"{matrix.embedding.item_view}: expected {len(known.ids)} vectors online, {len(missing)} are missing "
            f"(item_id {missing[:3].tolist()}). Run 'moon materialize'."
        )
    if items:
        matrix = _online(opened, store, matrix.embedding, items).over(matrix)
    vectors = Vectors(matrix.vectors.ids, matrix.vectors.matrix, known.queries, known.id)
    moon = copy.copy(opened)
    moon.items, moon.reader = matrix, opened.reader.with_items(matrix)
    moon.retriever, moon.ranker = opened.retriever.with_vectors(vectors), opened.ranker.with_vectors(vectors)
    if items:
        _answer_with(moon, matrix, items)
    return moon


def _online(
    opened: Recommender, store: FeatureStore, embedding: Embedding, items: Sequence[NewItem]
) -> ItemMatrix:
    """What is stored about the items, once those that nobody has encoded yet are."""
    try:
        there = are_online(store, items, embedding)
        fresh = [one for one, known in zip(items, there.tolist(), strict=True) if not known]
        if fresh:
            contents = [item_content(one.row, one.image) for one in fresh]
            put_online(store, fresh, opened.encoder.encode(contents), embedding)
    except UNREACHABLE as error:
        raise StoreUnavailable(f"the online store does not answer: {error}") from error
    return read_now(store, embedding, np.array([one.item.item_id for one in items], np.int64))


def _answer_with(moon: Recommender, matrix: ItemMatrix, items: Sequence[NewItem]) -> None:
    """Let the sources and the catalogue know of the items."""
    table, now = items_table(items), moon.now()
    ids = table["item_id"].to_numpy()
    time_us = np.full(len(ids), (now - EPOCH) // US)
    columns = item_columns(matrix.read(ids, now).columns, time_us)
    candidates = pa.table({"item_id": table["item_id"].combine_chunks(), **columns})
    moon.retriever = moon.retriever.with_items(
        candidates, [category_path(one.item.category) for one in items]
    )
    pictures = {one.row["image_id"]: one.image for one in items if one.image is not None}
    moon.catalogue = moon.catalogue.with_items(table, pictures)
