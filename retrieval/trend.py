"""What is popular now: how fast a like ceases to count is fitted to the log, inside the run.

News are old after a day, films after years. The source of popular items counts every like 2^(-age / half-life), by
the half-life whose list finds most of what users newly liked later in the same log, and all likes alike where none is
clearly better (docs/log/retrieval.md#popular-now).

Legend: T likes.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataset.jagged import owners
from retrieval.counting import ASKED, LEAST, finds_more
from retrieval.likes import Likes
from retrieval.sources import CANDIDATES

BEFORE = 0.75  # of the likes are counted, to find those after
HALVES = range(1, 11)  # half-lives tried: the span of the log over two to the power of these


def fit_half_life(log: pa.Table, seed: int) -> tuple[float | None, dict[str, float]]:
    """How fast a like ceases to count for what is popular.

    The likes are cut at the time before which BEFORE of them lie; each of at most ASKED users with a like after it is
    asked for what they newly liked. NDCG of one list for all, less what each liked before.

    Args:
        log: EVENTS, no newer than what the caller may learn from.
        seed: of the users who are drawn.

    Returns:
        the half-life in microseconds, None where no other is better by more than a standard error over users; and
        the NDCG by ``plain`` counts and by the ``fitted`` ones. Of fewer than LEAST users, or of one moment: None and
        nothing.
    """
    likes = Likes.of(log)
    if not len(likes.column):
        return None, {}
    cut = int(np.sort(likes.time_us)[int(BEFORE * len(likes.time_us))])
    span = cut - int(likes.time_us.min())
    user = owners(likes.offsets)
    late = likes.time_us >= cut
    asked = np.unique(user[late])
    if span <= 0 or len(asked) < LEAST:
        return None, {}
    asked = np.sort(np.random.default_rng((seed, 8)).permutation(asked)[:ASKED])
    early = likes.where(~late)

    def gains(half_life_us: float | None) -> np.ndarray:
        trend = early.trend(half_life_us)
        place = np.empty(len(trend), dtype=np.int64)
        place[np.lexsort((np.arange(len(trend)), -trend))] = np.arange(len(trend))
        place[trend == 0] = CANDIDATES + len(trend)
        return np.array([_gain(place, late, likes, one) for one in asked])

    plain = gains(None)
    tried = [(span / 2**power, gains(span / 2**power)) for power in HALVES]
    best, found = max(tried, key=lambda one: float(one[1].mean()))
    if finds_more(plain, found):
        return best, {"plain": float(plain.mean()), "fitted": float(found.mean())}
    return None, {"plain": float(plain.mean()), "fitted": float(plain.mean())}


def _gain(place: np.ndarray, late: np.ndarray, likes: Likes, user: int) -> float:
    """NDCG of what a user liked late, by items' places in one list, less what the user liked early."""
    own = slice(likes.offsets[user], likes.offsets[user + 1])
    places, is_late = place[likes.column[own]], late[own]
    wanted = places[is_late] - np.searchsorted(np.sort(places[~is_late]), places[is_late])
    ideal = (1 / np.log2(2 + np.arange(min(len(wanted), CANDIDATES)))).sum()
    return float((1 / np.log2(2 + wanted[wanted < CANDIDATES])).sum() / ideal)
