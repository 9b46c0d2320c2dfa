"""Plain ways to search, beside which ours is shown: BM25, TF-IDF, the vectors alone, colours.

Legend: N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from dataset.tables import Dataset
from retrieval.colours import colours
from retrieval.index import ItemIndex
from retrieval.words import item_texts

WORD = r"[^\W_]+"
SATURATION, LENGTH = 1.2, 0.75  # k1 and b

# A text or a picture -> the score of every item, float32 (N); None: this method cannot search so.
Scores = Callable[[str | None, bytes | None], np.ndarray | None]


def plain_methods(
    dataset: Dataset,
    index: ItemIndex,
    encode: Callable[[Sequence[tuple[str | None, bytes | None]]], np.ndarray],
) -> Mapping[str, tuple[np.ndarray, Scores]]:
    """Name -> ids of the N items it answers, int64, and its scores."""
    items = dataset.items.sort_by("item_id")
    ids = items["item_id"].to_numpy()
    texts = [
        f"{text} {' '.join(category)}"
        for text, category in zip(item_texts(items), items["category"].to_pylist(), strict=True)
    ]
    methods: dict[str, tuple[np.ndarray, Scores]] = {
        "vectors": (index.ids, lambda text, image: index.matrix @ encode([(text, image)])[0])
    }
    if any(text.strip() for text in texts):
        methods |= {"bm25": (ids, _bm25(texts)), "tf_idf": (ids, _tf_idf(texts))}
    if len(dataset.images):
        methods["colour"] = (ids, _colour(dataset, items))
    return methods


def _bm25(texts: Sequence[str]) -> Scores:
    counter = CountVectorizer(token_pattern=WORD)
    counts = sparse.csr_array(counter.fit_transform(texts), dtype=np.float32)
    length = np.asarray(counts.sum(axis=1)).reshape(-1)
    spoken = np.bincount(counts.indices, minlength=counts.shape[1])
    weight = np.log(1 + (len(texts) - spoken + 0.5) / (spoken + 0.5))
    row = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
    saturated = counts.data + SATURATION * (1 - LENGTH + LENGTH * length[row] / length.mean())
    counts.data = (weight[counts.indices] * counts.data * (SATURATION + 1) / saturated).astype(np.float32)
    by_word = counts.T.tocsr()

    def scores(text: str | None, image: bytes | None) -> np.ndarray | None:
        if text is None:
            return None
        found: np.ndarray = (
            sparse.csr_array(counter.transform([text]), dtype=np.float32) @ by_word
        ).toarray()[0]
        return found

    return scores


def _tf_idf(texts: Sequence[str]) -> Scores:
    rows = TfidfVectorizer(token_pattern=WORD)
    by_word = rows.fit_transform(texts).T.tocsr()
    return lambda text, image: None if text is None else (rows.transform([text]) @ by_word).toarray()[0]


def _colour(dataset: Dataset, items: pa.Table) -> Scores:
    rows = colours([dataset.image_bytes(image) for image in items["image_id"].to_pylist()])
    return lambda text, image: None if image is None else rows @ colours([image])[0]
