"""Hard negatives: other items of the positive's category (MOON Embedding §1.5, MOON §2.1).

The papers do not say how they exclude false negatives. Here an item is never a negative of its variants or of items
that users took together with it.

Shapes: M items, B positives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

LEAST = 8  # items that a category needs so that negatives are drawn from it; not recovered
TRIES = 4  # random draws per negative before the whole category is searched for an allowed item


def deepest_categories(paths: Sequence[Sequence[str] | None], least: int = LEAST) -> np.ndarray:
    """The category that each item's negatives come from: the deepest on its path with enough items.

    Categories are filled from the leaves up: the items of one that is too small are counted one level higher,
    together with those of its small siblings, and at the top without any category.

    Args:
        paths: category path of each item, broadest first.
        least: number of items that a category needs.

    Returns:
        int64 (M), 0..C-1.
    """
    names = [tuple(path or ()) for path in paths]
    settled: list[tuple[str, ...] | None] = [None] * len(names)
    for depth in range(max(map(len, names), default=0), -1, -1):
        open_ones = [row for row, name in enumerate(names) if settled[row] is None and len(name) >= depth]
        count = Counter(names[row][:depth] for row in open_ones)
        for row in open_ones:
            if depth == 0 or count[names[row][:depth]] >= least:
                settled[row] = names[row][:depth]
    code: dict[tuple[str, ...] | None, int] = {}
    return np.array([code.setdefault(name, len(code)) for name in settled], dtype=np.int64)


class CategoryNegatives:
    """Draws negatives from the category of a positive.

    Args:
        category: int64 (M), see ``deepest_categories``.
        spu: int64 (M), product code of each item.
        related: two int64 arrays, rows of items that belong together (bought on one trip, answers to one query) and
            are never negatives of each other, in either order.
    """

    def __init__(self, category: np.ndarray, spu: np.ndarray, related: tuple[np.ndarray, np.ndarray]) -> None:
        self._category, self._spu = category, spu
        self._members = np.argsort(category, kind="stable")
        self._size = np.bincount(category, minlength=1)
        self._start = np.cumsum(self._size) - self._size
        left, right = related
        self._related = np.unique(np.concatenate([self._key(left, right), self._key(right, left)]))

    def draw(
        self,
        item: np.ndarray,
        rng: np.random.Generator,
        count: int = 1,
        anchor: np.ndarray | None = None,
    ) -> np.ndarray:
        """Negatives of each positive, drawn uniformly from the allowed items with replacement.

        Args:
            item: int64 (B), rows of the positives.
            rng: the only source of randomness.
            count: negatives per positive.
            anchor: int64 (B), rows of the anchors if they are items: their variants and related items are excluded
                too.

        Returns:
            int64 (B, count), rows; -1 where the category has no allowed item.
        """
        size, start = self._size[self._category[item]], self._start[self._category[item]]
        place = (rng.random((len(item), count, TRIES)) * size[:, None, None]).astype(np.int64)
        tried = self._members[start[:, None, None] + place]
        allowed = self._allowed(tried, item[:, None, None], None if anchor is None else anchor[:, None, None])
        first = allowed.argmax(-1)[..., None]
        drawn = np.take_along_axis(tried, first, -1)[..., 0]
        missed = ~np.take_along_axis(allowed, first, -1)[..., 0]
        for row in np.flatnonzero(missed.any(1)).tolist():
            members = self._members[start[row] : start[row] + size[row]]
            left = members[self._allowed(members, item[row], None if anchor is None else anchor[row])]
            drawn[row, missed[row]] = rng.choice(left, size=missed[row].sum()) if len(left) else -1
        return drawn

    def _allowed(
        self, tried: np.ndarray, item: np.ndarray | np.int64, anchor: np.ndarray | np.int64 | None
    ) -> np.ndarray:
        allowed = np.ones(tried.shape, dtype=bool)
        for positive in (item,) if anchor is None else (item, anchor):
            allowed &= self._spu[tried] != self._spu[positive]
            allowed &= ~self._are_related(tried, positive)
        return allowed

    def _are_related(self, tried: np.ndarray, positive: np.ndarray | np.int64) -> np.ndarray:
        if not len(self._related):
            return np.zeros(tried.shape, dtype=bool)
        key = self._key(tried, positive)
        return self._related[np.searchsorted(self._related, key).clip(max=len(self._related) - 1)] == key

    def _key(self, left: np.ndarray, right: np.ndarray | np.int64) -> np.ndarray:
        return left * len(self._category) + right
