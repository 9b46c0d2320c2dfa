"""Bulk embedding: every item and query of a dataset to one vector each, written as an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from dataset.contracts import DataError
from dataset.tables import Dataset
from encoder.content import Content, item_content, query_content
from encoder.encode import Encoder
from moon.artifacts import Artifact, open_artifact, write_artifact
from moon.progress import track

CHUNK = (
    1024  # contents sorted by length together: enough to leave little padding, few enough to show progress
)


def embed(encoder: Artifact, dataset: Dataset, as_of: datetime, out: Path) -> Artifact:
    """Embed all items and queries of a dataset.

    Args:
        encoder: artifact of kind ``encoder``.
        dataset: whose items and queries to embed. One without picture and words gets no vector: it is counted
            in the manifest (``items_without_content``) and unknown to ``feature_repo.vectors``.
        as_of: UTC time from which the vectors may be used: after everything the encoder learned from.
        out: directory of the artifact, kind ``embedding``: ``items.safetensors`` {item_id int64 (M)
            ascending, vector float32 (M, D) unit norm}, ``queries.safetensors`` {query_id, vector} likewise.

    Raises:
        DataError: ``as_of`` is naive, or a vector is not finite.
    """
    if as_of.tzinfo is None:
        raise DataError(f"as_of: expected a time with a zone, found {as_of.isoformat()}. Use UTC.")
    model = Encoder.open(encoder)
    images = dict(
        zip(dataset.images["image_id"].to_pylist(), dataset.images["bytes"].to_pylist(), strict=True)
    )
    items, no_item = _vectors(model, dataset.items, "item_id", item_content, images)
    queries, no_query = _vectors(model, dataset.queries, "query_id", query_content, images)
    config = {
        "encoder_id": encoder.id,
        "width": model.width,
        "widths": list(model.widths),
        "as_of": as_of.astimezone(UTC).isoformat(),
        "items_without_content": no_item,
        "queries_without_content": no_query,
    }
    with write_artifact(
        out, "embedding", config, {"dataset": dataset.artifact, "encoder": encoder}
    ) as folder:
        save_file(items, folder / "items.safetensors")
        save_file(queries, folder / "queries.safetensors")
    return open_artifact(out, "embedding", "moon embed")


def _vectors(
    model: Encoder,
    table: pa.Table,
    key: str,
    content: Callable[[Mapping[str, Any], bytes | None], Content],
    images: Mapping[str, bytes],
) -> tuple[dict[str, np.ndarray], int]:
    """Ids ascending with their vectors, and how many rows had no content."""
    table = table.sort_by(key)
    ids: list[int] = []
    parts = [np.empty((0, model.width), dtype=np.float32)]
    chunks = track(
        range(0, len(table), CHUNK), f"embed {key.removesuffix('_id')} chunks of {CHUNK}", unit="chunks"
    )
    for start in chunks:
        rows = table.slice(start, CHUNK).to_pylist()
        contents = [content(row, images.get(row["image_id"])) for row in rows]
        kept = [place for place, one in enumerate(contents) if not one.is_empty]
        vectors = model.encode([contents[place] for place in kept])
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            first = [rows[kept[place]][key] for place in bad[:3].tolist()]
            raise DataError(
                f"{len(bad)} of {len(vectors)} vectors are not finite ({key} {first}). "
                "Run 'moon encoder train' again."
            )
        ids.extend(rows[place][key] for place in kept)
        parts.append(vectors)
    return {key: np.array(ids, dtype=np.int64), "vector": np.concatenate(parts)}, len(table) - len(ids)
