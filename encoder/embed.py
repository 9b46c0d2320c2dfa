"""Bulk embedding: a vector for every item and query of a dataset, written as an artifact.

The sorted tables are cut into chunks. Each chunk is encoded by itself, so that its vectors are the same, bit for bit,
in a resumed run, in a shard and in a single run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from dataset.contracts import DataError
from dataset.extra import given_vectors
from dataset.tables import Dataset
from encoder.chunks import HASH_BYTES, TABLES, Embedded, Pictures, content_digest
from encoder.content import Content, item_content, query_content
from encoder.encode import Encoder
from encoder.pictures.cache import kept
from moonstore.disk import make_folder
from run.artifacts import Artifact, ArtifactError, open_artifact, require_parent, write_artifact
from run.progress import track
from run.resume import Checkpoints
from run.shards import WHOLE, Shard, check_complete, check_shard

CHUNK = 1024  # contents encoded together: large enough to batch by length, small enough to repeat when interrupted
Given: TypeAlias = "tuple[np.ndarray, np.ndarray]"  # item ids and their vectors, as the source has them
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

    Items of a source that gives their vectors (``dataset.extra.given_vectors``) have those, and no others.
    An interrupted run resumes from ``<out>.partial``; the result is the same, bit for bit.

    Args:
        encoder: artifact of kind ``encoder``.
        dataset: the dataset. Items and queries without picture and text get no vector: they are counted in the
            manifest (``items_without_content``) and unknown to ``feature_repo.vectors``; so are those that cannot
            be encoded, which are listed there with their reasons (``items_refused``).
        as_of: UTC time from which the vectors may be used: not before the end of the encoder's training data.
        out: directory of the artifact, kind ``embedding``: ``items.safetensors`` {item_id int64 (M)
            ascending, vector float32 (M, D) unit norm}, ``queries.safetensors`` {query_id, vector} likewise,
            and the hash of each one's content beside them in ``*_content.safetensors``.
        shard: (number from 1, number of shards): the part of the work to do; the artifact is then of kind
            ``embedding-shard``, for ``merge_shards``.
        previous: an embedding by the same encoder: rows with the same content keep their vector and are not encoded
            again (``items_unchanged`` in the manifest).

    Raises:
        DataError: ``as_of`` is naive or before the end of the encoder's training data, nothing can be encoded, or
            the source's vectors are of another width than the encoder's.
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
    model = Encoder.open(encoder, dataset)
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
    make_folder(checkpoints.folder)
    given = _given(dataset, model)
    before = kept(dataset, model.model.px)
    pictures = Pictures(
        dataset.artifact.file("images.parquet"), checkpoints.folder / "pictures.arrow", before
    )
    done = {
        name: _embed_table(model, name, table, pictures, shard, previous, checkpoints, vectors)
        for name, table, vectors in (("items", dataset.items, given), ("queries", dataset.queries, None))
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
    given: Given | None,
) -> Embedded:
    """The shard's chunks of a table, those already finished read back; ``given`` stands in for the model."""
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
            some = table.slice(chunk * CHUNK, CHUNK)
            if given is not None:
                part = _taken(given, some.column(TABLES[name]).to_numpy(), known)
            else:
                part = _embed_rows(model, name, some.to_pylist(), pictures, known)
            with checkpoints.save(f"{name}-{chunk:06d}", part.counts(name)) as folder:
                part.save(folder, name)
        else:
            part = Embedded.open(saved.folder, saved.state, name)
        parts.append(part)
    return Embedded.join(parts, model.width)


def _given(dataset: Dataset, model: Encoder) -> Given | None:
    """The source's vectors, if they stand in for the encoder's."""
    given = given_vectors(dataset.artifact)
    if given is not None and given[1].shape[1] != model.width:
        raise DataError(
            f"expected an encoder of the width of the vectors that the source gives, {given[1].shape[1]}, found "
            f"{model.width}. Run 'moon encoder train' on this data."
        )
    return given


