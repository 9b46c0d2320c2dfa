"""What a user took before and may take again: the source of repeats.

An item is worth the sum over its behaviours of 2^(-age / half-life), where age is the number of the user's
behaviours since: with a long half-life the order is by how often, with a short one by how recently, and which of
the two says more is fitted to the log, inside the run (cf. Hu et al., SIGIR 2020, on personal item frequency).

Legend: R requests, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset.contracts import POSITIVE_CODES
from dataset.jagged import offsets_of, owners
from dataset.log import Log
from feature_repo.frame import History
from retrieval.index import ItemIndex
from retrieval.jagged import Retrieved, best_first, stack
from retrieval.requests import Requests
from retrieval.sources import CANDIDATES, Source, filtered
from run.artifacts import Artifact, open_artifact, write_artifact

HALF_LIVES = (1, 2, 5, 10, 20, 50, 100, 200)  # behaviours, that are tried
ASKED = 2_000  # users at most whose last takings are withheld to choose one
UNKNOWN = 20.0  # where no user of the log took anything again


@dataclass(frozen=True)
class Repeats:
    """How much each behaviour of a user says of what they take again.

    Attributes:
        half_life: in behaviours.
        artifact: where it was opened from; None for one built in memory.
    """

    half_life: float
    artifact: Artifact | None = None

    def worth(self, history: History) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The distinct liked items of each of R histories, and what they are worth.

        Returns:
            offsets int64 (R + 1), item ids int64, ascending within a request, and float32 values.
        """
        positive = np.isin(history.code, POSITIVE_CODES)
        request, item_id = owners(history.offsets)[positive], history.item_id[positive]
        stop = np.cumsum(np.bincount(request, minlength=len(history)))
        age = stop[request] - 1 - np.arange(len(request))
        order = np.lexsort((item_id, request))
        request, item_id, age = request[order], item_id[order], age[order]
        new = np.append(True, (request[1:] != request[:-1]) | (item_id[1:] != item_id[:-1]))[: len(request)]
        values = np.bincount(np.cumsum(new) - 1, weights=2.0 ** (-age / self.half_life))
        offsets = offsets_of(np.bincount(request[new], minlength=len(history)))
        return offsets, item_id[new], values.astype(np.float32)

    @classmethod
    def open(cls, artifact: Artifact) -> Repeats:
        """Open an artifact of kind "repeats"."""
        return cls(float(artifact.config["half_life"]), artifact)

    def save(self, out: Path, parents: Mapping[str, Artifact], reached: Mapping[str, float]) -> Artifact:
        """Write an artifact of kind "repeats".

        Args:
            out: where to write.
            parents: role -> artifact that it was fitted to.
            reached: NDCG of every half-life tried, for the reader of the manifest.
        """
        with write_artifact(out, "repeats", {"half_life": self.half_life, "reached": dict(reached)}, parents):
            pass
        return open_artifact(out, "repeats")


def fit_repeats(log: pa.Table, behaviours: int, seed: int) -> tuple[Repeats, dict[str, float]]:
    """The half-life whose order finds best what users took again.

    Of each of at most ASKED users the likes of their last moment are withheld; those of items that they had liked
    before are asked for, by their latest behaviours before it.

    Args:
        log: EVENTS, no newer than what the caller may learn from.
        behaviours: the latest of a user that are read.
        seed: of the users who are drawn.

    Returns:
        the repeats, and NDCG of each half-life; UNKNOWN and nothing where nobody took anything again.
    """
    history, wanted = _withheld(Log.of(log), behaviours, seed)
    if not len(history):
        return Repeats(UNKNOWN), {}
    reached = {str(one): _ndcg(Repeats(one), history, wanted) for one in HALF_LIVES}
    return Repeats(max(HALF_LIVES, key=lambda one: reached[str(one)])), reached


def _withheld(log: Log, behaviours: int, seed: int) -> tuple[History, list[np.ndarray]]:
    """Histories of users before their last moment, and what they took again in it: one array of item ids each."""
    rows = np.flatnonzero(log.positive)
    rows = rows[np.argsort(log.user[rows], kind="stable")]
    user, item, time_us = log.user[rows], log.item[rows], log.available_us[rows]
    starts = np.flatnonzero(np.append(True, user[1:] != user[:-1])[: len(rows)])
    stops = np.append(starts[1:], len(rows))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for place in np.random.default_rng((seed, 9)).permutation(len(starts)):
        start, stop = starts[place], stops[place]
        cut = start + int(np.searchsorted(time_us[start:stop], time_us[stop - 1]))
        past = item[max(start, cut - behaviours) : cut]
        again = np.intersect1d(item[cut:stop], past)
        if len(again):
            found.append((past, again))
        if len(found) == ASKED:
            break
    counts = np.array([len(past) for past, _ in found], dtype=np.int64)
    item_id = np.concatenate([past for past, _ in found] or [np.empty(0, np.int64)])
    liked = np.full(len(item_id), POSITIVE_CODES[0])
    history = History(offsets_of(counts), item_id, liked, np.zeros(len(item_id), np.int64))
    return history, [again for _, again in found]


def _ndcg(repeats: Repeats, history: History, wanted: list[np.ndarray]) -> float:
    offsets, item_id, values = repeats.worth(history)
    gains = []
    for request, again in enumerate(wanted):
        own = slice(offsets[request], offsets[request + 1])
        ids, _ = best_first(item_id[own], values[own], CANDIDATES)
        place = np.flatnonzero(np.isin(ids, again))
        ideal = (1 / np.log2(2 + np.arange(len(again)))).sum()
        gains.append((1 / np.log2(2 + place)).sum() / ideal)
    return float(np.mean(gains))


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
        """Each request's k items of its history that are worth most."""
        return filtered(requests, k, self._search)

    def score(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """What each item is worth to the request's user, float32 [C]: 0 for one that they did not take."""
        bounds, known, values = self._repeats.worth(requests.history)
        out = np.zeros(len(item_id), dtype=np.float32)
        for request in np.flatnonzero((np.diff(bounds) > 0) & (np.diff(offsets) > 0)):
            mine, own = slice(offsets[request], offsets[request + 1]), slice(*bounds[request : request + 2])
            place = np.searchsorted(known[own], item_id[mine]).clip(max=len(known[own]) - 1)
            out[mine] = np.where(known[own][place] == item_id[mine], values[own][place], 0)
        return out

    def _search(self, requests: Requests, k: int, category: str | None) -> Retrieved:
        bounds, item_id, values = self._repeats.worth(requests.history)
        passing = self.index.contains(item_id, category)
        answers = []
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            own = np.flatnonzero(passing[start:stop]) + start
            answers.append(best_first(item_id[own], values[own], k))
        return stack(answers)
