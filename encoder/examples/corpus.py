"""The catalogue and its queries, tokenised and decoded once and addressed by row for training.

Rows are positions in this corpus; they have no meaning outside the encoder.

Shapes: M items or queries, N pictures, S picture side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from dataset.contracts import DataError
from dataset.tables import Dataset
from encoder.backbone.packing import Sample
from encoder.content import Content, item_content, query_content, tokenize_fields
from encoder.examples.augment import augment
from encoder.parts.chain import chain_body, chain_fields, chain_values
from encoder.pictures.cache import Decoded
from encoder.pictures.decode import decode_images, decode_twice
from encoder.pictures.region import core_region
from run.progress import track

NO_IMAGE = -1

Change: TypeAlias = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # of pictures that training sees
Tokenise: TypeAlias = Callable[[Sequence[Content]], list[tuple[list[int], list[int]]]]


@dataclass(frozen=True)
class Side:
    """One side of the corpus: M items or queries.

    Attributes:
        ids: int64 (M), as in the dataset.
        tokens: text tokens of each row, at most ``Size.text_tokens``, empty without text.
        kinds: field of each token: title, category, attribute or description (``encoder.content``).
        image: int64 (M), rows of ``Corpus.pixels``, ``NO_IMAGE`` without a picture.
    """

    ids: np.ndarray
    tokens: list[list[int]]
    kinds: list[list[int]]
    image: np.ndarray

    @cached_property
    def has_text(self) -> np.ndarray:
        """bool (M)."""
        return np.array([bool(row) for row in self.tokens], dtype=bool)

    @cached_property
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
    """All items and queries that training reads.

    Attributes:
        items, queries: the two sides.
        spu: int64, product code of each item.
        records: each item's fields as Python values, for the question-answer templates.
        asked: each query's text.
        pixels: uint8 (N, S, S, 3), the pictures of both sides, and possibly others; or float32 (N, F), what frozen
            towers see in them.
        regions: uint8 (N, S, S, 3), the core region of each picture; None if the recipe does not use regions.
        change: how training varies pictures.
    """

    items: Side
    queries: Side
    spu: np.ndarray
    records: list[dict[str, Any]]
    asked: list[str | None]
    pixels: np.ndarray
    regions: np.ndarray | None = None
    change: Change = augment

    @property
    def has_content(self) -> bool:
        """Whether any item has words or a picture."""
        return bool((self.items.has_text | self.items.has_image).any())

    def samples(self, side: Side, rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> list[Sample]:
        """Samples of ``rows``, each with its text and its picture where the masks ask for it and it exists."""
        return [
            Sample(
                tokens=side.tokens[row] if with_text else [],
                pictures=self.pictures(int(side.image[row])) if with_image else (),
                kinds=side.kinds[row] if with_text else None,
            )
            for row, with_text, with_image in zip(rows.tolist(), text.tolist(), image.tolist(), strict=True)
        ]

    def pictures(self, image: int) -> tuple[np.ndarray, ...]:
        """The picture in row ``image`` of ``pixels``, with its core region if regions are used; () for NO_IMAGE."""
        if image == NO_IMAGE:
            return ()
        whole = self.pixels[image]
        return (whole,) if self.regions is None else (whole, self.regions[image])


def catalogue_texts(dataset: Dataset, item_ids: np.ndarray, chains: bool = False) -> list[str]:
    """Every text that the tokenizer may be trained on: of the items in ``item_ids``, then of the queries.

    Args:
        dataset: the dataset.
        item_ids: int64, items that may be learned from.
        chains: also the items' attribute chains, so that they take few tokens.
    """
    items = dataset.items.filter(pc.is_in(dataset.items["item_id"], pa.array(item_ids))).to_pylist()
    texts = [item_content(row).words for row in items]
    if chains:
        names = chain_fields(items)
        texts += [chain_body(chain_values(row, names)) for row in items]
    return [text for text in [*texts, *(q or "" for q in dataset.queries["text"].to_pylist())] if text]


def read_corpus(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text_tokens: int,
    px: int,
    item_ids: np.ndarray,
    regions: bool = False,
    decoded: Decoded | None = None,
) -> Corpus:
    """Tokenise every text and decode every picture of some items and all queries of a dataset.

    An item or query whose picture does not decode has none here.

    Args:
        dataset: the dataset.
        tokenizer: the model's tokenizer.
        text_tokens: most tokens of a text.
        px: side of a picture in pixels.
        item_ids: int64, the items to read.
        regions: also find the core region of every picture (MOON §2.1).
        decoded: the dataset's pictures at ``px``; None: decode the pictures that are needed.

    Raises:
        DataError: a picture that an item or query names is missing, or none decodes.
    """
    wanted = _named_pictures(dataset, item_ids)
    if decoded is None:
        decoded = Decoded(*decode_images(_image_bytes(dataset.images, wanted), wanted, px))

    def tokenised(contents: Sequence[Content]) -> list[tuple[list[int], list[int]]]:
        return tokenize_fields(tokenizer, contents, text_tokens)

    corpus = corpus_of(dataset, item_ids, tokenised, decoded)
    if not regions:
        return corpus
    return replace(corpus, regions=_regions(_image_bytes(dataset.images, wanted), decoded, px))


def corpus_of(
    dataset: Dataset, item_ids: np.ndarray, tokenised: Tokenise, pictures: Decoded, change: Change = augment
) -> Corpus:
    """The corpus of some items and all queries of a dataset.

    Args:
        dataset: the dataset.
        item_ids: int64, the items to read.
        tokenised: from contents to tokens and the field of each.
        pictures: by id; an item or query whose picture is not among them has none here.
        change: how training varies pictures.

    Raises:
        DataError: a picture that an item or query names is missing in the dataset.
    """
    items = _items(dataset, item_ids)
    records, queries = items.to_pylist(), dataset.queries.to_pylist()
    _image_bytes(dataset.images, _named_pictures(dataset, item_ids))
    place = pictures.rows

    def side(key: str, rows: list[dict[str, Any]], content_of: Callable[[dict[str, Any]], Content]) -> Side:
        texts = tokenised([content_of(row) for row in rows])
        image = [place.get(row["image_id"], NO_IMAGE) for row in rows]
        return Side(
            ids=np.array([row[key] for row in rows], dtype=np.int64),
            tokens=[tokens for tokens, _ in texts],
            kinds=[kinds for _, kinds in texts],
            image=np.array(image, dtype=np.int64),
        )

    return Corpus(
        items=side("item_id", records, item_content),
        queries=side("query_id", queries, query_content),
        spu=items["spu"].to_numpy(),
        records=records,
        asked=[row["text"] for row in queries],
        pixels=pictures.pixels,
        change=change,
    )


def _items(dataset: Dataset, item_ids: np.ndarray) -> pa.Table:
    items = dataset.items.filter(pc.is_in(dataset.items["item_id"], pa.array(item_ids)))
    return items.select(["item_id", "title", "description", "category", "attributes", "spu", "image_id"])


def _named_pictures(dataset: Dataset, item_ids: np.ndarray) -> list[str]:
    """The ids of the pictures of the items and of all queries."""
    named = (_items(dataset, item_ids)["image_id"], dataset.queries["image_id"])
    return sorted({one for column in named for one in column.drop_null().to_pylist()})


def _regions(contents: Mapping[str, bytes], decoded: Decoded, px: int) -> np.ndarray:
    """The core region of each picture in ``contents``, at the resolution that ``encoder.encode`` uses."""
    out = np.zeros_like(decoded.pixels)
    for row, name in enumerate(track(decoded.image_ids, "core regions", unit="pictures")):
        if name in contents:
            out[row] = core_region(decode_twice(contents[name], px)[1], px)
    return out


def _image_bytes(images: pa.Table, wanted: Sequence[str]) -> Mapping[str, bytes]:
    contents = dict(zip(images["image_id"].to_pylist(), images["bytes"].to_pylist(), strict=True))
    missing = [name for name in wanted if name not in contents]
    if missing:
        raise DataError(
            f"images: expected {len(wanted)} pictures named by items and queries, "
            f"{len(missing)} are missing, first {missing[:3]}. Run 'moon dataset' again."
        )
    return {name: contents[name] for name in wanted}
