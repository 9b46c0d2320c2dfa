"""Bring a recommender up to date with the store: the items' features after a load, and new items.

A generation is opened once; from it, the last load and the new items, the next recommender is built beside
the current one, and shares models with it. Nothing is trained.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from feast import FeatureStore

from dataset.contracts import DataError
from encoder.encode import Content, item_content
from feature_repo import dead_letters
from feature_repo.ingest.item_rows import RowsRefused, are_online, items_table, put_online
from feature_repo.ingest.new_items import NewItem, set_aside
from feature_repo.item_matrix import ItemMatrix, read_now
from feature_repo.online import UNREACHABLE, StoreUnavailable
from feature_repo.vectors import Vectors
from feature_repo.views import Embedding
from moonstore.errors import StoreError
from serving.recommend import Recommender

log = logging.getLogger("moon.serving")
NOBODY = -1  # a user whom no store knows


def refreshed(
    opened: Recommender, store: FeatureStore, matrix: ItemMatrix, items: Sequence[NewItem]
) -> Recommender:
    """``opened`` with the store's present features and new items.

    Args:
        opened: as it was opened, without new items.
        store: the run's store.
        matrix: the snapshot of the last load, of the embedding that ``opened`` uses.
        items: all new items since the catalogue was imported.

    An item whose vector the last load refused is in no answer.

    Raises:
        StoreError: other vectors of the embedding are not online.
        StoreUnavailable: the online store does not answer.
    """
    known = opened.retriever.vectors
    missing = known.ids[matrix.vectors.rows(known.ids) < 0]
    refused = dead_letters.refused_keys(
        Path(store.config.repo_path or "."), matrix.embedding.item_view, "item_id"
    )
    if not np.isin(missing, refused).all():
        raise StoreError(
            f"{matrix.embedding.item_view}: expected {len(known.ids)} vectors online, {len(missing)} are missing "
            f"(item_id {opened.ids.names('item_id', missing[:3])}). Run 'moon materialize'."
        )
    items = _stored(opened, store, matrix.embedding, items)
    if items:
        ids = np.array([one.item_id for one in items], np.int64)
        matrix = read_now(store, matrix.embedding, ids).over(matrix)
    vectors = Vectors(matrix.vectors.ids, matrix.vectors.matrix, known.queries, known.id)
    moon = copy.copy(opened)
    moon.items, moon.reader = matrix, opened.reader.with_items(matrix)
    moon.retriever = opened.retriever.with_vectors(vectors)
    moon.ranker = None if opened.ranker is None else opened.ranker.with_vectors(vectors)
    if items:
        _answer_with(moon, items)
    if len(missing):
        moon.retriever, moon.finder = moon.retriever.without(missing), moon.finder.without(missing)
    return moon


def _stored(
    opened: Recommender, store: FeatureStore, embedding: Embedding, items: Sequence[NewItem]
) -> list[NewItem]:
    """The items whose profile and vector are in the online store, after encoding and writing those that are not."""
    try:
        there = are_online(store, items, embedding) if items else np.zeros(0, bool)
        known = [one for one, found in zip(items, there.tolist(), strict=True) if found]
        fresh = [one for one, found in zip(items, there.tolist(), strict=True) if not found]
        written = _written(opened, store, embedding, fresh)
    except UNREACHABLE as error:
        raise StoreUnavailable(f"the online store does not answer: {error}") from error
    return sorted([*known, *written], key=lambda one: one.item_id)


def _written(
    opened: Recommender, store: FeatureStore, embedding: Embedding, items: Sequence[NewItem]
) -> list[NewItem]:
    """Encode items and write them online; one that fails is set aside without affecting the others.

    A batch that fails is halved until the item at fault is alone.
    """
    if not items:
        return []
    try:
        put_online(store, items, _encoded(opened, items), embedding)
        return list(items)
    except (DataError, RowsRefused) as error:
        if len(items) == 1:
            log.warning("item %s is set aside: %s", items[0].item.item_id, error)
            set_aside(Path(str(store.config.repo_path)), items[0], str(error))
            return []
    half = len(items) // 2
    return [
        *_written(opened, store, embedding, items[:half]),
        *_written(opened, store, embedding, items[half:]),
    ]


def _encoded(opened: Recommender, items: Sequence[NewItem]) -> np.ndarray:
    """Vectors of the items, float32 (N, D).

    Raises:
        DataError: one of them cannot be encoded.
    """
    try:
        return opened.encoder.encode([item_content(one.row, one.image) for one in items])
    except (OSError, MemoryError):  # the machine's fault, not an item's
        raise
    except Exception as error:  # any failure of the encoder on a picture or a text
        raise DataError(f"{len(items)} items cannot be encoded: {type(error).__name__}: {error}") from error


def _answer_with(moon: Recommender, items: Sequence[NewItem]) -> None:
    """Add the items to the sources, the search and the catalogue."""
    table = items_table(items)
    nobody = moon.reader.read_user(NOBODY, moon.now())
    candidates = moon.reader.with_candidates(nobody, table["item_id"].to_numpy()).candidates
    pictures = {one.row["image_id"]: one.image for one in items if one.image is not None}
    moon.retriever = moon.retriever.with_items(
        candidates, table, lambda image_id: None if image_id is None else pictures.get(image_id)
    )
    alone = _picture_vectors(moon, table["image_id"].to_pylist(), pictures)
    moon.finder = moon.finder.with_items(table, alone, moon.retriever.index)
    moon.catalogue = moon.catalogue.with_items(table, pictures)


def _picture_vectors(
    moon: Recommender, image_ids: Sequence[str | None], pictures: Mapping[str, bytes]
) -> np.ndarray:
    """The vector of each picture alone, float32 (n, D), zeros where there is none."""
    known = moon.finder.received
    fresh = [one for one in pictures if one not in known]
    vectors = moon.encoder.encode([Content(image=pictures[one]) for one in fresh]) if fresh else ()
    known.update(zip(fresh, vectors, strict=True))
    nothing = np.zeros(moon.retriever.index.width, np.float32)
    return np.stack([known.get(one or "", nothing) for one in image_ids])
