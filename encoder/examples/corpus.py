"""The catalogue and its queries, tokenised and decoded once, addressed by row for training.

Rows are positions in this corpus only; they never leave the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from dataset.contracts import DataError
from dataset.tables import Dataset
from encoder.content import item_text
from encoder.images import decode_images
from encoder.model import Sample
from encoder.tokenizer import tokenize

NO_IMAGE = -1


@dataclass(frozen=True)
class Side:
    """One column of the corpus: M items or queries.

    Attributes:
        ids: int64 (M), as in the dataset.
        tokens: text tokens of each row, at most ``Size.text_tokens``, empty without words.
        image: int64 (M), rows of ``Corpus.pixels``, ``NO_IMAGE`` without a picture.
    """

    ids: np.ndarray
    tokens: list[list[int]]
    image: np.ndarray

    @property
    def has_text(self) -> np.ndarray:
        """bool (M)."""
        return np.array([bool(row) for row in self.tokens], dtype=bool)

    @property
    def has_image(self) -> np.ndarray:
        """bool (M)."""
        return self.image != NO_IMAGE

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Row of each id, -1 where unknown."""
        order = np.argsort(self.ids, kind="stable")
        place = np.searchsorted(self.ids, ids, sorter=order).clip(max=max(len(order) - 1, 0))
        if not len(order):
            return np.full(len(ids), -1, dtype=np.int64)
        found = order[place]
        return np.where(self.ids[found] == ids, found, -1)


@dataclass(frozen=True)
class Corpus:
    """Everything training reads.

    Attributes:
        items, queries: the two sides.
        spu: int64, product code of each item.
        records: each item's fields as Python values, for the question-answer templates.
        pixels: uint8 (N, S, S, 3), the distinct pictures of both sides.
    """

    items: Side
    queries: Side
    spu: np.ndarray
    records: list[dict[str, Any]]
    pixels: np.ndarray

    def samples(self, side: Side, rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> list[Sample]:
        """Inputs for ``rows``, each showing its text and its picture where asked for and present."""
        return [
            Sample(
                tokens=side.tokens[row] if with_text else [],
                pixels=self.pixels[side.image[row]] if with_image and side.image[row] != NO_IMAGE else None,
            )
            for row, with_text, with_image in zip(rows.tolist(), text.tolist(), image.tolist(), strict=True)
        ]


def catalogue_texts(dataset: Dataset, item_ids: np.ndarray) -> list[str]:
    """Every text a tokenizer may know: of the items in ``item_ids``, then of the queries."""
    items = dataset.items.filter(pc.is_in(dataset.items["item_id"], pa.array(item_ids)))
    texts = [item_text(row) or "" for row in items.to_pylist()]
    return [text for text in [*texts, *(q or "" for q in dataset.queries["text"].to_pylist())] if text]


def read_corpus(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text_tokens: int,
    px: int,
    item_ids: np.ndarray,
) -> Corpus:
    """Tokenise every text and decode every picture of some items and all queries of a dataset.

    Args:
        dataset: whose items and queries to read.
        tokenizer: of the backbone that will be trained.
        text_tokens: tokens kept of a text.
        px: side of a picture in pixels.
        item_ids: int64, the items to read.

    Raises:
        DataError: a picture that an item or query names is missing or does not decode.
    """
    items = dataset.items.filter(pc.is_in(dataset.items["item_id"], pa.array(item_ids)))
    items = items.select(["item_id", "title", "description", "category", "attributes", "spu", "image_id"])
    records = items.to_pylist()
    item_images, query_images = items["image_id"].to_pylist(), dataset.queries["image_id"].to_pylist()
    wanted = sorted({name for name in [*item_images, *query_images] if name is not None})
    pixels = decode_images(_image_bytes(dataset.images, wanted), wanted, px)
    place = {name: row for row, name in enumerate(wanted)}

    def side(ids: pa.ChunkedArray, texts: list[str], images: Sequence[str | None]) -> Side:
        rows = np.array([NO_IMAGE if name is None else place[name] for name in images], dtype=np.int64)
        return Side(ids.to_numpy(), tokenize(tokenizer, texts, text_tokens), rows)

    return Corpus(
        items=side(items["item_id"], [item_text(row) or "" for row in records], item_images),
        queries=side(
            dataset.queries["query_id"], [t or "" for t in dataset.queries["text"].to_pylist()], query_images
        ),
        spu=items["spu"].to_numpy(),
        records=records,
        pixels=pixels,
    )


def _image_bytes(images: pa.Table, wanted: Sequence[str]) -> Mapping[str, bytes]:
    contents = dict(zip(images["image_id"].to_pylist(), images["bytes"].to_pylist(), strict=True))
    missing = [name for name in wanted if name not in contents]
    if missing:
        raise DataError(
            f"images: expected {len(wanted)} pictures named by items and queries, "
            f"{len(missing)} are missing, first {missing[:3]}. Run 'moon import' again."
        )
    return contents
