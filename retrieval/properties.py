"""The properties of items that a taste can be about: category levels, attributes, product, price, words, looks.

Values of a field are equal or not; numbers are compared by their inner product. Which fields there are is read from
the catalogue. Legend: M items, F fields, S spaces, D numbers of a space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.utils.extmath import randomized_svd

from feature_repo.vectors import merged, rows_of
from retrieval.colours import colours
from retrieval.words import Vocabulary, item_texts

MOST_ATTRIBUTES = 16  # those that most items have
LEVELS = 4  # of the category path, from the top
WORDS, LOOKS = 64, 32  # numbers that are kept of each
UNKNOWN = -1
LOOKS_SPACE, VECTORS_SPACE = "looks", "vectors"
OWN = ("product", "item")  # fields whose values are hardly shared: each item is explained by its own
Picture = Callable[[str | None], bytes | None]


@dataclass(frozen=True)
class Basis:
    """Directions in which the items of a catalogue differ most.

    Attributes:
        centre: float32 (V), the mean item.
        directions: float32 (V, D), scaled so that projected items have the mean squared length 1.
    """

    centre: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, rows: Any, width: int) -> Basis:
        """Of M rows, dense or a csr_array; the centre of sparse rows is left at zero."""
        dense = isinstance(rows, np.ndarray)
        centre = rows.mean(axis=0) if dense else np.zeros(rows.shape[1])
        centred = rows - centre if dense else rows
        most = min(width, *centred.shape)
        _, strength, directions = randomized_svd(centred, most, random_state=0)
        length = np.sqrt((strength**2).sum() / max(rows.shape[0], 1))
        return cls(centre.astype(np.float32), (directions.T / max(length, 1e-12)).astype(np.float32))

    def place(self, rows: Any) -> np.ndarray:
        """Rows in these directions, float32 (M, D)."""
        dense = isinstance(rows, np.ndarray)
        placed = (rows - self.centre if dense else rows) @ self.directions
        return np.asarray(placed, dtype=np.float32)

    def restored(self, placed: np.ndarray) -> np.ndarray:
        """Rows float32 (M, D) as they were, but for what these directions leave out: float32 (M, V)."""
        squared = np.square(self.directions).sum(axis=0).clip(min=1e-12)
        rows: np.ndarray = self.centre + placed @ (self.directions / squared).T
        return rows


@dataclass(frozen=True)
class Properties:
    """The properties of items.

    Attributes:
        item_ids: int64 (M), ascending.
        fields: F names.
        codes: int32 (M, F), equal for equal values, UNKNOWN where an item has none.
        spaces: name -> float32 (M, D).
        values: of each field, value -> code.
        price: mean and deviation of the logarithm of prices.
        bases: of the spaces ``words`` and ``looks``, if there are any.
        vocabulary: of the words.
    """

    item_ids: np.ndarray
    fields: tuple[str, ...]
    codes: np.ndarray
    spaces: Mapping[str, np.ndarray]
    values: tuple[Mapping[str, int], ...]
    price: tuple[float, float]
    bases: Mapping[str, Basis]
    vocabulary: Vocabulary

    @classmethod
    def of(cls, items: pa.Table, picture: Picture) -> Properties:
        """Of ITEMS rows; ``picture`` gives that of an ``image_id``."""
        items = items.sort_by("item_id")
        rows = [_values_of(one) for one in items.select(DESCRIBING).to_pylist()]
        fields = _fields(rows)
        values: list[dict[str, int]] = [{} for _ in fields]
        for row in rows:
            for field, known in zip(fields, values, strict=True):
                if field in row:
                    known.setdefault(row[field], len(known))
        logs = _log_price(items)
        texts = item_texts(items)
        vocabulary, bases = Vocabulary.of(texts), {}
        if len(vocabulary.weight) and len(items):
            bases["words"] = Basis.of(vocabulary.rows(texts), WORDS)
        seen = [one for one in map(picture, items["image_id"].to_pylist()) if one is not None]
        if seen:
            bases[LOOKS_SPACE] = Basis.of(colours(seen), LOOKS)
        known = logs[~np.isnan(logs)]
        price = (float(known.mean()), float(known.std()) or 1.0) if len(known) else (0.0, 1.0)
        empty = cls(
            np.empty(0, np.int64), fields, np.empty((0, len(fields)), np.int32), {}, tuple(values), price, bases,
            vocabulary,
        )  # fmt: skip
        return empty.with_items(items, picture)

    def without_content(self) -> Properties:
        """The same without words and looks."""
        unread = {*self.bases, VECTORS_SPACE}
        spaces = {name: rows for name, rows in self.spaces.items() if name not in unread}
        return replace(self, spaces=spaces, bases={})

    def with_vectors(self, vectors: np.ndarray) -> Properties:
        """The same with vectors of the items, float32 (M, D), zeros for items without one."""
        return replace(self, spaces={**self.spaces, VECTORS_SPACE: vectors})

    def without_vectors(self) -> Properties:
        """The same without vectors."""
        if VECTORS_SPACE not in self.spaces:
            return self
        return replace(self, spaces={k: v for k, v in self.spaces.items() if k != VECTORS_SPACE})

    def with_items(self, items: pa.Table, picture: Picture, vectors: np.ndarray | None = None) -> Properties:
        """The same with ITEMS rows added or replaced; values and words that the catalogue lacked are unknown.

        Args:
            items: ITEMS rows.
            picture: gives that of an ``image_id``.
            vectors: of these items, float32 (rows, D), read where the others have vectors; None: they have none.
        """
        rows = [_values_of(one) for one in items.select(DESCRIBING).to_pylist()]
        codes = [
            [known.get(row.get(field, ""), UNKNOWN) for field, known in zip(self.fields, self.values, strict=True)]
            for row in rows
        ]  # fmt: skip
        spaces = {"price": np.nan_to_num((_log_price(items) - self.price[0]) / self.price[1])[:, None]}
        if "words" in self.bases:
            spaces["words"] = self.bases["words"].place(self.vocabulary.rows(item_texts(items)))
        if LOOKS_SPACE in self.bases:
            seen = list(map(picture, items["image_id"].to_pylist()))
            spaces[LOOKS_SPACE] = self.bases[LOOKS_SPACE].place(colours(seen))
            spaces[LOOKS_SPACE][[one is None for one in seen]] = 0
        if VECTORS_SPACE in self.spaces:
            width = self.spaces[VECTORS_SPACE].shape[1]
            spaces[VECTORS_SPACE] = np.zeros((len(items), width), np.float32) if vectors is None else vectors
        kept, order, ids = merged(self.item_ids, items["item_id"].to_numpy())

        def joined(before: np.ndarray, after: Any) -> np.ndarray:
            return np.concatenate([before[kept], np.asarray(after, before.dtype)])[order]

        return replace(
            self,
            item_ids=ids,
            codes=joined(self.codes, np.array(codes, np.int32).reshape(len(rows), len(self.fields))),
            spaces={
                name: joined(self.spaces.get(name, np.empty((0, rows.shape[1]), np.float32)), rows)
                for name, rows in spaces.items()
            },
        )

    @cached_property
    def paths(self) -> np.ndarray:
        """A number per item, equal for equal category paths, int64 (M)."""
        levels = [number for number, field in enumerate(self.fields) if field.startswith("category ")]
        if not levels:
            return np.zeros(len(self.item_ids), np.int64)
        number: np.ndarray = np.unique(self.codes[:, levels], axis=0, return_inverse=True)[1].reshape(-1)
        return number

    def rows(self, item_id: np.ndarray) -> np.ndarray:
        """Rows of items, int64, -1 where unknown."""
        return rows_of(self.item_ids, item_id)


DESCRIBING = ["item_id", "category", "attributes", "spu"]


def _values_of(item: Mapping[str, Any]) -> dict[str, str]:
    """Field -> value of an item."""
    path: Sequence[str] = item["category"]
    levels = {
        f"category {level + 1}": "\n".join(path[: level + 1]) for level in range(min(len(path), LEVELS))
    }
    own = dict(zip(OWN, (str(item["spu"]), str(item["item_id"])), strict=True))
    return {key: value for key, value in item["attributes"] or () if value} | levels | own


def _fields(rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Fields with several values: levels, product and item, and the attributes that most items have."""
    count = Counter(field for row in rows for field in row)
    several = {field for field in count if len({row[field] for row in rows if field in row}) > 1}
    ours = [f"category {level + 1}" for level in range(LEVELS)] + [*OWN]
    others = [
        field for field, _ in sorted(count.items(), key=lambda one: (-one[1], one[0])) if field not in ours
    ]
    return tuple(field for field in (*ours, *others[:MOST_ATTRIBUTES]) if field in several)


def _log_price(items: pa.Table) -> np.ndarray:
    price = items["price"].to_numpy().astype(np.float64)  # null becomes NaN
    return np.log1p(np.maximum(price, 0))
