"""The ids of one entity while a source is read: its own, as text, and the int64 that stands for each inside Moon.

The memory that this takes grows with the number of items or users, never with the number of rows.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import flat
from dataset.adapters.described.files import Batch
from dataset.adapters.source import NEXT
from dataset.contracts import DataError
from dataset.shop_ids import stable_ids

REFUSE, DIFFERENT, SAME = "refuse", "different", "same"


@dataclass
class Names:
    """All ids of an entity, in order of appearance.

    Attributes:
        entity: "item", "user" or "query".
        similar: what to do with ids that differ only by case, spaces around them or leading zeros; see ``Data``.
    """

    entity: str
    similar: str = REFUSE
    _ids: dict[str, int] = field(default_factory=dict)
    _spelled: dict[str, str] = field(default_factory=dict)  # plain form -> the spelling that differs from it
    _same: dict[str, str] = field(default_factory=dict)  # other spelling -> the first one
    _sources: list[tuple[int, str]] = field(
        default_factory=list
    )  # number of ids before, where they come from

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, batch: Batch, name: str, column: str) -> pa.Array:
        """Int64 ids of the texts in column ``name`` of a batch, null where they are null.

        Args:
            batch: rows of a file.
            name: of the column in the batch.
            column: of the file, for errors.

        Raises:
            DataError: an id differs from an earlier one by case, spaces or leading zeros, and that is not allowed.
        """
        encoded = flat(batch.table.column(name).dictionary_encode())
        self._sources.append((len(self._ids), f"{batch.file}, column {column!r}"))
        texts = encoded.dictionary.to_pylist()
        for text in [text for text in texts if text not in self._ids and text not in self._same]:
            first = None if self.similar == DIFFERENT else self._like(text)
            if first is None:
                self._ids[text] = -1
            elif self.similar == SAME:
                self._same[text] = first
            else:
                raise DataError(self._twins(batch, encoded, text, first, column))
        self._number(texts)
        ids = np.fromiter((self._ids[self._same.get(text, text)] for text in texts), np.int64, len(texts))
        return pa.array(ids).take(encoded.indices)

    def table(self) -> pa.Table:
        """Columns ``id`` int64 and ``external`` string, in order of appearance.

        Raises:
            DataError: two of them became one integer.
        """
        stable_ids(list(self._ids))  # says so if they collide
        ids = pa.array(np.fromiter(self._ids.values(), np.int64, len(self._ids)))
        return pa.table({"id": ids, "external": pa.array(list(self._ids), pa.string())})

    def _number(self, texts: list[str]) -> None:
        new = [text for text in texts if self._ids.get(text) == -1]
        self._ids.update(zip(new, stable_ids(new).tolist(), strict=True))

    def _like(self, text: str) -> str | None:
        """The earlier id of the same plain form; None: there is none."""
        plain = plain_form(text)
        if plain != text and plain in self._ids:
            return plain
        if plain in self._spelled:
            return self._spelled[plain]
        if plain != text:
            self._spelled[plain] = text
        return None

    def _twins(self, batch: Batch, encoded: pa.DictionaryArray, text: str, first: str, column: str) -> str:
        row = batch.start + pc.index(pc.equal(encoded.cast(pa.string()), text), True).as_py() + 1
        place = list(self._ids).index(first)
        source = self._sources[bisect.bisect_right([count for count, _ in self._sources], place) - 1][1]
        return (
            f"{batch.file}: row {row}, column {column!r}: the {self.entity} {text!r} and the {self.entity} {first!r} "
            f"({source}) differ only by case, spaces or leading zeros. Correct them; or say in moon.toml, under "
            f'[data], similar_ids = "same" or similar_ids = "different". {NEXT}'
        )


def plain_form(text: str) -> str:
    """The id without what people and programs change by accident: case, spaces around it, leading zeros."""
    return text.strip().casefold().lstrip("0") or "0"
