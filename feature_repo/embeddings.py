"""The embeddings of a store: versions side by side, one of them active, which the feature services read.

Every step leaves the store consistent: it writes the files first, then the record that names them, then Feast's
registry, which follows the record. A step that was killed is completed by repeating it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset.contracts import TIME
from feature_repo import source_tables
from feature_repo.sources import DATA, TIMESTAMP, read_source, replace_source
from feature_repo.store import apply_definitions
from feature_repo.vectors import Vectors, VectorTable
from feature_repo.views import ITEM_EMBEDDING, QUERY_EMBEDDING, Embedding, EmbeddingRecord
from moonstore.disk import writing
from moonstore.errors import StoreError
from run.artifacts import Artifact


def publish_embedding(store_dir: Path, artifact: Artifact) -> Embedding:
    """Add the vectors of an artifact to the store as a new version; idempotent.

    Each vector is stamped with the artifact's ``as_of`` (the end of its encoder's training data), or with the time
    its item was first seen if that is later. The first version becomes active at once. Materialize its views to
    bring them online.

    Raises:
        ArtifactError: damaged vectors.
        StoreError: vectors of items that are not in the store.
    """
    record = EmbeddingRecord.load(store_dir)
    embedding = record.find(artifact.id)
    if embedding is None:
        vectors = Vectors.open(artifact)
        embedding = Embedding(record.last + 1, vectors.width, str(artifact.config["encoder_id"]), artifact.id)
        _write(store_dir, embedding, vectors, artifact)
        version = embedding.version
        EmbeddingRecord((*record.embeddings, embedding), record.active or version, version).save(store_dir)
    apply_definitions(store_dir)
    return embedding


def as_stored(vectors: Vectors, store_dir: Path) -> Vectors:
    """The vectors of an embedding with the times at which they became available, and the version of its views.

    So a gather by id and time is the point-in-time join of the view, without a copy of any vector.

    Raises:
        StoreError: the store does not hold the embedding, or lacks the time of a vector.
    """
    embedding = EmbeddingRecord.load(store_dir).find(vectors.id)
    if embedding is None:
        raise StoreError(f"{store_dir}: expected the vectors of {vectors.id}, found none. Run 'moon embed'.")
    items = _available(store_dir, embedding.item_view, "item_id", vectors.ids)
    queries = _available(store_dir, embedding.query_view, "query_id", vectors.queries.ids)
    return replace(
        vectors,
        available_us=items,
        queries=replace(vectors.queries, available_us=queries),
        version=embedding.version,
    )


def _available(store_dir: Path, view: str, key: str, ids: np.ndarray) -> np.ndarray:
    table = read_source(store_dir / DATA / f"{view}.parquet", [key, TIMESTAMP])
    order = [(key, "ascending"), (TIMESTAMP, "ascending")]  # the first row of an id says since when
    table = table.sort_by(order)
    known = table.column(key).to_numpy()
    place = np.searchsorted(known, ids)
    missing = np.append(known, -1)[place] != ids
    if missing.any():
        raise StoreError(
            f"{view}: {int(missing.sum())} of {len(ids)} vectors have no row ({key} {ids[missing][:3].tolist()}). "
            f"Run 'moon embed'."
        )
    stamp_us: np.ndarray = table.column(TIMESTAMP).cast(TIME).cast(pa.int64()).to_numpy()[place]
    return stamp_us


def activate_embedding(store_dir: Path, artifact_id: str) -> Embedding:
    """Make the feature services read the version that came from this artifact.

    Raises:
        StoreError: the store does not hold it.
    """
    record = EmbeddingRecord.load(store_dir)
    embedding = record.find(artifact_id)
    if embedding is None:
        known = [one.artifact_id for one in record.embeddings]
        raise StoreError(f"{store_dir}: expected one of the embeddings {known}, found {artifact_id}")
    replace(record, active=embedding.version).save(store_dir)
    apply_definitions(store_dir)
    return embedding


def drop_embeddings(store_dir: Path, keep: Collection[str]) -> list[Embedding]:
    """Remove every version except the active one and those of the artifacts ``keep``: registry, online rows, files.

    Returns:
        the removed embeddings.
    """
    record = EmbeddingRecord.load(store_dir)
    kept = tuple(one for one in record.embeddings if one.artifact_id in keep or one.version == record.active)
    replace(record, embeddings=kept).save(store_dir)
    apply_definitions(store_dir)
    views = {view for one in kept for view in (one.item_view, one.query_view)}
    for name in (ITEM_EMBEDDING, QUERY_EMBEDDING):
        for path in (store_dir / DATA).rglob(f"{name}_v*"):  # the source, dead letters, reports, checks
            if path.name.partition(".")[0] not in views:
                with writing(path):
                    path.unlink()
    return [one for one in record.embeddings if one not in kept]


def _write(store_dir: Path, embedding: Embedding, vectors: Vectors, artifact: Artifact) -> None:
    as_of = datetime.fromisoformat(str(artifact.config["as_of"]))
    as_of_us = pa.scalar(as_of, TIME).cast(pa.int64()).as_py()
    profile = read_source(store_dir / DATA / "item_profile.parquet", ["item_id", "first_seen_us"])
    profile = profile.sort_by("item_id")
    known = VectorTable(profile.column("item_id").to_numpy(), np.zeros((profile.num_rows, 0), np.float32))
    row = known.rows(vectors.ids)
    if (row < 0).any():
        strangers = vectors.ids[row < 0]
        raise StoreError(
            f"{artifact.path}: {len(strangers)} of {len(row)} vectors are of items the store does not know "
            f"(item_id {strangers[:3].tolist()}). Run 'moon embed' on this run's dataset."
        )
    stamp_us = np.maximum(profile.column("first_seen_us").to_numpy()[row], as_of_us)
    query_stamp_us = np.full(len(vectors.queries.ids), as_of_us)
    for view, table in (
        (embedding.item_view, source_tables.item_embedding(vectors, embedding, stamp_us)),
        (embedding.query_view, source_tables.query_embedding(vectors.queries, embedding, query_stamp_us)),
    ):
        replace_source(store_dir / DATA / f"{view}.parquet", table)
