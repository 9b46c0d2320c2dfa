"""Bulk embedding piece by piece: pictures read from disk, vectors with the hash of their content.

Shapes: n contents of a chunk, M rows of an embedding, D vector width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from encoder.content import Content
from encoder.pictures.cache import Decoded
from run.artifacts import ArtifactError

HASH_BYTES = 32
TABLES = {"items": "item_id", "queries": "query_id"}  # file name -> its key


def content_digest(content: Content) -> bytes:
    """sha256 over the bytes of the picture and every text: equal digests are equal contents."""
    digest = hashlib.sha256()
    for part in (content.image, content.text, content.category, content.attributes, content.description):
        value = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(b"-" if value is None else b"%d:" % len(value))  # lengths: "ab", "c" is not "a", "bc"
        digest.update(value or b"")
    return digest.digest()


class Pictures:
    """Random access to the pictures of a dataset, of which a few at a time are in memory.

    Parquet has no random access to rows, and a million pictures do not fit in memory, so they are copied once,
    batch by batch, into a memory-mapped Arrow file.

    Args:
        images: the dataset's ``images.parquet``.
        copy: path of the Arrow file.
        decoded: pictures that training has decoded already, if any.
    """

    def __init__(self, images: Path, copy: Path, decoded: Decoded | None = None) -> None:
        source = pq.ParquetFile(images)
        schema = pa.schema([source.schema_arrow.field("image_id"), source.schema_arrow.field("bytes")])
        with pa.OSFile(str(copy), "wb") as stream, pa.ipc.new_file(stream, schema) as to:
            for batch in source.iter_batches(batch_size=1024, columns=schema.names):
                to.write_batch(batch)
        self._table = pa.ipc.open_file(pa.memory_map(str(copy))).read_all()
        self._decoded = decoded

    def read(self, image_ids: Sequence[str | None]) -> tuple[list[bytes | None], list[np.ndarray | None]]:
        """The encoded picture of each id, None where there is none, and its pixels, None where not decoded yet."""
        rows = pc.index_in(pa.array(image_ids, pa.string()), value_set=self._table["image_id"])
        images = self._table["bytes"].take(rows).to_pylist()
        if self._decoded is None:
            return images, [None] * len(images)
        place = [None if one is None else self._decoded.rows.get(one) for one in image_ids]
        return images, [None if row is None else self._decoded.pixels[row] for row in place]


@dataclass(frozen=True)
class Embedded:
    """Vectors of contents with their hashes.

    Attributes:
        ids: int64 (M), ascending.
        vectors: float32 (M, D).
        hashes: uint8 (M, 32), ``content_digest`` of what each was made from.
        empty: number of rows without content.
        unchanged: number of rows whose vector was taken from an earlier embedding.
        refused: id -> reason of every row that has content but could not be encoded.
    """

    ids: np.ndarray
    vectors: np.ndarray
    hashes: np.ndarray
    empty: int
    unchanged: int
    refused: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Sequence[Embedded], width: int) -> Embedded:
        """Concatenate parts."""
        return cls(
            np.concatenate([np.empty(0, np.int64), *(part.ids for part in parts)]),
            np.concatenate([np.empty((0, width), np.float32), *(part.vectors for part in parts)]),
            np.concatenate([np.empty((0, HASH_BYTES), np.uint8), *(part.hashes for part in parts)]),
            sum(part.empty for part in parts),
            sum(part.unchanged for part in parts),
            {row: reason for part in parts for row, reason in part.refused.items()},
        )

    def save(self, folder: Path, table: str) -> None:
        """Write the vectors, and the hashes in a separate file that only a later embedding reads."""
        save_file({TABLES[table]: self.ids, "vector": self.vectors}, folder / f"{table}.safetensors")
        save_file({TABLES[table]: self.ids, "sha256": self.hashes}, folder / f"{table}_content.safetensors")

    @classmethod
    def open(cls, folder: Path, counts: Mapping[str, Any], table: str) -> Embedded:
        """Read what ``save`` wrote into the folder of an artifact or a checkpoint.

        Args:
            folder: the folder.
            counts: a mapping that includes what ``counts`` returned.
            table: ``items`` or ``queries``.

        Raises:
            ArtifactError: an embedding from before contents were hashed.
        """
        hashes = folder / f"{table}_content.safetensors"
        if not hashes.exists():
            raise ArtifactError(f"{hashes}: not found, so what changed is unknown. Run 'moon embed' afresh.")
        vectors, content = load_file(folder / f"{table}.safetensors"), load_file(hashes)
        empty, unchanged = (counts[f"{table}_{what}"] for what in ("without_content", "unchanged"))
        refused = refused_rows(counts, table)
        return cls(vectors[TABLES[table]], vectors["vector"], content["sha256"], empty, unchanged, refused)

    def counts(self, table: str) -> dict[str, Any]:
        """The entries of a table in the manifest."""
        counts: dict[str, Any] = {
            f"{table}_without_content": self.empty,
            f"{table}_unchanged": self.unchanged,
        }
        if self.refused:
            counts[f"{table}_refused"] = {str(row): reason for row, reason in self.refused.items()}
        return counts


def refused_rows(config: Mapping[str, Any], table: str) -> dict[int, str]:
    """Id -> reason of the rows that could not be encoded, from the configuration of an embedding.

    Args:
        config: of an artifact of kind ``embedding``.
        table: ``items`` or ``queries``.
    """
    return {int(row): reason for row, reason in config.get(f"{table}_refused", {}).items()}
