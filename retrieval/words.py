"""What items say: their texts as TF-IDF rows, which need no training and know every word of the catalogue.

Legend: M items, W words, n candidates, H behaviours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file
from scipy import sparse

from dataset.jagged import offsets_of, owners
from feature_repo.vectors import merged, rows_of
from run.artifacts import Artifact, open_artifact, write_artifact

WORD = re.compile(r"[^\W_]+")  # letters and digits of any script
TENSORS, WEIGHTS = "items.safetensors", "words.parquet"


@dataclass(frozen=True)
class Vocabulary:
    """The words of M texts and what each weighs; equal to scikit-learn's ``TfidfVectorizer`` with the pattern WORD.

    Attributes:
        column_of: word -> its column.
        weight: float64 (W), ln((1 + M) / (1 + df)) + 1 for a word of df texts.
    """

    column_of: Mapping[str, int]
    weight: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> Vocabulary:
        """Count the words of texts."""
        documents = Counter(word for text in texts for word in dict.fromkeys(_words(text)))
        column_of = {word: column for column, word in enumerate(documents)}
        counts = np.array(list(documents.values()), dtype=np.float64)
        return cls(column_of, np.log((1 + len(texts)) / (1 + counts)) + 1)

    def rows(self, texts: Sequence[str | None]) -> Any:
        """Texts as unit rows of count times weight, float32 (len(texts), W), csr_array; other words are left out."""
        counts = [Counter(map(self.column_of.get, _words(text))) for text in texts]
        known = [sorted((column, n) for column, n in one.items() if column is not None) for one in counts]
        column, count = np.array([pair for one in known for pair in one], np.int64).reshape(-1, 2).T
        value = count * self.weight[column]
        offsets = offsets_of([len(one) for one in known])
        row = owners(offsets)
        norm = np.sqrt(np.bincount(row, weights=value**2, minlength=len(known)))
        scaled = (value / norm[row]).astype(np.float32)
        return sparse.csr_array((scaled, column, offsets), shape=(len(known), len(self.weight)))


@dataclass(frozen=True)
class Words:
    """Items as unit rows of their words.

    Attributes:
        item_ids: int64 (M), ascending.
        rows: float32 (M, W), scipy's csr_array, empty rows for items without a text.
        vocabulary: of the catalogue; items that come later change nothing in it.
        artifact: where it was opened from; None for one built in memory.
    """

    item_ids: np.ndarray
    rows: Any
    vocabulary: Vocabulary
    artifact: Artifact | None = None

    @classmethod
    def of(cls, items: pa.Table) -> Words:
        """Of ITEMS rows."""
        items = items.sort_by("item_id")
        texts = item_texts(items)
        vocabulary = Vocabulary.of(texts)
        return cls(items["item_id"].to_numpy(), vocabulary.rows(texts), vocabulary)

    def save(self, out: Path, parents: Mapping[str, Artifact]) -> Artifact:
        """Write an artifact of kind ``words``."""
        words, weight = list(self.vocabulary.column_of), self.vocabulary.weight
        config = {"items": len(self.item_ids), "words": len(words)}
        with write_artifact(out, "words", config, parents) as folder:
            tensors = {
                "item_id": self.item_ids,
                "offsets": self.rows.indptr.astype(np.int64),
                "column": self.rows.indices.astype(np.int64),
                "value": self.rows.data,
            }
            save_file(tensors, folder / TENSORS)
            pq.write_table(
                pa.table({"word": pa.array(words, pa.string()), "weight": weight}), folder / WEIGHTS
            )
        return open_artifact(out, "words")

    @classmethod
    def open(cls, artifact: Artifact) -> Words:
        """Open an artifact of kind "words"."""
        tensors, table = load_file(artifact.file(TENSORS)), pq.read_table(artifact.file(WEIGHTS))
        column_of = {word: column for column, word in enumerate(table["word"].to_pylist())}
        shape = (len(tensors["item_id"]), len(column_of))
        rows = sparse.csr_array((tensors["value"], tensors["column"], tensors["offsets"]), shape=shape)
        return cls(tensors["item_id"], rows, Vocabulary(column_of, table["weight"].to_numpy()), artifact)

    def with_items(self, items: pa.Table) -> Words:
        """The same with ITEMS rows added or replaced; words that the catalogue lacked are left out."""
        kept, order, ids = merged(self.item_ids, items["item_id"].to_numpy())
        rows = sparse.vstack([self.rows[kept], self.vocabulary.rows(item_texts(items))], format="csr")
        return replace(self, item_ids=ids, rows=rows[order])

    def take(self, item_id: np.ndarray) -> Any:
        """Rows of these items, float32 (n, W), csr_array; empty where unknown."""
        if not len(self.item_ids):
            return sparse.csr_array((len(item_id), self.rows.shape[1]), dtype=np.float32)
        place = rows_of(self.item_ids, item_id)
        known, rows = place >= 0, self.rows[place.clip(min=0)]
        return rows if known.all() else sparse.diags_array(known.astype(np.float32)) @ rows

    @cached_property
    def by_word(self) -> Any:
        """The rows turned over for searches: float32 (W, M), csr_array."""
        return self.rows.T.tocsr()

    def means(self, item_id: np.ndarray, weight: np.ndarray, offsets: np.ndarray) -> Any:
        """Weighted means of the rows of R groups of items, scaled to unit rows, float32 (R, W), csr_array.

        Args:
            item_id: int64 (T), grouped; unknown ones have no words.
            weight: float32 (T).
            offsets: int64 (R + 1).
        """
        groups = len(offsets) - 1
        weights = sparse.csr_array((weight, np.arange(len(item_id)), offsets), shape=(groups, len(item_id)))
        sums = weights @ self.take(item_id)
        norm = np.sqrt(np.asarray(sums.multiply(sums).sum(axis=1), dtype=np.float32).reshape(groups))
        scale = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
        return (sparse.diags_array(scale) @ sums).tocsr()

    def between(self, item_id: np.ndarray, behaved: np.ndarray) -> np.ndarray:
        """Cosine of candidates int64 (n) with behaved items int64 (H), float32 (n, H)."""
        dense: np.ndarray = (self.take(item_id) @ self.take(behaved).T).toarray()
        return dense


def item_text(title: str | None, description: str | None, attributes: Sequence[tuple[str, str]]) -> str:
    """The text of a TF-IDF row: title, description and attribute values."""
    return " ".join([title or "", description or "", *(value for _, value in attributes)])


def item_texts(items: pa.Table) -> list[str]:
    """The ``item_text`` of each row of ITEMS."""
    columns = (items[name].to_pylist() for name in ("title", "description", "attributes"))
    return [item_text(title, text, values or ()) for title, text, values in zip(*columns, strict=True)]


def _words(text: str | None) -> list[str]:
    return WORD.findall((text or "").lower())
