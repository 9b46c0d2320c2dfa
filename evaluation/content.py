"""Items as unit rows without a learned model: buyers, TF-IDF terms, colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dataset.jagged import entries, offsets_of
from dataset.log import distinct
from retrieval.colours import colours
from retrieval.words import Vocabulary, item_texts


@dataclass(frozen=True)
class SparseRows:
    """M sparse rows.

    Attributes:
        offsets: int64 of shape (M + 1); row m owns entries offsets[m]:offsets[m + 1].
        column: int64, the feature of each entry.
        value: float32, its value.
        width: number of features.
    """

    offsets: np.ndarray
    column: np.ndarray
    value: np.ndarray
    width: int

    def take(self, rows: np.ndarray) -> SparseRows:
        """These rows in this order; -1 is an empty row."""
        length = np.where(rows >= 0, np.diff(self.offsets)[rows], 0) if len(self.offsets) > 1 else 0 * rows
        entry, offsets = entries(self.offsets[rows], length)
        return SparseRows(offsets, self.column[entry], self.value[entry], self.width)


@dataclass(frozen=True)
class PlainContent:
    """What items look like and say, without a learned model.

    Attributes:
        item_ids: int64 (M), ascending.
        tf_idf: M rows.
        colour: float32 (M, D), zeros without a picture; None where no item has one.
    """

    item_ids: np.ndarray
    tf_idf: SparseRows
    colour: np.ndarray | None

    @classmethod
    def of(cls, items: pa.Table, images: pa.Table) -> PlainContent:
        """Of ITEMS and IMAGES rows."""
        items = items.sort_by("item_id")
        colour = None
        if len(images):
            row_of = {image_id: row for row, image_id in enumerate(images["image_id"].to_pylist())}
            rows = [row_of.get(image_id) for image_id in items["image_id"].to_pylist()]
            colour = colours([None if row is None else images["bytes"][row].as_py() for row in rows])
        return cls(items["item_id"].to_numpy(), tf_idf(item_texts(items)), colour)


def _unit_rows(row: np.ndarray, column: np.ndarray, value: np.ndarray, rows: int, width: int) -> SparseRows:
    """Entries grouped by row and scaled to unit length."""
    norm = np.sqrt(np.bincount(row, weights=value**2, minlength=rows))
    order = np.lexsort((column, row))
    offsets = offsets_of(np.bincount(row, minlength=rows))
    scaled = (value / np.where(norm > 0, norm, 1)[row])[order].astype(np.float32)
    return SparseRows(offsets, column[order].astype(np.int64), scaled, width)


def buyers(item_ids: np.ndarray, log_users: np.ndarray, log_items: np.ndarray) -> SparseRows:
    """Each item as the unit row of the users with a positive event on it, counted once each.

    Args:
        item_ids: int64 of shape (M), ascending; every item of the log must be among them.
        log_users: int64, the user of each positive event.
        log_items: int64, its item.
    """
    users, user = np.unique(log_users, return_inverse=True)
    pair = distinct(np.searchsorted(item_ids, log_items) * len(users) + user)
    row, column = pair // max(len(users), 1), pair % max(len(users), 1)
    return _unit_rows(row, column, np.ones(len(pair)), len(item_ids), max(len(users), 1))


def tf_idf(texts: Sequence[str | None], asked: Sequence[str | None] | None = None) -> SparseRows:
    """Each text as the unit row of its words (``retrieval.words``); a missing text is an empty row.

    Args:
        texts: M texts, whose words are counted.
        asked: other texts, of which rows are wanted, e.g. queries; their unknown words are left out. None: ``texts``.
    """
    rows = Vocabulary.of(texts).rows(texts if asked is None else asked)
    offsets, column = rows.indptr.astype(np.int64), rows.indices.astype(np.int64)
    return SparseRows(offsets, column, rows.data, max(rows.shape[1], 1))
