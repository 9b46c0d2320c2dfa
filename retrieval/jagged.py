"""Rows of different lengths: the answers to a batch of requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dataset.jagged import offsets_of


@dataclass(frozen=True)
class Retrieved:
    """Answers to R requests, each sorted by score descending then id ascending, never padded.

    Attributes:
        offsets: int64 of shape (R + 1); request r owns rows offsets[r]:offsets[r + 1].
        item_id: int64 of shape (T), distinct within a request.
        score: float32 of shape (T).
    """

    offsets: np.ndarray
    item_id: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, request: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(self.offsets[request], self.offsets[request + 1])
        return self.item_id[rows], self.score[rows]

    def first(self, requests: int) -> Retrieved:
        """The answers to the first requests."""
        rows = slice(self.offsets[requests])
        return Retrieved(self.offsets[: requests + 1], self.item_id[rows], self.score[rows])

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self[request] for request in range(len(self)))


def best_first(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of ``(ids, scores)``, score descending then id ascending."""
    if len(ids) > 2 * k:
        contenders = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        ids, scores = ids[contenders], scores[contenders]
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def group_best(
    request: np.ndarray, item_id: np.ndarray, score: np.ndarray, requests: int, k: int
) -> Retrieved:
    """Keep each request's k best rows.

    Args:
        request: int64 [T], the row's request, any order.
        item_id: int64 [T], distinct within a request.
        score: float32 [T].
        requests: R, also counting requests without rows.
        k: how many to keep of each.
    """
    if (np.diff(request) < 0).any():
        order = np.argsort(request)
        request, item_id, score = request[order], item_id[order], score[order]
    bounds = np.searchsorted(request, np.arange(requests + 1))
    return stack(
        best_first(item_id[start:stop], score[start:stop], k)
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
    )


def stack(answers: Iterable[tuple[np.ndarray, np.ndarray]]) -> Retrieved:
    """Put the ``(ids, scores)`` of R requests one after the other."""
    pairs = list(answers)
    return Retrieved(
        offsets_of(np.array([len(ids) for ids, _ in pairs], dtype=np.int64)),
        np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in pairs)]),
        np.concatenate([np.empty(0, np.float32), *(scores for _, scores in pairs)]),
    )