def _taken(given: Given, item_id: np.ndarray, known: Mapping[bytes, np.ndarray]) -> Embedded:
    """The given vectors of these items, int64 ascending; those of no vector count as without content."""
    ids, first, _ = np.intersect1d(given[0], item_id, assume_unique=True, return_indices=True)
    vectors = given[1][first]
    digests = [hashlib.sha256(vector.tobytes()).digest() for vector in vectors]
    return Embedded(
        ids=ids,
        vectors=vectors,
        hashes=np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, HASH_BYTES),
        empty=len(item_id) - len(ids),
        unchanged=sum(digest in known for digest in digests),
    )


def _embed_rows(
    model: Encoder,
    name: str,
    rows: Sequence[dict[str, Any]],
    pictures: Pictures,
    known: Mapping[bytes, np.ndarray],
) -> Embedded:
    """Vectors of the rows that have content; each distinct content is encoded once, unless it is in ``known``.

    Raises:
        DataError: no content of the rows can be encoded, so no row is at fault.
    """
    key = TABLES[name]
    images, pixels = pictures.read([row["image_id"] for row in rows])
    contents = [CONTENT[name](row, image) for row, image in zip(rows, images, strict=True)]
    digest_of = {place: content_digest(one) for place, one in enumerate(contents) if not one.is_empty}
    new = {digest: place for place, digest in digest_of.items() if digest not in known}
    encoded, refused = _encoded(model, list(new.items()), contents, pixels)
    bad = {rows[place][key]: refused[digest] for place, digest in digest_of.items() if digest in refused}
    if len(refused) > 1 and not encoded:
        raise DataError(
            f"none of {len(bad)} contents can be encoded ({key} {[*bad][:3]}): {next(iter(bad.values()))}. "
            f"Run 'moon encoder train' again."
        )
    full = {place: digest for place, digest in digest_of.items() if digest not in refused}
    vectors = np.empty((len(full), model.width), dtype=np.float32)
    for row, digest in enumerate(full.values()):
        vectors[row] = encoded[digest] if digest in encoded else known[digest]
    return Embedded(
        ids=np.array([rows[place][key] for place in full], dtype=np.int64),
        vectors=vectors,
        hashes=np.frombuffer(b"".join(full.values()), dtype=np.uint8).reshape(-1, HASH_BYTES),
        empty=len(rows) - len(digest_of),
        unchanged=sum(digest not in encoded for digest in full.values()),
        refused=bad,
    )


def _encoded(
    model: Encoder,
    places: Sequence[tuple[bytes, int]],
    contents: Sequence[Content],
    pixels: Sequence[np.ndarray | None],
) -> tuple[dict[bytes, np.ndarray], dict[bytes, str]]:
    """Vectors by digest, and the reasons of contents without one.

    Contents that cannot be encoded together are halved until the one at fault is alone.

    Args:
        model: the encoder.
        places: digest and place of each content to encode.
        contents, pixels: by place.
    """
    if not places:
        return {}, {}
    try:
        vectors = model.encode(
            [contents[place] for _, place in places], [pixels[place] for _, place in places]
        )
    except (OSError, MemoryError):  # the machine's fault, not a content's
        raise
    except Exception as error:  # any failure of the encoder on a picture or a text
        if len(places) == 1:
            return {}, {places[0][0]: f"{type(error).__name__}: {error}"}
        half = len(places) // 2
        first, second = (_encoded(model, part, contents, pixels) for part in (places[:half], places[half:]))
        return first[0] | second[0], first[1] | second[1]
    finite = np.isfinite(vectors).all(axis=1).tolist()
    pairs = [(digest, vector) for (digest, _), vector in zip(places, vectors, strict=True)]
    good = {digest: vector for (digest, vector), is_good in zip(pairs, finite, strict=True) if is_good}
    return good, {digest: "its vector is not finite" for digest, _ in pairs if digest not in good}
