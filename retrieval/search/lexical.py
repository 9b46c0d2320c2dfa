"""Search by words: BM25 over what items say, where a word also finds words written almost alike.

Legend: M items, W words.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from dataset.jagged import offsets_of
from feature_repo.vectors import merged
from retrieval.search.spelling import Spelling, words_of

# The values that are used where nothing is known about a collection (Robertson and Zaragoza, 2009, "The Probabilistic
# Relevance Framework: BM25 and Beyond").
SATURATION, LENGTH = 1.2, 0.75
DESCRIBED = (
    1 / 3
)  # of a word of a description: prose names other things too. docs/log/retrieval.md has the measurement


@dataclass(frozen=True)
class Said:
    """What M items say of a text.

    Attributes:
        share: float32 (M), an item's BM25 over the most that any text could have, 0 to 1.
        words: int64 (M), how many of the text's words it says, as they are or written almost alike.
        titled: bool (M), whether its title is the text, word for word.
    """

    share: np.ndarray
    words: np.ndarray
    titled: np.ndarray


@dataclass(frozen=True)
class Lexical:
    """The words of items, searchable.

    Attributes:
        item_ids: int64 (M), ascending.
        counts: float32 (M, W), scipy's csr_array: how often each item says each word.
        words: W folded words.
        titles: int64 (M), a hash of each item's title; 0 without one.
    """

    item_ids: np.ndarray
    counts: Any
    words: Sequence[str]
    titles: np.ndarray

    @classmethod
    def of(cls, items: pa.Table) -> Lexical:
        """Of ITEMS rows."""
        return cls(*_counted(items.sort_by("item_id"), {}))

    def with_items(self, items: pa.Table) -> Lexical:
        """The same with ITEMS rows added or replaced, and with their words."""
        column_of = {word: column for column, word in enumerate(self.words)}
        added, new, words, titles = _counted(items.sort_by("item_id"), column_of)
        kept, order, ids = merged(self.item_ids, added)
        old = self.counts[kept]
        old.resize((old.shape[0], len(words)))
        counts = sparse.vstack([old, new], format="csr")[order]
        return Lexical(ids, counts, words, np.concatenate([self.titles[kept], titles])[order])

    def said(self, text: str) -> Said:
        """What every item says of a text."""
        share = np.zeros(len(self.item_ids), dtype=np.float32)
        words = np.zeros(len(self.item_ids), dtype=np.int64)
        asked, most = words_of(text), 0.0
        for word, times in Counter(asked).items():
            columns, likeness = self._spelling.alike(word)
            counts = self._by_word[:, columns]
            count = counts @ likeness**2  # a word itself before its likes
            rows = np.flatnonzero(count)
            # How many items say it, each by how nearly: else it is worth nothing where every item says a like of it.
            having = np.minimum((counts > 0) @ likeness**2, 1).sum()
            weight = times * np.log(1 + (len(share) - having + 0.5) / (having + 0.5))
            share[rows] += weight * count[rows] / (count[rows] + self._length[rows])
            words[rows] += 1
            most += weight
        return Said(share / max(most, 1e-9), words, (self.titles == _title(asked)) & bool(asked))

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self.words)

    @cached_property
    def _by_word(self) -> Any:
        return self.counts.tocsc()

    @cached_property
    def _length(self) -> np.ndarray:
        """What a count is compared with, float32 (M): more for items that say more than others."""
        length = np.asarray(self.counts.sum(axis=1), dtype=np.float32).reshape(-1)
        mean = length.sum() / max(len(length), 1)
        return SATURATION * (1 - LENGTH + LENGTH * length / max(mean, np.float32(1)))


def _counted(items: pa.Table, column_of: dict[str, int]) -> tuple[np.ndarray, Any, list[str], np.ndarray]:
    """Ids, counts, all words and titles of ITEMS rows; adds new words to ``column_of``."""
    said = list(_counts(items))
    column = [column_of.setdefault(word, len(column_of)) for one in said for word in one]
    count = np.fromiter(chain.from_iterable(one.values() for one in said), np.float32, len(column))
    offsets = offsets_of([len(one) for one in said])
    counts = sparse.csr_array((count, np.array(column, np.int64), offsets), shape=(len(said), len(column_of)))
    titles = np.array([_title(words_of(title)) for title in items["title"].to_pylist()], np.int64)
    return items["item_id"].to_numpy(), counts, list(column_of), titles


def _counts(items: pa.Table) -> Iterator[dict[str, float]]:
    """How often each item says each word: in its title, category and attribute values, and in its description."""
    columns = (items[name].to_pylist() for name in ("title", "category", "attributes", "description"))
    for title, category, attributes, description in zip(*columns, strict=True):
        values = [value for _, value in attributes or ()]
        said: dict[str, float] = dict(
            Counter(words_of(" ".join(filter(None, [title, *(category or ()), *values]))))
        )
        for word, times in Counter(words_of(description)).items():
            said[word] = said.get(word, 0.0) + DESCRIBED * times
        yield said


def _title(words: Sequence[str]) -> int:
    """A hash of a title's words, int64; 0 of none."""
    digest = hashlib.sha256(" ".join(words).encode()).digest() if words else b""
    return int.from_bytes(digest[:8], "big", signed=True)
