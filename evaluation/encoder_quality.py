"""How good item vectors are by themselves: cross-modal and same-product recall, and the shape of the space.

The task is stated by its pool: N items, every one of them a candidate for every query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import Measurement

DEPTHS = (1, 10)
BLOCK = 1024  # queries scored at a time


@dataclass(frozen=True)
class Pool:
    """N items as seen by an encoder, whole and by one modality only.

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
    """Recall@{1, 10} of five directions over the pool, then the shape of the item vectors.

    ``image_to_item``, ``text_to_item``, ``item_to_item``: query with one variant, find the other items of the
    same product among the N - 1 other items (an item without other variants is no query, but a candidate).
    ``image_to_text``, ``text_to_image``: find the item's own other half among all N. Ties count in
    expectation (see ``recall``).

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
        own = target != "item"
        relevant = np.arange(len(pool)) if own else pool.spu
        name = f"{source}_to_{target}"
        yield from recall(name, query, candidate, relevant, exclude_self=not own, split=split, prefix=prefix)
    present = np.any(pool.item != 0, axis=1)
    if present.sum() > 1:
        vectors = pool.item[present]
        yield Measurement(f"{prefix}/anisotropy", anisotropy(vectors), len(vectors), split)
        yield Measurement(f"{prefix}/effective_rank", effective_rank(vectors), len(vectors), split)


def recall(
    name: str,
    query: np.ndarray,
    candidate: np.ndarray,
    group: np.ndarray,
    exclude_self: bool,
    split: str = "test",
    prefix: str = "encoder",
) -> Iterator[Measurement]:
    """Recall@k of candidates of the query's group; row i of both matrices is the same item.

    Rows of zeros (a missing modality) are neither queries nor relevant, but stay in the pool, scored 0.
    Tied candidates share their places: the value is the expectation over all orders of the ties, so constant
    vectors score as chance and not as 1.

    Args:
        name: direction, the middle of the measurement's name.
        query: float32 of shape (N, D).
        candidate: float32 of shape (N, D).
        group: int64 of shape (N); candidates of the query's group are relevant.
        exclude_self: the query's own item is no candidate.
        split: the part the items are from.
        prefix: first part of the names.

    Yields:
        ``prefix/name/recall@k`` and ``prefix/chance/name/recall@k``; nothing if no query has a relevant item.
    """
    pool = len(query) - int(exclude_self)
    has_query, has_candidate = np.any(query != 0, axis=1), np.any(candidate != 0, axis=1)
    code = np.unique(group, return_inverse=True)[1].reshape(-1)
    size = np.bincount(code, weights=has_candidate)[code] - (has_candidate if exclude_self else 0)
    rows = np.flatnonzero(has_query & (size > 0))
    if len(rows) == 0:
        return
    members = np.argsort(code, kind="stable")
    first = np.searchsorted(code[members], code)
    length = np.bincount(code)[code]
    total = np.zeros(len(DEPTHS))
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        score = query[block] @ candidate.T
        if exclude_self:
            score[np.arange(len(block)), block] = -np.inf
        place = np.repeat(np.arange(len(block)), length[block])
        within = np.arange(len(place)) - np.repeat(np.cumsum(length[block]) - length[block], length[block])
        relevant = members[first[block][place] + within]
        kept = has_candidate[relevant] & ~(exclude_self & (relevant == block[place]))
        place, relevant = place[kept], relevant[kept]
        for pairs in np.array_split(np.arange(len(place)), len(place) // BLOCK + 1):
            others, own = score[place[pairs]], score[place[pairs], relevant[pairs], None]
            above, tied = (others > own).sum(axis=1), (others == own).sum(axis=1)
            for column, k in enumerate(DEPTHS):
                found = np.clip((k - above) / tied, 0, 1)
                total[column] += np.sum(found / size[block[place[pairs]]])
    for column, k in enumerate(DEPTHS):
        yield Measurement(f"{prefix}/{name}/recall@{k}", float(total[column]) / len(rows), len(rows), split)
        yield Measurement(f"{prefix}/chance/{name}/recall@{k}", min(1.0, k / pool), len(rows), split)


def anisotropy(vectors: np.ndarray) -> float:
    """Mean cosine between two different rows: 0 for directions spread evenly, 1 for one single direction.

    Args:
        vectors: float32 of shape (N, D), unit rows, N at least 2.
    """
    rows = len(vectors)
    total = vectors.astype(np.float64).sum(axis=0)
    return float((total @ total - np.sum(vectors.astype(np.float64) ** 2)) / (rows * (rows - 1)))


def effective_rank(vectors: np.ndarray) -> float:
    """Dimensions in use: exp of the entropy of the normalised singular values (Roy and Vetterli 2007).

    Args:
        vectors: float32 of shape (N, D), not centred.
    """
    gram = vectors.astype(np.float64).T @ vectors.astype(np.float64)
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    share = singular / singular.sum()
    share = share[share > 1e-12]
    return float(np.exp(-np.sum(share * np.log(share))))
