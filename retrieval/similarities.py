"""How like a user's history a candidate is, in every space in which items can be compared: columns of the ranker.

A learned model could find these numbers in ids and vectors, given enough users; plain summaries of them are what
logistic regression wins with on logs of the usual size (docs/log/ranker.md#summaries-of-similarity). They are made by
one function in training, evaluation and serving.

Legend: R requests, C candidates, S columns, n candidates and H behaviours of one request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dataset.contracts import POSITIVE_CODES
from dataset.days import DAY_US
from feature_repo.vectors import rows_of
from retrieval.index import ItemIndex
from retrieval.requests import Requests

BEHAVIOURS = 50  # the latest of a user that a candidate is compared with
LARGEST = 3  # similarities of the mean of the largest
FADE_US = DAY_US / 8  # in which a behaviour's weight falls to 1 / e: what counts is this visit
KINDS = ("mean", "largest", "three_largest", "fading", "liked_less_disliked")


class Space(Protocol):
    """A way to compare items."""

    def between(self, item_id: np.ndarray, behaved: np.ndarray) -> np.ndarray:
        """Similarity of candidates int64 (n) to behaved items int64 (H), float32 (n, H), 0 where unknown."""
        ...


@dataclass(frozen=True)
class Categories:
    """Items of the same category path are 1 alike, others 0.

    Attributes:
        item_ids: int64 (M), ascending.
        number: int64 (M), equal for items of equal paths.
    """

    item_ids: np.ndarray
    number: np.ndarray

    @classmethod
    def of(cls, index: ItemIndex) -> Categories:
        """Of all items of an index."""
        order = np.argsort(index.ids)
        _, number = np.unique(np.array(index.paths, dtype=np.str_), return_inverse=True)
        return cls(index.ids[order], number[order])

    def between(self, item_id: np.ndarray, behaved: np.ndarray) -> np.ndarray:
        """1 where candidate and behaved item have the same path, float32 (n, H)."""
        left, right = self._of(item_id), self._of(behaved)
        return ((left[:, None] == right) & (left[:, None] >= 0)).astype(np.float32)

    def _of(self, item_id: np.ndarray) -> np.ndarray:
        rows = rows_of(self.item_ids, item_id)
        return np.where(rows < 0, -1, self.number[rows]) if len(self.number) else rows


class Columns(Protocol):
    """Further columns of the ranker."""

    @property
    def names(self) -> tuple[str, ...]:
        """The S columns."""
        ...

    def columns(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Every (request, candidate) pair, float32 (C, S); arguments as in ``Similarities.of``."""
        ...


@dataclass(frozen=True)
class Similarities:
    """The columns ``match_<space>_<kind>`` of all spaces, and ``match_behaviours``, the length of the history.

    Attributes:
        spaces: by name.
        beside: what else the ranker reads of a request and a candidate.
    """

    spaces: Mapping[str, Space]
    beside: tuple[Columns, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The S columns."""
        return (*self._own, *(name for one in self.beside for name in one.names))

    @property
    def _own(self) -> tuple[str, ...]:
        return (*(f"match_{space}_{kind}" for space in self.spaces for kind in KINDS), "match_behaviours")

    def of(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Summaries of every (request, candidate) pair, float32 (C, S).

        Args:
            requests: R requests.
            item_id: int64 (C), grouped by request.
            offsets: int64 (R + 1).
        """
        parts = [one.columns(requests, item_id, offsets) for one in self.beside]
        return np.concatenate([self._summaries(requests, item_id, offsets), *parts], axis=1)

    def _summaries(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        out = np.zeros((len(item_id), len(self._own)), dtype=np.float32)
        history = requests.history
        liked = np.isin(history.code, POSITIVE_CODES)
        for r in range(len(requests)):
            stop = history.offsets[r + 1]
            past = slice(max(history.offsets[r], stop - BEHAVIOURS), stop)
            mine = slice(offsets[r], offsets[r + 1])
            out[mine, -1] = np.log1p(past.stop - past.start)
            if past.start == past.stop or mine.start == mine.stop:
                continue
            age_us = np.maximum(requests.time_us[r] - history.time_us[past], 0)
            fading = np.exp(-age_us / FADE_US).astype(np.float32)
            for number, space in enumerate(self.spaces.values()):
                alike = space.between(item_id[mine], history.item_id[past])
                first = number * len(KINDS)
                out[mine, first : first + len(KINDS)] = summaries(alike, liked[past], fading)
        return out


def summaries(alike: np.ndarray, liked: np.ndarray, fading: np.ndarray) -> np.ndarray:
    """The KINDS of similarities, float32 (n, 5).

    Mean, largest, mean of the three largest and the fading sum are of what was liked; the last is the sum over what
    was liked less that over what was disliked, by the number of behaviours.

    Args:
        alike: float32 (n, H).
        liked: bool (H).
        fading: float32 (H), weights of the fading sum.
    """
    out = np.zeros((len(alike), len(KINDS)), dtype=np.float32)
    out[:, 4] = alike @ np.where(liked, 1, -1).astype(np.float32) / len(liked)
    if liked.any():
        good = alike[:, liked]
        most = min(LARGEST, good.shape[1])
        top = np.partition(good, good.shape[1] - most, axis=1)[:, -most:]
        out[:, 0], out[:, 1], out[:, 2] = good.mean(axis=1), top.max(axis=1), top.mean(axis=1)
        out[:, 3] = good @ fading[liked]
    return out
