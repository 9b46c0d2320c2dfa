"""What a user took before and may take again: the source of repeats.

An item is worth the sum over the user's likes of it of 2^(-age / half-life), where age is the number of their likes
since: with a long half-life the order is by how often, with a short one by how recently, and which of the two says
more is fitted to the log, inside the run (cf. Hu et al., SIGIR 2020, on personal item frequency).

Legend: R requests, C candidates.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataset.ndcg import ndcg
from retrieval.index import ItemIndex
from retrieval.jagged import Retrieved, best_first, stack
from retrieval.requests import Requests
from retrieval.sources import CANDIDATES, Source, filtered
from retrieval.taken import Taken

HALF_LIVES = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # likes, that are tried
UNKNOWN = 20  # where no user of the log took anything again
LATEST = 2_000  # likes of a user that are read
ASKED = 2_000  # users at most whose last takings are withheld to choose a half-life


def worth(liked: np.ndarray, half_life: float) -> tuple[np.ndarray, np.ndarray]:
    """The distinct items of a history, int64, ascending, and what each is worth, float32.

    Args:
        liked: int64 item ids, oldest first.
        half_life: in likes.
    """
    item_id, place = np.unique(liked, return_inverse=True)
    age = np.arange(len(liked))[::-1]
    values = np.bincount(place, weights=2.0 ** (-age / half_life), minlength=len(item_id))
    return item_id, values.astype(np.float32)


def fit_repeats(log: pa.Table, seed: int) -> tuple[float, dict[str, float]]:
    """The half-life whose order finds best what users took again.

    Of each of at most ASKED users the likes of their last moment are withheld; those of items that they had liked
    before are asked for.

    Args:
        log: EVENTS, no newer than what the caller may learn from.
        seed: of the users who are drawn.

    Returns:
        the half-life, and NDCG of each; UNKNOWN and nothing where nobody took anything again.
    """
    asked = _withheld(Taken.of(log), seed)
    if not asked:
        return UNKNOWN, {}
    reached = {}
    for half_life in HALF_LIVES:
        orders = (best_first(*worth(past, half_life), CANDIDATES)[0] for past, _ in asked)
        found = [ndcg(ids, again, CANDIDATES) for ids, (_, again) in zip(orders, asked, strict=True)]
        reached[str(half_life)] = float(np.mean(found))
    return max(HALF_LIVES, key=lambda one: reached[str(one)]), reached


def _withheld(taken: Taken, seed: int) -> list[tuple[np.ndarray, dict[int, float]]]:
    """Of some users what they liked before their last moment, and what of it they took again in that, of grade 1."""
    starts = np.flatnonzero(np.append(True, np.diff(taken.user_id) > 0)[: len(taken.user_id)])
    stops = np.append(starts[1:], len(taken.user_id))
    found: list[tuple[np.ndarray, dict[int, float]]] = []
    for place in np.random.default_rng((seed, 9)).permutation(len(starts)):
        start, stop = starts[place], stops[place]
        cut = start + int(np.searchsorted(taken.time_us[start:stop], taken.time_us[stop - 1]))
        past = taken.item_id[start:cut][-LATEST:]
        again = np.intersect1d(taken.item_id[cut:stop], past)
        if len(again):
            found.append((past, dict.fromkeys(again.tolist(), 1.0)))
        if len(found) == ASKED:
            break
    return found


class RepeatsSource(Source):
    """Items that the user took before, by how often and how recently.

    Args:
        taken: what users took.
        half_life: in likes.
        index: the items that may be answered and their categories.
    """

    name = "repeats"

    def __init__(self, taken: Taken, half_life: float, index: ItemIndex) -> None:
        self._taken, self._half_life, self.index = taken, half_life, index

    def retrieve_batch(self, requests: Requests, k: int) -> Retrieved:
        """Each request's k items that are worth most of those that its user took."""
        return filtered(requests, k, self._search)

    def score(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """What each item is worth to the request's user, float32 [C]: 0 for one that they did not take."""
        out = np.zeros(len(item_id), dtype=np.float32)
        for request in np.flatnonzero(np.diff(offsets) > 0):
            known, values = self._worth(requests, int(request))
            mine = slice(offsets[request], offsets[request + 1])
            if len(known):
                place = np.searchsorted(known, item_id[mine]).clip(max=len(known) - 1)
                out[mine] = np.where(known[place] == item_id[mine], values[place], 0)
        return out

    def _search(self, requests: Requests, k: int, category: str | None) -> Retrieved:
        answers = []
        for request in range(len(requests)):
            known, values = self._worth(requests, request)
            passing = self.index.contains(known, category)
            answers.append(best_first(known[passing], values[passing], k))
        return stack(answers)

    def _worth(self, requests: Requests, r: int) -> tuple[np.ndarray, np.ndarray]:
        return worth(self._taken.before(requests, r)[-LATEST:], self._half_life)
