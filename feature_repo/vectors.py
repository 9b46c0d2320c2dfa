"""Item and query vectors of one embedding version, read by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from run.artifacts import Artifact, ArtifactError

UNIT_TOLERANCE = 1e-3


def rows_of(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Row of each wanted id among ``ids``, int64 ascending; -1 where it is not there."""
    wanted = np.asarray(wanted, dtype=np.int64)
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(wanted)  # in order, each search finds in the cache what the one before read
    place = np.empty(len(wanted), dtype=np.int64)
    place[order] = np.searchsorted(ids, wanted[order]).clip(max=len(ids) - 1)
    return np.where(ids[place] == wanted, place, -1)


def merged(known: np.ndarray, added: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How rows of items are added to rows by id, and replace those of the same id.

    Args:
        known: int64 (M), distinct.
        added: int64 (n), distinct.

    Returns:
        bool (M), rows of ``known`` that stay; int64 (m), the order of those and then the added by id; the m ids.
    """
    kept = ~np.isin(known, added)
    ids = np.concatenate([known[kept], added])
    order = np.argsort(ids)
    return kept, order, ids[order]


@dataclass(frozen=True)
class VectorTable:
    """Unit vectors by id.

    Attributes:
        ids: int64 of shape (M), ascending.
        matrix: float32 of shape (M, D), unit rows.
        available_us: int64 of shape (M), when the store could first give each one, microseconds since 1970 UTC;
            None: every reader comes later.
    """

    ids: np.ndarray
    matrix: np.ndarray
    available_us: np.ndarray | None = field(default=None, kw_only=True)

    @property
    def width(self) -> int:
        """D."""
        return int(self.matrix.shape[1])

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Row of each id, int64; -1 where unknown."""
        return rows_of(self.ids, ids)

    def gather(self, ids: np.ndarray, time_us: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 (n, D), zeros where unknown, and which were found, bool (n).

        Args:
            ids: int64 (n).
            time_us: int64 (n), moments before which a vector must have been available; None: at any time.
        """
        rows = self.known_rows(ids, time_us)
        return self.at(rows), rows >= 0

    def known_rows(self, ids: np.ndarray, time_us: np.ndarray | None = None) -> np.ndarray:
        """Row of each id, int64; -1 where unknown, or not yet available; arguments as of ``gather``."""
        rows = self.rows(ids)
        if time_us is not None and self.available_us is not None and len(self.ids):
            rows[self.available_us[rows] >= time_us] = -1
        return rows

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The vectors at these rows of any shape, float32 (..., D), zeros where -1."""
        if not len(self.matrix):
            return np.zeros((*rows.shape, self.width), dtype=np.float32)
        out = self.matrix.take(rows, axis=0, mode="wrap")  # -1 takes the last one for the moment
        out[rows < 0] = 0
        return out


@dataclass(frozen=True)
class Vectors(VectorTable):
    """Item vectors of one embedding version, and its query vectors.

    Attributes:
        queries: the query vectors.
        id: id of the embedding artifact; models record it and refuse any other.
        version: number of the store's views that hold them; None: they were not read through a store.
    """

    queries: VectorTable
    id: str
    version: int | None = None

    @classmethod
    def open(cls, artifact: Artifact) -> Vectors:
        """Read an artifact of kind "embedding".

        Raises:
            ArtifactError: vectors not finite, not of unit norm, of another width, or ids not ascending.
        """
        width = int(artifact.config["width"])
        items = _read(artifact.file("items.safetensors"), "item_id", width)
        queries = _read(artifact.file("queries.safetensors"), "query_id", width)
        return cls(items.ids, items.matrix, queries, artifact.id)


def _read(path: Path, key: str, width: int) -> VectorTable:
    tensors = load_file(path)
    if set(tensors) != {key, "vector"}:
        raise ArtifactError(
            f"{path}: expected tensors {key} and vector, found {sorted(tensors)}. Run 'moon embed'."
        )
    ids, matrix = tensors[key], tensors["vector"]
    if ids.dtype != np.int64 or matrix.dtype != np.float32 or matrix.shape != (len(ids), width):
        raise ArtifactError(
            f"{path}: expected int64 ids and float32 vectors of shape ({len(ids)}, {width}), "
            f"found {ids.dtype} and {matrix.dtype} {matrix.shape}. Run 'moon embed'."
        )
    if (np.diff(ids) <= 0).any():
        bad = ids[1:][np.diff(ids) <= 0]
        raise ArtifactError(
            f"{path}: expected ascending {key}s, found {len(bad)} out of place ({key} {bad[:3].tolist()}). "
            f"Run 'moon embed'."
        )
    finite = np.isfinite(matrix).all(axis=1)
    unit = np.zeros(len(ids), dtype=bool)
    unit[finite] = np.abs(np.linalg.norm(matrix[finite], axis=1) - 1) <= UNIT_TOLERANCE
    if not unit.all():
        what = "finite" if not finite.all() else "of unit norm"
        bad = ids[~finite] if not finite.all() else ids[~unit]
        raise ArtifactError(
            f"{path}: {len(bad)} of {len(ids)} vectors are not {what} ({key} {bad[:3].tolist()}). "
            f"Run 'moon embed'."
        )
    return VectorTable(ids, matrix)
