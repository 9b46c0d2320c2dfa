"""Quality of item vectors by themselves: cross-modal and same-product recall, and the geometry of the space.

A task is defined by its pool: N items, all of which are candidates for every query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evaluation.encoder_tasks import own, recall, variants
from evaluation.metrics import Measurement
from feature_repo.embedding_check import anisotropy


@dataclass(frozen=True)
class Pool:
    """Vectors of N items from an encoder, from all content and from single modalities.

    Attributes:
        spu: int64 of shape (N), product code; variants of one product share it.
        item: float32 of shape (N, D), unit rows, from everything known of the item.
        image: float32 of shape (N, D), from its picture only; zeros where it has none. None: not measured.
        text: float32 of shape (N, D), from its text only; zeros where it has none. None: not measured.
    """

    spu: np.ndarray
    item: np.ndarray
    image: np.ndarray | None = None
    text: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.spu)


def encoder_quality(pool: Pool, split: str = "test", prefix: str = "encoder") -> Iterator[Measurement]:
    """Recall@{1, 5, 10} of five directions over the pool, then anisotropy and effective rank of the item vectors.

    ``image_to_item``, ``text_to_item``, ``item_to_item``: query with one variant, find the other items of the same
    product among the N - 1 other items (an item without other variants is a candidate, but not a query).
    ``image_to_text``, ``text_to_image``: find the item's own text or image among all N. Ties count by expectation
    (see ``recall``).

    Yields:
        ``prefix/direction/recall@k`` and ``prefix/chance/direction/recall@k`` (expectation of a random
        order) with n = queries; ``prefix/anisotropy`` and ``prefix/effective_rank`` with n = items.
    """
    sides = {"item": pool.item, "image": pool.image, "text": pool.text}
    for source, target in (
        ("image", "item"),
        ("text", "item"),
        ("item", "item"),
        ("image", "text"),
        ("text", "image"),
    ):
        query, candidate = sides[source], sides[target]
        if query is None or candidate is None:
            continue
        among_items = target == "item"
        truth = variants(pool.spu) if among_items else own(len(pool))
        yield from recall(f"{source}_to_{target}", query, candidate, truth, among_items, split, prefix)
    present = np.any(pool.item != 0, axis=1)
    if present.sum() > 1:
        vectors = pool.item[present]
        yield Measurement(f"{prefix}/anisotropy", anisotropy(vectors), len(vectors), split)
        yield Measurement(f"{prefix}/effective_rank", effective_rank(vectors), len(vectors), split)


def effective_rank(vectors: np.ndarray) -> float:
    """Dimensions in use: exp of the entropy of the normalised singular values (Roy and Vetterli 2007).

    Args:
        vectors: float32 of shape (N, D), not centred.
    """
    gram = vectors.astype(np.float64).T @ vectors.astype(np.float64)
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    fraction = singular / singular.sum()
    fraction = fraction[fraction > 1e-12]
    return float(np.exp(-np.sum(fraction * np.log(fraction))))
