"""What a user took before and may take again: the source of repeats.

An item is worth the sum over the user's likes of it of 2^(-age / half-life), where age is the number of their likes
since: with a long half-life the order is by how often, with a short one by how recently, and which of the two says
more is fitted to the log, inside the run (cf. Hu et al., SIGIR 2020, on personal item frequency).

The online store keeps the latest behaviours, and what somebody buys every month is not among them; so this is the
log's own record, as of when it was loaded, followed by what the user has done since.

Legend: T likes, R requests, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file

from dataset.contracts import POSITIVE_CODES
from dataset.log import Log
from retrieval.index import ItemIndex
from retrieval.jagged import Retrieved, best_first, stack
from retrieval.requests import Requests
from retrieval.sources import CANDIDATES, Source, filtered
from run.artifacts import Artifact, open_artifact, write_artifact

HALF_LIVES = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # likes, that are tried
UNKNOWN = 20  # where no user of the log took anything again
LATEST = 2_000  # likes of a user that are read
ASKED = 2_000  # users at most whose last takings are withheld to choose a half-life
TENSORS = "likes.safetensors"


@dataclass(frozen=True)
class Repeats:
    """What users liked, and how much each like says of what they take again.

    Attributes:
        half_life: in likes.
        user_id, item_id: int64 (T), ordered by user, then as in the log.
        time_us: int64 (T), when each became available.
    """

    half_life: float
    user_id: np.ndarray
    item_id: np.ndarray
    time_us: np.ndarray

    @classmethod
    def of(cls, log: pa.Table, half_life: float) -> Repeats:
        """Of EVENTS rows, each of which is read by the requests after it only."""
        found = Log.of(log)
        rows = np.flatnonzero(found.positive)
        rows = rows[np.argsort(found.user[rows], kind="stable")]
        return cls(half_life, found.user[rows], found.item[rows], found.available_us[rows])

    def past(self, requests: Requests, r: int) -> np.ndarray:
        """What the user of a request liked before it, int64 item ids, oldest first: the log, then what came since."""
        user, time_us = int(requests.user_id[r]), int(requests.time_us[r])
        first, stop = np.searchsorted(self.user_id, [user, user + 1])
        stop = first + int(np.searchsorted(self.time_us[first:stop], time_us))
        did = slice(requests.history.offsets[r], requests.history.offsets[r + 1])
        since = requests.history.time_us[did] > self.time_us.max(initial=0)
        since &= np.isin(requests.history.code[did], POSITIVE_CODES)
        return np.append(self.item_id[first:stop], requests.history.item_id[did][since])[-LATEST:]

    def worth(self, requests: Requests, r: int) -> tuple[np.ndarray, np.ndarray]:
        """The distinct items that the user of a request liked, int64, ascending, and their worth, float32."""
        return worth(self.past(requests, r), self.half_life)

    @classmethod
    def open(cls, artifact: Artifact) -> Repeats:
        """Open an artifact of kind "repeats"."""
        return cls(float(artifact.config["half_life"]), **load_file(artifact.file(TENSORS)))

    def save(self, out: Path, parents: Mapping[str, Artifact], reached: Mapping[str, float]) -> Artifact:
        """Write an artifact of kind "repeats".

        Args:
            out: where to write.
            parents: role -> artifact that it was made from.
            reached: NDCG of every half-life tried, for the reader of the manifest.
        """
        config = {"half_life": self.half_life, "reached": dict(reached)}
        with write_artifact(out, "repeats", config, parents) as folder:
            tensors = {name: getattr(self, name) for name in ("user_id", "item_id", "time_us")}
            save_file(tensors, folder / TENSORS)
        return open_artifact(out, "repeats")


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
    asked = _withheld(Repeats.of(log, UNKNOWN), seed)
    if not asked:
        return UNKNOWN, {}
    reached = {str(one): float(np.mean([_ndcg(*each, one) for each in asked])) for one in HALF_LIVES}
    return max(HALF_LIVES, key=lambda one: reached[str(one)]), reached


def _withheld(liked: Repeats, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of some users what they liked before their last moment, and what of it they took again in that."""
    starts = np.flatnonzero(np.append(True, np.diff(liked.user_id) > 0)[: len(liked.user_id)])
    stops = np.append(starts[1:], len(liked.user_id))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for place in np.random.default_rng((seed, 9)).permutation(len(starts)):
        start, stop = starts[place], stops[place]
        cut = start + int(np.searchsorted(liked.time_us[start:stop], liked.time_us[stop - 1]))
        past = liked.item_id[start:cut][-LATEST:]
        again = np.intersect1d(liked.item_id[cut:stop], past)
        if len(again):
            found.append((past, again))
        if len(found) == ASKED:
            break
    return found


def _ndcg(past: np.ndarray, again: np.ndarray, half_life: float) -> float:
    ids, _ = best_first(*worth(past, half_life), CANDIDATES)
    place = np.flatnonzero(np.isin(ids, again))
    return float((1 / np.log2(2 + place)).sum() / (1 / np.log2(2 + np.arange(len(again)))).sum())


class RepeatsSource(Source):
    """Items that the user took before, by how often and how recently.

    Args:
        repeats: says what each is worth.
        index: the items that may be answered and their categories.
    """

    name = "repeats"

    def __init__(self, repeats: Repeats, index: ItemIndex) -> None:
        self._repeats, self.index = repeats, index

    def retrieve_batch(self, requests: Requests, k: int) -> Retrieved:
        """Each request's k items that are worth most of those that its user took."""
        return filtered(requests, k, self._search)

    def score(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """What each item is worth to the request's user, float32 [C]: 0 for one that they did not take."""
        out = np.zeros(len(item_id), dtype=np.float32)
        for request in np.flatnonzero(np.diff(offsets) > 0):
            known, values = self._repeats.worth(requests, int(request))
            mine = slice(offsets[request], offsets[request + 1])
            if len(known):
                place = np.searchsorted(known, item_id[mine]).clip(max=len(known) - 1)
                out[mine] = np.where(known[place] == item_id[mine], values[place], 0)
        return out

    def _search(self, requests: Requests, k: int, category: str | None) -> Retrieved:
        answers = []
        for request in range(len(requests)):
            known, values = self._repeats.worth(requests, request)
            passing = self.index.contains(known, category)
            answers.append(best_first(known[passing], values[passing], k))
        return stack(answers)
