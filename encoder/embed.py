"""Bulk embedding: a vector for every item and query of a dataset, written as an artifact.

The sorted tables are cut into chunks. Each chunk is encoded by itself, so that its vectors are the same, bit for bit,
in a resumed run, in a shard and in a single run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataset.contracts import DataError
from dataset.tables import Dataset
from encoder.chunks import HASH_BYTES, TABLES, Embedded, Pictures, content_digest
from encoder.content import Content, item_content, query_content
from encoder.encode import Encoder
from encoder.pictures.cache import kept
from run.artifacts import Artifact, ArtifactError, open_artifact, require_parent, write_artifact
from run.progress import track
from run.resume import Checkpoints
from run.shards import WHOLE, Shard, check_complete, check_shard

CHUNK = 1024  # contents encoded together: large enough to batch by length, small enough to repeat when interrupted
RUN = ("encoder_id", "width", "widths", "as_of")  # configuration that is the same in all shards
CONTENT: dict[str, Callable[[Mapping[str, Any], bytes | None], Content]] = {
    "items": item_content,
    "queries": query_content,
}


def embed(
    encoder: Artifact,
    dataset: Dataset,
    as_of: datetime,
    out: Path,
    shard: Shard = WHOLE,
    previous: Artifact | None = None,
) -> Artifact:
    """Embed all items and queries of a dataset, or one shard of them.

    An interrupted run resumes from ``<out>.partial``; the result is the same, bit for bit.

    Args:
        encoder: artifact of kind ``encoder``.
        dataset: the dataset. Items and queries without picture and text get no vector: they are counted in the
            manifest (``items_without_content``) and unknown to ``feature_repo.vectors``.
        as_of: UTC time from which the vectors may be used: not before the end of the encoder's training data.
        out: directory of the artifact, kind ``embedding``: ``items.safetensors`` {item_id int64 (M)
            ascending, vector float32 (M, D) unit norm}, ``queries.safetensors`` {query_id, vector} likewise,
            and the hash of each one's content beside them in ``*_content.safetensors``.
        shard: (number from 1, number of shards): the part of the work to do; the artifact is then of kind
            ``embedding-shard``, for ``merge_shards``.
        previous: an embedding by the same encoder: rows with the same content keep their vector and are not encoded
            again (``items_unchanged`` in the manifest).

    Raises:
        DataError: ``as_of`` is naive or before the end of the encoder's training data, or a vector is not finite.
        ShardError: there is no such shard.
        ArtifactError: ``previous`` was made by another encoder.
    """
    if as_of.tzinfo is None:
        raise DataError(f"as_of: expected a time with a zone, found {as_of.isoformat()}. Use UTC.")
    learned = datetime.fromisoformat(encoder.config["fit_until"])
    if learned > as_of:
        raise DataError(
            f"as_of: the encoder learned from events until {learned.isoformat()}, expected that or later, found "
            f"{as_of.isoformat()}. Run 'moon encoder train' on this data."
        )
    check_shard(shard)
    model = Encoder.open(encoder)
    parents = {"dataset": dataset.artifact, "encoder": encoder}
    if previous is not None:
        require_parent(previous, "encoder", encoder)
        parents["previous"] = previous
    run = {
        "encoder_id": encoder.id,
        "width": model.width,
        "widths": list(model.widths),
        "as_of": as_of.astimezone(UTC).isoformat(),
    }
    checkpoints = Checkpoints(out, {**run, "shard": shard, "chunk": CHUNK}, parents)
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    before = kept(dataset, model.model.px)
    pictures = Pictures(
        dataset.artifact.file("images.parquet"), checkpoints.folder / "pictures.arrow", before
    )
    done = {
        name: _embed_table(model, name, table, pictures, shard, previous, checkpoints)
        for name, table in (("items", dataset.items), ("queries", dataset.queries))
    }
    config = {**run, **({} if shard == WHOLE else {"shard": list(shard)})}
    artifact = _write(out, "embedding" if shard == WHOLE else "embedding-shard", config, parents, done)
    checkpoints.remove()
    return artifact


def merge_shards(shards: Sequence[Artifact], parents: Mapping[str, Artifact], out: Path) -> Artifact:
    """Join the shards of an embedding; the result equals that of a single run of ``embed``, bit for bit.

    Args:
        shards: all shards, in any order, artifacts of kind ``embedding-shard``.
        parents: dataset, encoder and, if one was used, previous embedding of all of them.
        out: directory of the artifact.

    Raises:
        ShardError: a shard is missing or duplicated.
        DataError: a shard belongs to another embedding.
        ArtifactError: a shard was made from other parents.
    """
    places: list[Shard] = [tuple(shard.config["shard"]) for shard in shards]
    check_complete(places, "moon embed --shard")
    for shard in shards:
        for role, parent in parents.items():
            require_parent(shard, role, parent)
        if shard.parents.keys() != parents.keys():
            raise ArtifactError(
                f"{shard.path}: expected parents {sorted(parents)}, found {sorted(shard.parents)}. "
                "Embed all shards alike."
            )
    runs = [{key: shard.config[key] for key in RUN} for shard in shards]
    if any(run != runs[0] for run in runs):
        raise DataError(
            f"expected shards of one embedding, found {len(shards)} that differ in as_of or width."
        )
    ordered = [shard for _, shard in sorted(zip(places, shards, strict=True), key=lambda pair: pair[0])]
    done = {
        name: Embedded.join(
            [Embedded.open(shard.path, shard.config, name) for shard in ordered], runs[0]["width"]
        )
        for name in TABLES
    }
    return _write(out, "embedding", runs[0], parents, done)


def _write(
    out: Path,
    kind: str,
    config: dict[str, Any],
    parents: Mapping[str, Artifact],
    done: Mapping[str, Embedded],
) -> Artifact:
    for name, table in done.items():
        config |= table.counts(name)
    with write_artifact(out, kind, config, parents) as folder:
        for name, table in done.items():
            table.save(folder, name)
    return open_artifact(out, kind, "moon embed")


def _embed_table(
    model: Encoder,
    name: str,
    table: pa.Table,
    pictures: Pictures,
    shard: Shard,
    previous: Artifact | None,
    checkpoints: Checkpoints,
) -> Embedded:
    """The shard's chunks of a table, those already finished read back."""
    table = table.sort_by(TABLES[name])
    chunks = -(-len(table) // CHUNK)
    number, count = shard
    mine = range(chunks * (number - 1) // count, chunks * number // count)
    known: dict[bytes, np.ndarray] = {}
    if previous is not None:
        earlier = Embedded.open(previous.path, previous.config, name)
        known = {key.tobytes(): vector for key, vector in zip(earlier.hashes, earlier.vectors, strict=True)}
    parts = []
    for chunk in track(mine, f"embed {name}, chunks of {CHUNK}", unit="chunks"):
        saved = checkpoints.find(f"{name}-{chunk:06d}")
        if saved is None:
            rows = table.slice(chunk * CHUNK, CHUNK).to_pylist()
            part = _embed_rows(model, name, rows, pictures, known)
            with checkpoints.save(f"{name}-{chunk:06d}", part.counts(name)) as folder:
                part.save(folder, name)
        else:
            part = Embedded.open(saved.folder, saved.state, name)
        parts.append(part)
    return Embedded.join(parts, model.width)


def _embed_rows(
    model: Encoder,
    name: str,
    rows: Sequence[dict[str, Any]],
    pictures: Pictures,
    known: Mapping[bytes, np.ndarray],
) -> Embedded:
    """Vectors of the rows that have content; each distinct content is encoded once, unless it is in ``known``."""
    key = TABLES[name]
    images, pixels = pictures.read([row["image_id"] for row in rows])
    contents = [CONTENT[name](row, image) for row, image in zip(rows, images, strict=True)]
    full = [place for place, content in enumerate(contents) if not content.is_empty]
    digests = [content_digest(contents[place]) for place in full]
    new = {digest: place for digest, place in zip(digests, full, strict=True) if digest not in known}
    unseen = [contents[place] for place in new.values()], [pixels[place] for place in new.values()]
    encoded = dict(zip(new, model.encode(*unseen), strict=True))
    vectors = np.empty((len(full), model.width), dtype=np.float32)
    for row, digest in enumerate(digests):
        vectors[row] = encoded[digest] if digest in encoded else known[digest]
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        first = [rows[full[place]][key] for place in bad[:3].tolist()]
        raise DataError(
            f"{len(bad)} of {len(vectors)} vectors are not finite ({key} {first}). Run 'moon encoder train' again."
        )
    return Embedded(
        ids=np.array([rows[place][key] for place in full], dtype=np.int64),
        vectors=vectors,
        hashes=np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, HASH_BYTES),
        empty=len(rows) - len(full),
        unchanged=sum(digest not in encoded for digest in digests),
    )
