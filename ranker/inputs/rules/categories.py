"""Categories, one or a bag of them: a dictionary with a row for the unknown, or hashed.

Rows 0 and 1 of a dictionary are for values that were not admitted (new, or rarer than ``min_count`` in training) and
for null. A hashed category has no dictionary: any value has a row, null is an empty bag, whose embedding is zeros.
A value within a bag that is null is skipped; a bag that is empty has no row.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ranker.inputs.bits import as_text, from_text
from ranker.inputs.hashing import hash_column, remainder, table_rows
from ranker.inputs.rules.rule import Rule
from ranker.inputs.seen import are_seen, filter_of

UNKNOWN, ABSENT, FIRST = 0, 1, 2  # rows of a dictionary's table
LARGEST = (
    100_000  # a dictionary of more values would weigh on every opening of the model: it is hashed instead
)


@dataclass(frozen=True)
class Dictionary:
    """Every admitted value has a row of its own.

    Attributes:
        values: the admitted values, ascending; strings or integers.
    """

    values: tuple[str | int, ...]

    def __post_init__(self) -> None:
        place = {value: row for row, value in enumerate(self.values, FIRST)}
        integers = np.array(self.values if all(isinstance(one, int) for one in self.values) else (), np.int64)
        object.__setattr__(self, "_place", place)
        object.__setattr__(self, "_integers", integers)

    @property
    def rows(self) -> int:
        """A row per value, and two."""
        return len(self.values) + FIRST

    def ids(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Rows and how many each value has: one, of a bag as many as it holds; a null has row ABSENT."""
        values, lengths = _bags(column)
        rows = self._rows(plain(values))
        if pa.types.is_list(column.type):
            absent = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
            rows = np.insert(rows, np.append(0, np.cumsum(lengths))[absent], ABSENT)
            lengths[absent] = 1
        return rows, lengths

    def _rows(self, values: pa.Array) -> np.ndarray:
        if pa.types.is_integer(values.type) and not values.null_count:
            known: np.ndarray = self._integers  # type: ignore[attr-defined]
            if not len(known):
                return np.full(len(values), UNKNOWN)
            wanted = values.to_numpy()
            at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
            return np.where(known[at] == wanted, at + FIRST, UNKNOWN)
        place: dict[str | int, int] = self._place  # type: ignore[attr-defined]
        coded = values.dictionary_encode(
            null_encoding="encode"
        )  # so that each distinct value is looked up once
        distinct = [
            ABSENT if one is None else place.get(one, UNKNOWN) for one in coded.dictionary.to_pylist()
        ]
        return np.array(distinct, np.int64)[coded.indices.to_numpy()]


