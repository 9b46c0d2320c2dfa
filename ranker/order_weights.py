"""Learn how much retrieval's order and what a ranker says count in the order of an answer (``ranker.order``).

Sources that count likes know a part of it already, and what is learned from little is a guess. So both
weights are the likeliest, not negative, given what validation users liked next: a softmax over the candidates of each
request (McFadden, Conditional logit analysis, 1974). Retrieval's order stays unless users that the weights were not
learned from are clearly better off with them (docs/log/ranker.md#taken-and-liked, #only-what-was-found).

Shapes: R requests, C candidates of all requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from dataset.jagged import offsets_of, owners
from feature_repo.frame import StoredRequests
from ranker.choice import clearly_better
from ranker.inputs.columns import chunks
from ranker.order import RETRIEVED, Order, log_chance
from ranker.score import Ranker

FOLDS = 5  # of the users, each tried with what the others teach
FEWEST = 20  # users who liked a candidate: what fewer say of an order is chance


@dataclass(frozen=True)
class Asked:
    """Requests, their candidates as retrieval orders them, and what a ranker says of each.

    Attributes:
        offsets: int64 (R + 1).
        retrieved: float64 (C), scores of retrieval's order.
        said: float64 (C), what the ranker says: its score, or the logarithm of the chance of a like.
        liked: bool (C), whether the user liked it next.
        rated: whether they are of ratings.
    """

    offsets: np.ndarray
    retrieved: np.ndarray
    said: np.ndarray
    liked: np.ndarray
    rated: bool

    @classmethod
    def of(cls, ranker: Ranker, stored: StoredRequests, at_once: int, rated: bool) -> Asked:
        """As a ``Ranker`` scores stored requests whose candidates carry ``label`` and RETRIEVED, some at a time."""
        parts = [
            (
                np.diff(frame.offsets),
                frame.candidates[RETRIEVED].to_numpy().astype(np.float64),
                ranker.score(frame),
                frame.candidates["label"].to_numpy() > 0,
            )
            for frame in chunks(stored, at_once)
        ]
        counts, retrieved, scores, liked = (np.concatenate(some) for some in zip(*parts, strict=True))
        said = log_chance(scores) if rated else scores.astype(np.float64)
        return cls(offsets_of(counts), retrieved, said, liked, rated)

    @property
    def request(self) -> np.ndarray:
        """The request of each candidate, int64 (C)."""
        return owners(self.offsets)

    def losses(self, order: Order) -> np.ndarray:
        """Of every request the negative log-likelihoods of its likes added up, float64 (R)."""
        score = order.retrieved * self.retrieved + (order.liked + order.taken) * self.said
        return np.bincount(
            self.request, self.liked * -_log_softmax(score, self.request), minlength=len(self.offsets) - 1
        )

    def likeliest(self, own: np.ndarray, with_ranker: bool) -> Order:
        """The likeliest weights of the requests ``own`` bool (R); the ranker's is 0 unless ``with_ranker``."""
        kept = own[self.request]
        request = self.request[kept]
        x = np.stack([self.retrieved, self.said if with_ranker else 0 * self.said], axis=1)[kept]
        y = self.liked[kept]
        likes = max(int(y.sum()), 1)
        each = np.bincount(request, y, minlength=len(own))  # likes of a request

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            log_share = _log_softmax(x @ weights, request)
            off = each[request] * np.exp(log_share) - y
            return float(-log_share[y].sum() / likes), x.T @ off / likes

        found = minimize(loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 2).x
        weight = float(found[1]) if with_ranker else 0.0
        return Order(float(found[0]), **{"liked" if self.rated else "taken": weight})


def learn_order(asked: Asked, seed: int) -> Order:
    """The likeliest weights, or retrieval's order where left-out users are not clearly better off with them.

    Args:
        asked: one request per user.
        seed: of the folds.
    """
    count = len(asked.offsets) - 1
    likes = np.bincount(asked.request, asked.liked, minlength=count).astype(np.int64)
    some = likes > 0  # another says nothing
    fold = np.random.default_rng(seed).permutation(count) % FOLDS
    losses = np.zeros((2, count))
    for one in range(FOLDS):
        own, left_out = some & (fold != one), fold == one
        for row in (0, 1):
            losses[row, left_out] = asked.losses(asked.likeliest(own, bool(row)))[left_out]
    if some.sum() < FEWEST or not clearly_better(
        losses[0, some], losses[1, some], likes[some], np.flatnonzero(some)
    ):
        return Order()
    return asked.likeliest(some, True)


def _log_softmax(score: np.ndarray, request: np.ndarray) -> np.ndarray:
    """Of candidates within their request, float64 [C]; ``request`` int64 [C] ascends."""
    if not len(request):
        return score
    first = np.flatnonzero(np.append(True, request[1:] != request[:-1]))
    count = np.diff(np.append(first, len(request)))
    score = score - np.repeat(np.maximum.reduceat(score, first), count)
    return score - np.repeat(np.log(np.add.reduceat(np.exp(score), first)), count)
