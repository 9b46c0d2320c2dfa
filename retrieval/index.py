"""The item index: inner-product search, exact under every filter; large catalogues may be approximate without one.

Catalogues up to ``EXACT_LIMIT`` items are scanned; larger ones answer unfiltered queries from inverted lists
whose recall was measured when they were built. A category is a path such as ``"Women > Shoes"``; items are
sorted by path, so a category and all it contains is one slice, and a filtered query scans only that slice: an
approximate index loses almost everything there, because the allowed items lie far from the query.

Legend: B queries, N items, D width, K answers, F candidates of the scan, A ids asked for, G queries of the gate.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from retrieval.approximation import Approximation, approximate
from retrieval.jagged import best_first
from run.artifacts import Artifact, open_artifact, write_artifact

EXACT_LIMIT = 300_000
SPARE, WIDER = 8, 4  # items that a scan looks at beyond k, and how many times as many a second one does
TOGETHER, BLOCK = 32, 65_536  # queries and items whose every score is computed at a time
SEPARATOR = " > "
_SIGN = SEPARATOR.strip()
_ALONE = re.compile(rf"(?<!\S){_SIGN}(?!\S)")


def category_path(parts: Sequence[str]) -> str:
    """One string for a category path, broadest part first: ``["Women", "Shoes"]`` is ``"Women > Shoes"``.

    A part with the separator in it is several: what stands between two separators is one part, and never empty.
    """
    path = SEPARATOR.join(parts)
    if path.count(_SIGN) < max(len(parts), 1):
        return path
    return SEPARATOR.join(filter(None, map(str.strip, _ALONE.split(path))))


class ItemIndex:
    """Items and their vectors, searchable by inner product.

    An item of which nothing is known but its id has a row of zeros instead of a vector: behaviour may answer it
    (``contains``), a search never does.

    Attributes:
        ids: int64 [N] in storage order (category path, then id). Row numbers never leave this class.
        matrix: float32 [N, D] in the same order.
        paths: N category paths in the same order.
        artifact: where it was opened from; None for one built in memory.
    """

    def __init__(
        self,
        ids: np.ndarray,
        matrix: np.ndarray,
        paths: Sequence[str],
        approximation: Approximation | None = None,
        artifact: Artifact | None = None,
    ) -> None:
        self.ids, self.matrix, self.paths = ids, matrix, list(paths)
        self.approximation, self.artifact = approximation, artifact
        self._by_id = np.argsort(ids)
        norms_N = np.linalg.norm(matrix, axis=1)
        self._placed = norms_N > 0  # storage rows that have a vector
        self._shown: np.ndarray | None = None  # storage rows that may be answered, ascending; None: all
        self._found = None if self._placed.all() else np.flatnonzero(self._placed)  # those a search may find
        if self._found is not None and approximation is not None:
            self.approximation = approximation.without(ids[~self._placed])
        self._slices = _slices(self.paths)
        self._flat = faiss.IndexFlatIP(matrix.shape[1])
        self._flat.add(matrix)
        self._largest_norm = norms_N.max(initial=0)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """D, the width of the vectors."""
        return int(self.matrix.shape[1])

    @property
    def categories(self) -> list[str]:
        """Every path that can be asked for, broadest first, sorted."""
        return sorted(self._slices)

    def has_category(self, category: str) -> bool:
        """Whether any item's path is, or starts with, this one."""
        return category in self._slices

    @classmethod
    def build(
        cls,
        ids: np.ndarray,
        matrix: np.ndarray,
        categories: Sequence[str] | None = None,
        exact_limit: int = EXACT_LIMIT,
    ) -> ItemIndex:
        """Index ``matrix`` float32 [N, D] under ``ids`` int64 [N].

        Args:
            ids: the items' ids, any order, unique.
            matrix: their vectors; unit norm makes the scores cosines.
            categories: one path per item (see ``category_path``); None: no categories, ``""``: uncategorised.
            exact_limit: catalogues larger than this also get inverted lists.

        Raises:
            ValueError: lengths differ, ids repeat or are negative, a vector is not finite.
        """
        ids = np.asarray(ids, dtype=np.int64)
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        paths = [""] * len(ids) if categories is None else list(categories)
        _check(ids, matrix, paths)
        keys = [tuple(path.split(SEPARATOR)) for path in paths]
        order = np.array(sorted(range(len(ids)), key=lambda row: (keys[row], ids[row])), dtype=np.int64)
        matrix = matrix[order]
        approximation = approximate(matrix, ids[order]) if len(ids) > exact_limit else None
        return cls(ids[order], matrix, [paths[row] for row in order], approximation)

    def with_items(self, ids: np.ndarray, matrix: np.ndarray, categories: Sequence[str]) -> ItemIndex:
        """An index with these items added, or replaced where it holds their ids.

        Inverted lists are kept and added to: their cells stay those of the items they were trained on.

        Args:
            ids, matrix, categories: as for ``build``.
        """
        kept = ~np.isin(self.ids, ids)
        exact = ItemIndex.build(
            np.concatenate([self.ids[kept], ids]),
            np.concatenate([self.matrix[kept], matrix]),
            [path for path, keep in zip(self.paths, kept.tolist(), strict=True) if keep] + list(categories),
            exact_limit=len(self) + len(ids),
        )
        exact.artifact = self.artifact
        if self.approximation is not None:
            exact.approximation = self.approximation.with_items(np.asarray(ids, np.int64), matrix)
        return exact

    def without(self, ids: np.ndarray) -> ItemIndex:
        """The same index, of which these items (unknown ids are ignored) are never answered.

        Their vectors can still be read: a hidden item may be in somebody's history, or be asked for similar ones.
        ``with_items`` shows all items again.
        """
        hidden = self.rows(ids)
        if self._shown is not None:
            hidden = np.append(hidden, np.setdiff1d(np.arange(len(self)), self._shown))
        hidden = np.unique(hidden[hidden >= 0])
        other = copy.copy(self)
        other._shown = np.delete(np.arange(len(self), dtype=np.int64), hidden) if len(hidden) else None
        other._found = other._shown
        if not self._placed.all():
            hidden = np.union1d(hidden, np.flatnonzero(~self._placed))
            other._found = np.delete(np.arange(len(self), dtype=np.int64), hidden)
        if self.approximation is not None:
            other.approximation = self.approximation.without(self.ids[hidden])
        return other

    def save(self, out: Path, parents: Mapping[str, Artifact]) -> Artifact:
        """Write the index as an artifact of kind ``index``."""
        config = {"items": len(self), "width": self.width, "recall": 1.0, "probes": 0}
        if self.approximation is not None:
            config |= {"recall": self.approximation.recall, "probes": self.approximation.lists.nprobe}
        with write_artifact(out, "index", config, parents) as folder:
            save_file({"item_id": self.ids, "vector": self.matrix}, folder / "items.safetensors")
            pq.write_table(
                pa.table({"item_id": self.ids, "category": self.paths}), folder / "categories.parquet"
            )
            if self.approximation is not None:
                faiss.write_index(self.approximation.lists, str(folder / "lists.faiss"))
        return open_artifact(out, "index")

    @classmethod
    def open(cls, artifact: Artifact) -> ItemIndex:
        """Open an artifact of kind "index"; faiss trusts its file, so only verified files are given to it."""
        tensors = load_file(artifact.file("items.safetensors"))
        paths = pq.read_table(artifact.file("categories.parquet"))["category"].to_pylist()
        approximation = None
        if artifact.file("lists.faiss").exists():
            lists = faiss.read_index(str(artifact.file("lists.faiss")))
            approximation = Approximation(lists, float(artifact.config["recall"]), tensors["item_id"])
        return cls(tensors["item_id"], tensors["vector"], paths, approximation, artifact)

    def only(self, ids: np.ndarray | None) -> ItemIndex:
        """An exact index of these items only; None: this one."""
        if ids is None:
            return self
        kept = self.contains(ids)
        rows = np.unique(self.rows(ids[kept]))
        paths = [self.paths[row] for row in rows]
        return ItemIndex(self.ids[rows], self.matrix[rows], paths, artifact=self.artifact)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Storage rows int64 of ``ids``, -1 where unknown, to align arrays with ``ids``."""
        ids = np.asarray(ids, dtype=np.int64)
        if len(self) == 0:
            return np.full(len(ids), -1, dtype=np.int64)
        place = np.searchsorted(self.ids, ids, sorter=self._by_id).clip(max=len(self) - 1)
        rows = self._by_id[place]
        return np.where(self.ids[rows] == ids, rows, -1)

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [A, D] of ``ids`` (zeros where there is none) and which have one, bool [A]."""
        rows = self.rows(ids)
        found = rows >= 0
        found[found] = self._placed[rows[found]]
        vectors_AD = np.zeros((len(rows), self.width), dtype=np.float32)
        vectors_AD[found] = self.matrix[rows[found]]
        return vectors_AD, found

    def contains(self, ids: np.ndarray, category: str | None = None) -> np.ndarray:
        """Which ``ids`` may be answered (in ``category``), bool [n]."""
        start, stop = self._slice(category)
        rows = self.rows(ids)
        inside = (rows >= start) & (rows < stop)
        return inside if self._shown is None else inside & np.isin(rows, self._shown)

    def search(
        self,
        query: np.ndarray,
        k: int,
        category: str | None = None,
        exclude: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items of largest inner product with each query, score descending then id ascending.

        Args:
            query: float32 [D] or [B, D].
            k: how many, at least 1.
            category: only items whose path is, or starts with, this one; an unknown one has no items.
            exclude: int64 ids never to return; unknown ids are ignored.

        Returns:
            ids int64 and scores float32, each of shape [k'] or [B, k'], where k' = min(k, items that pass the
            filters). A score is the float64 inner product rounded once, so it does not depend on the batch.

        Raises:
            ValueError: k < 1, a query of another width or with a value that is not finite.
        """
        query = np.asarray(query, dtype=np.float32)
        if k < 1:
            raise ValueError(f"k is {k}: expected at least 1")
        if query.ndim not in (1, 2) or query.shape[-1] != self.width:
            raise ValueError(f"query of shape {query.shape}: expected [{self.width}] or [B, {self.width}]")
        queries_BD = np.ascontiguousarray(np.atleast_2d(query))
        if not np.isfinite(queries_BD).all():
            bad = np.flatnonzero(~np.isfinite(queries_BD).all(1))
            raise ValueError(
                f"{len(bad)} of {len(queries_BD)} queries are not finite (rows {bad[:3].tolist()})"
            )
        rows = self._passing(category, exclude)
        k = min(k, len(self) if rows is None else len(rows))
        if k == 0:
            ids_BK, scores_BK = (
                np.empty((len(queries_BD), 0), np.int64),
                np.empty((len(queries_BD), 0), np.float32),
            )
        elif rows is self._found and self.approximation is not None:
            ids_BK, scores_BK = self._probe(queries_BD, k)
        else:
            ids_BK, scores_BK = self._scan(queries_BD, k, rows)
        return (ids_BK[0], scores_BK[0]) if query.ndim == 1 else (ids_BK, scores_BK)

    def _slice(self, category: str | None) -> tuple[int, int]:
        return (0, len(self)) if category is None else self._slices.get(category, (0, 0))

    def _passing(self, category: str | None, exclude: np.ndarray | None) -> np.ndarray | None:
        """Storage rows that may be answered and pass the filters, ascending; None when all do."""
        start, stop = self._slice(category)
        rows = self._found
        if rows is None:
            rows = np.arange(start, stop, dtype=np.int64)
        elif category is not None:
            rows = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        if exclude is not None and len(exclude):
            rows = rows[~np.isin(rows, self.rows(exclude))]
        return None if len(rows) == len(self) else rows

    def _scan(self, queries_BD: np.ndarray, k: int, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Exact search among ``rows`` (None: all).

        The scan's float32 sums depend on batch shape and row position, so rows that may belong to the answer
        (within the rounding bound of the k-th) are scored again in float64; equal vectors then tie exactly. Where so
        many are alike that a longer scan does not hold them either, every row is.
        """
        count = len(self) if rows is None else len(rows)
        selector = None if rows is None else self._selector(rows)
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        ids_BK = np.empty((len(queries_BD), k), np.int64)
        scores_BK = np.empty((len(queries_BD), k), np.float32)
        slack = (
            2
            * self.width
            * np.finfo(np.float32).eps
            * self._largest_norm
            * np.linalg.norm(queries_BD, axis=1)
        )
        pending = np.arange(len(queries_BD))
        for fetch in (min(count, k + SPARE), min(count, WIDER * (k + SPARE))):
            if not len(pending):
                break
            rough_BF, found_BF = self._flat.search(queries_BD[pending], fetch, params=parameters)
            settled = np.full(len(pending), fetch == count) | (
                rough_BF[:, -1] < rough_BF[:, k - 1] - slack[pending]
            )
            for place in np.flatnonzero(settled):
                row = pending[place]
                ids_BK[row], scores_BK[row] = self._rescored(queries_BD[row], found_BF[place], k)
            pending = pending[~settled]
        for row, exact_N in zip(pending, self._every_score(queries_BD[pending], rows), strict=True):
            ids_BK[row], scores_BK[row] = best_first(self.ids if rows is None else self.ids[rows], exact_N, k)
        return ids_BK, scores_BK

    def _every_score(self, queries_BD: np.ndarray, rows: np.ndarray | None) -> Iterator[np.ndarray]:
        """Scores float32 of all ``rows`` (None: all) for one query after the other."""
        matrix_ND = self.matrix if rows is None or not len(queries_BD) else self.matrix[rows]
        for first in range(0, len(queries_BD), TOGETHER):
            queries = queries_BD[first : first + TOGETHER].astype(np.float64)
            scores = np.empty((len(queries), len(matrix_ND)), np.float32)
            for start in range(0, len(matrix_ND), BLOCK):
                block = slice(start, start + BLOCK)
                scores[:, block] = queries @ matrix_ND[block].astype(np.float64).T
            yield from scores

    def _selector(self, rows: np.ndarray) -> faiss.IDSelector:
        if rows[-1] - rows[0] + 1 == len(rows):
            return faiss.IDSelectorRange(int(rows[0]), int(rows[-1]) + 1)
        if len(rows) * 8 < len(self):
            return faiss.IDSelectorArray(rows)
        passing = np.zeros(len(self), dtype=bool)
        passing[rows] = True
        return faiss.IDSelectorBitmap(np.packbits(passing, bitorder="little"))  # type: ignore[call-arg, arg-type]

    def _rescored(self, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        exact = self.matrix[rows].astype(np.float64) @ query.astype(np.float64)
        return best_first(self.ids[rows], exact.astype(np.float32), k)

    def _probe(self, queries_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Approximate search; queries whose lists hold fewer than k items are scanned instead."""
        assert self.approximation is not None
        found_BK = self.approximation.search(queries_BD, k)
        found_BK = self.rows(found_BK.ravel()).reshape(found_BK.shape)
        ids_BK, scores_BK = (
            np.empty((len(queries_BD), k), np.int64),
            np.empty((len(queries_BD), k), np.float32),
        )
        short = (found_BK < 0).any(1)
        for row in np.flatnonzero(~short):
            ids_BK[row], scores_BK[row] = self._rescored(queries_BD[row], found_BK[row], k)
        if short.any():
            ids_BK[short], scores_BK[short] = self._scan(queries_BD[short], k, self._found)
        return ids_BK, scores_BK


def _check(ids: np.ndarray, matrix_ND: np.ndarray, paths: Sequence[str]) -> None:
    if matrix_ND.ndim != 2 or not len(ids) == len(matrix_ND) == len(paths):
        raise ValueError(
            f"{len(ids)} ids, vectors of shape {matrix_ND.shape}, {len(paths)} categories: expected one each"
        )
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids) or (len(ids) and unique[0] < 0):
        bad = unique[(counts > 1) | (unique < 0)]
        raise ValueError(
            f"{len(bad)} of {len(unique)} items repeat or are negative (item_id {bad[:3].tolist()})"
        )
    finite = np.isfinite(matrix_ND).all(1)
    if not finite.all():
        bad = ids[~finite]
        raise ValueError(
            f"{len(bad)} of {len(ids)} vectors are not finite (item_id {bad[:3].tolist()}). Run 'moon embed'."
        )


def _slices(paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """First and past-the-last row of every path and of every beginning of a path."""
    slices: dict[str, tuple[int, int]] = {}
    for row, path in enumerate(paths):
        parts = path.split(SEPARATOR) if path else []
        for depth in range(1, len(parts) + 1):
            prefix = category_path(parts[:depth])
            slices[prefix] = (slices.get(prefix, (row, row))[0], row + 1)
    return slices