@dataclass(frozen=True)
class Hashed:
    """Values share the rows of a table by their hash.

    Attributes:
        rows: of the table.
        admitted: rows whose values occurred often enough, as base64 of packed bits; the values of the others share
            row 0. None: all.
        seen: filter of the values of the training data (``ranker.inputs.seen``); the others have no row, so that
            none reads the row of a stranger. None: all have one.
    """

    rows: int
    admitted: str | None = None
    seen: str | None = None

    @classmethod
    def of_bits(cls, bits: np.ndarray) -> Hashed:
        """The table whose admitted rows are these, bool [rows]."""
        return cls(len(bits), as_text(bits))

    @cached_property
    def bits(self) -> np.ndarray:
        """Which rows are admitted, bool [rows]."""
        if self.admitted is None:
            return np.ones(self.rows, dtype=bool)
        return from_text(self.admitted, self.rows)

    @cached_property
    def _filter(self) -> np.ndarray | None:
        return None if self.seen is None else from_text(self.seen)

    def ids(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Rows, and how many each value has: a null has none, nor has a value that was not seen."""
        values, lengths = _bags(column)
        if not pa.types.is_list(column.type):
            lengths = values.is_valid().to_numpy(zero_copy_only=False).astype(np.int32)
        hashes = hash_column(plain(values.drop_null()))
        known = self.known(hashes)
        owner = np.repeat(np.arange(len(lengths)), lengths)[known]
        return self.of(hashes[known]), np.bincount(owner, minlength=len(lengths)).astype(np.int32)

    def known(self, hashes: np.ndarray) -> np.ndarray:
        """Whether values of these hashes uint64 have a row, bool."""
        return np.ones(len(hashes), dtype=bool) if self._filter is None else are_seen(self._filter, hashes)

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """The row of each hash uint64, int64."""
        rows = remainder(hashes, self.rows)
        return rows if self.admitted is None else np.where(self.bits[rows], rows, 0)


MOST_PIECES = (
    16  # of counted hashes, before they are counted together: memory follows the values, not the rows
)


class CategoryLearner:
    """Counts values.

    Args:
        hashed: whether they are hashed whatever their number.
        min_count: a value is admitted if the training data hold it so often.
        rows: of the table when hashed; None: by the number of admitted values.
        of_ids: whether a value that the training data do not hold has no row.
    """

    def __init__(
        self, hashed: bool, min_count: int = 1, rows: int | None = None, of_ids: bool = False
    ) -> None:
        self.hashed, self.min_count, self.rows, self.of_ids = hashed, min_count, rows, of_ids
        self.counts: Counter[str | int] = Counter()
        self.hashes: list[tuple[np.ndarray, np.ndarray]] = []

    def see(self, column: pa.Array, time_us: np.ndarray) -> None:
        """Count the values of a column."""
        values = values_of(column)
        if self.hashed:
            self.hashes.append(np.unique(hash_column(values), return_counts=True))
            if len(self.hashes) > MOST_PIECES:
                self.hashes = [self._counted()]
            return
        found = values.value_counts()
        for value, count in zip(
            found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True
        ):
            self.counts[value] += count
        if len(self.counts) > LARGEST * self.min_count:
            self._give_up()

    def learned(self) -> Rule:
        """The dictionary, or the size of the table and its rows that are admitted."""
        if not self.hashed:
            admitted = sorted(value for value, count in self.counts.items() if count >= self.min_count)
            if len(admitted) <= LARGEST:
                return Dictionary(tuple(admitted))
            self._give_up()
        distinct, counts = self._counted()
        admitted_hashes = distinct[counts >= self.min_count]
        rows = self.rows or table_rows(len(admitted_hashes))
        if self.min_count <= 1:
            return Hashed(rows, seen=filter_of(distinct) if self.of_ids else None)
        bits = np.zeros(rows, dtype=bool)
        bits[Hashed(rows).of(admitted_hashes)] = True
        return Hashed.of_bits(bits)

    def _counted(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct hashes so far, and how often each occurred."""
        every = np.concatenate([np.empty(0, np.uint64), *(hashes for hashes, _ in self.hashes)])
        distinct, place = np.unique(every, return_inverse=True)
        counts = np.concatenate([np.empty(0), *(counts for _, counts in self.hashes)])
        return distinct, np.bincount(place, counts, len(distinct))

    def _give_up(self) -> None:
        # More values than a dictionary should hold.
        values = pa.array(list(self.counts))
        self.hashes.append((hash_column(values), np.fromiter(self.counts.values(), np.int64, len(values))))
        self.hashed, self.counts = True, Counter()


def values_of(column: pa.Array) -> pa.Array:
    """Every value of a column of categories, or of lists of them, as int64 or strings."""
    return plain(_bags(column)[0].drop_null())


def plain(values: pa.Array) -> pa.Array:
    """Categories of any type as int64 or strings."""
    kind = pa.int64() if pa.types.is_integer(values.type) and values.type != pa.uint64() else pa.string()
    return values if values.type == kind else values.cast(kind)


def _bags(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The values one after the other, and how many belong to each row, int32; nulls within bags are left out."""
    if not pa.types.is_list(column.type):
        return column, np.ones(len(column), dtype=np.int32)
    values = column.flatten()
    counts = pc.list_value_length(column)
    lengths = (counts.fill_null(0) if counts.null_count else counts).to_numpy().astype(np.int32)
    if values.null_count:
        owner = np.repeat(np.arange(len(column)), lengths)[values.is_valid().to_numpy(zero_copy_only=False)]
        lengths = np.bincount(owner, minlength=len(column)).astype(np.int32)
        values = values.drop_null()
    return values, np.array(lengths)
