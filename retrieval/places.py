"""Items in the two-tower model's space: how alike they are, and how often they are taken at all; for the ranker.

The model's score of a user and an item says one thing of a whole history. The ranker reads beside it to which of the
user's items the candidate is near (docs/log/ranker.md#places-in-the-towers-space).

Legend: C candidates, n candidates and H behaviours of one request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.index import ItemIndex
from retrieval.requests import Requests


@dataclass(frozen=True)
class Places:
    """A space in which the ranker compares items, and the column ``match_two_tower_bias``.

    Attributes:
        index: of all items, also of those that may not be returned. The last column of its vectors is no direction
            but the item's bias.
    """

    index: ItemIndex
    names: tuple[str, ...] = ("match_two_tower_bias",)

    def between(self, item_id: np.ndarray, behaved: np.ndarray) -> np.ndarray:
        """Cosines of candidates int64 (n) with behaved items int64 (H), float32 (n, H), 0 where unknown."""
        return self._directions(item_id) @ self._directions(behaved).T

    def columns(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The bias of every candidate, float32 (C, 1), 0 where unknown; arguments as in ``Similarities.of``."""
        return self.index.gather(item_id)[0][:, -1:]

    def _directions(self, item_id: np.ndarray) -> np.ndarray:
        placed = self.index.gather(item_id)[0][:, :-1]
        return placed / np.maximum(np.linalg.norm(placed, axis=1, keepdims=True), 1e-6)
