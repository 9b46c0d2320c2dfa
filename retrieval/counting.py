"""Fit how pairs are counted to a log, inside the run.

Where a log's order says what comes next, what lies near and after counts most; where a whole basket has one time, the
order says nothing. Popularity is worth more to some shops than to others. No such number is a constant: some users'
last likes are withheld, the others are counted in several ways, and a way other than the usual one is taken where it
finds more of them by more than a standard error over users.

Legend: R users who are asked, T likes, U users, I items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from dataset.jagged import entries, owners
from ranker.choice import clearly_better
from retrieval.cooccurrence import PLAIN, Counting, pair_weights
from retrieval.likes import Likes
from retrieval.requests import HISTORY_ITEMS
from retrieval.sources import CANDIDATES

TRIED = {  # one after the other, each given the others, PASSES times at most
    "backward": (1.0, 0.5, 0.25, 0.0),
    "distance": (0.0, 0.5, 1.0),
    "recency": (0.9, 0.8, 0.6, 0.4),
    "candidate": (0.0, 0.1, 0.2, 0.3, 0.5),
    "seen": (0.3, 0.5, 0.7, 1.0),
}
PASSES = 3
ASKED = 3_000  # users who are asked, at most
PAIRS = 4_000_000  # of likes of one user that are counted, about: a larger log is fitted to some of its users
LEAST = 30  # users to learn anything from


def fit_counting(log: pa.Table, seed: int) -> tuple[Counting, dict[str, float]]:
    """How a log's pairs are best counted.

    Args:
        log: EVENTS, no newer than what the caller may learn from.
        seed: of what is drawn.

    Returns:
        the counting, PLAIN where no other is clearly better; and the NDCG of the withheld likes by ``plain`` and by
        the ``fitted`` one. Of a log of fewer than LEAST users with two likes: PLAIN and nothing.
    """
    withheld = _Withheld.of(_some(Likes.of(log), seed), seed)
    if withheld is None:
        return PLAIN, {}
    kept, gains = PLAIN, withheld.gains(PLAIN)
    plain = float(gains.mean())
    for _ in range(PASSES):
        before = kept
        for name, values in TRIED.items():
            others = [replace(kept, **{name: value}) for value in values if value != getattr(kept, name)]
            tried = [(one, withheld.gains(one)) for one in others]
            best, found = max(tried, key=lambda one: float(one[1].mean()))
            if finds_more(gains, found):
                kept, gains = best, found
        if kept == before:
            break
    return kept, {"plain": plain, "fitted": float(gains.mean())}


def finds_more(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the second way gains more than the first by more than a standard error over users, float64 (R) each."""
    users = np.arange(len(first))
    return clearly_better(-first, -second, np.ones_like(users), users)


@dataclass(frozen=True)
class _Withheld:
    """The likes that remain, and the last one of R users.

    Attributes:
        likes: without what is withheld.
        user: int64 [R], place among the users of ``likes``.
        last: int64 [R], column of the withheld item.
    """

    likes: Likes
    user: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, likes: Likes, seed: int) -> _Withheld | None:
        """Withhold the last like of at most ASKED users who have another; None: fewer than LEAST have."""
        able = np.flatnonzero(np.diff(likes.offsets) >= 2)
        if len(able) < LEAST:
            return None
        user = np.sort(np.random.default_rng((seed, 7)).permutation(able)[:ASKED])
        last = likes.offsets[user + 1] - 1
        rest = np.ones(len(likes.column), dtype=bool)
        rest[last] = False
        return cls(likes.where(rest), user, likes.column[last])

    def gains(self, counting: Counting) -> np.ndarray:
        """1 / log2(1 + place) of each withheld like among the first CANDIDATES, else 0; float64 [R]."""
        scores_RI = (self._history(counting.recency) @ self._graph(counting)).tocsr()
        own = self._seen
        scores_RI = scores_RI - scores_RI.multiply(own)
        wanted = np.asarray(scores_RI[np.arange(len(self.user)), self.last]).ravel()
        better = scores_RI.data > wanted[owners(scores_RI.indptr)]
        place = np.bincount(owners(scores_RI.indptr)[better], minlength=len(self.user))
        return np.where((wanted > 0) & (place < CANDIDATES), 1 / np.log2(2 + place), 0.0)

    @cached_property
    def _forward(self) -> dict[float, sp.csr_matrix]:
        """By the exponent of the distance: what pairs count whose candidate came after."""
        return {}

    def _graph(self, counting: Counting) -> sp.csr_matrix:
        if counting.distance not in self._forward:
            ahead = replace(counting, backward=0.0)
            seen, column, value = pair_weights(self.likes, np.arange(len(self.likes.column)), ahead)
            shape = (len(self.likes.items),) * 2
            pairs = sp.coo_matrix((value, (self.likes.column[seen], column)), shape=shape)
            self._forward[counting.distance] = pairs.tocsr()
        ahead = self._forward[counting.distance]
        users = self.likes.users_of.clip(1).astype(np.float64)
        both = ahead + counting.backward * ahead.T
        return (sp.diags(users**-counting.seen) @ both @ sp.diags(users**-counting.candidate)).tocsr()

    def _history(self, recency: float) -> sp.csr_matrix:
        """The weights of each user's newest HISTORY_ITEMS, [R, I]."""
        stop = self.likes.offsets[self.user + 1]
        count = np.minimum(stop - self.likes.offsets[self.user], HISTORY_ITEMS)
        place, offsets = entries(stop - count, count)
        weight = recency ** (np.repeat(stop, count) - 1 - place)
        shape = (len(self.user), len(self.likes.items))
        return sp.csr_matrix((weight, self.likes.column[place], offsets), shape=shape)

    @cached_property
    def _seen(self) -> sp.csr_matrix:
        start, stop = self.likes.offsets[self.user], self.likes.offsets[self.user + 1]
        place, offsets = entries(start, stop - start)
        shape = (len(self.user), len(self.likes.items))
        return sp.csr_matrix((np.ones(len(place)), self.likes.column[place], offsets), shape=shape)


def _some(likes: Likes, seed: int) -> Likes:
    """The likes of users drawn at random, so many that they make about PAIRS pairs; all if there are no more."""
    count = np.diff(likes.offsets)
    drawn = np.random.default_rng((seed, 6)).permutation(len(count))
    few = int(np.searchsorted(np.cumsum(count[drawn] ** 2), PAIRS, side="right"))
    kept = np.zeros(len(count), dtype=bool)
    kept[drawn[: max(few, 1)]] = True
    return likes.where(np.repeat(kept, count))
