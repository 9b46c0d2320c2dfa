"""Build the search of a run: what items say, and the vectors of their pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dataset.tables import Dataset
from dataset.withheld import withheld_queries
from feature_repo.vectors import Vectors
from retrieval.index import ItemIndex
from retrieval.retriever import Retriever
from retrieval.search.choose import DEPTH, chosen_shares, nearest, title_words
from retrieval.search.search import Asked, Judge, QueryEncoder, Scored, Search, Shares
from run.progress import track

AT_ONCE = 256  # pictures encoded together


def build_search(
    folder: Path, dataset: Dataset, retriever: Retriever, encode: QueryEncoder, judge: Judge | None, seed: int
) -> None:
    """Write ``picture_index`` and ``search`` into the folder of a run.

    Args:
        folder: of the run.
        dataset: catalogue, queries and judgements.
        retriever: its index and the embedding's vectors.
        encode: the encoder that made the embedding.
        judge: the relevance head; None where no query was judged.
        seed: of what is drawn.
    """
    vectors, rng = retriever.vectors, np.random.default_rng(seed)
    parents = {"embedding": retriever.artifacts["embedding"]}
    pictures = picture_index(dataset, vectors, encode)
    pictures.save(folder / "picture_index", parents)
    shares = Shares(nearest=nearest(pictures.matrix, rng))
    search = replace(Search.of(dataset.items, pictures, retriever.index), shares=shares)

    def ask(text: str | None, image: bytes | None) -> Scored:
        return search.scored(Asked.of(encode, text, image), DEPTH, judge)

    withheld = withheld_queries(dataset.judgements)
    queries = withheld[vectors.queries.gather(withheld)[1]]
    chosen = chosen_shares(shares, ask, dataset, queries, title_words(dataset.items), rng)
    replace(search, shares=chosen).save(folder / "search", parents)


def picture_index(dataset: Dataset, vectors: Vectors, encode: QueryEncoder) -> ItemIndex:
    """The vector of every item's picture alone; zeros without a picture, or where the item could not be encoded."""
    items = dataset.items.select(["item_id", "image_id"]).sort_by("item_id")
    ids, images = items["item_id"].to_numpy(), items["image_id"].to_pylist()
    rows: dict[str, list[int]] = {}
    for row, (image, encoded) in enumerate(zip(images, vectors.gather(ids)[1].tolist(), strict=True)):
        if image is not None and encoded:
            rows.setdefault(image, []).append(row)
    matrix, distinct = np.zeros((len(ids), vectors.width), dtype=np.float32), list(rows)
    for start in track(range(0, len(distinct), AT_ONCE), "embed pictures alone", unit="batches"):
        some = distinct[start : start + AT_ONCE]
        alone = encode([(None, dataset.image_bytes(image)) for image in some])
        for image, vector in zip(some, alone, strict=True):
            matrix[rows[image]] = vector
    return ItemIndex.build(ids, matrix)
