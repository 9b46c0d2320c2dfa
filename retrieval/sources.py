"""Sources of candidates, their fused proposals, and the match scores the ranker reads.

Every source can answer the same two questions: which items (``retrieve``), and how well does this pair match
(``score``). The second one makes the ranker's ``match_*`` columns in training and in serving alike, for every
candidate whichever source proposed it, so the ranker never sees a number that serving would compute differently.

Legend: R requests, C candidates, P pairs of one chunk, T behaviours, N items, B searches, K answers, D width,
E width of the two-tower model, S sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from dataset.jagged import offsets_of, owners
from feature_repo.frame import Frame
from feature_repo.vectors import rows_of
from retrieval.cooccurrence import Cooccurrence
from retrieval.fusion import EQUAL, Weights, fuse
from retrieval.index import ItemIndex
from retrieval.jagged import Retrieved, best_first, group_best, stack
from retrieval.requests import Interests, Request, Requests, interests

CHUNK_REQUESTS = 4096
CHUNK_PAIRS = 65_536
PER_SOURCE = 500  # candidates asked of every source
CANDIDATES = 500  # of the fused order, for the ranker
RARE = 1  # users who acted on an item that almost nobody acted on, at most


class VectorLookup(Protocol):
    """What sources need of ``feature_repo.vectors.Vectors``; an ``ItemIndex`` has it too."""

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [n, D], zeros where unknown, and which were found, bool [n]."""
        ...


class UserTower(Protocol):
    """What the two-tower source needs of ``ranker.two_tower.train.TwoTower``."""

    def user_vectors(self, frame: Frame) -> np.ndarray:
        """float32 [R, d] of unit norm."""
        ...


class Source(Protocol):
    """A way to find items for a request."""

    name: str

    def retrieve_batch(self, requests: Requests, k: int) -> Retrieved:
        """Each request's k best items, fewer when fewer exist or nothing is known about the request."""
        ...

    def score(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """How well each (request, item) pair matches, float32 [C]; 0 where the source has no score."""
        ...

    def retrieve(self, request: Request, k: int) -> tuple[np.ndarray, np.ndarray]:
        """One request's ``(ids int64, scores float32)``, score descending then id ascending."""
        return self.retrieve_batch(Requests.of([request]), k)[0]


SideVectors = Callable[[Requests], tuple[np.ndarray, np.ndarray]]


class VectorSource(Source):
    """One vector per request, answered by the index: a mean history, a two-tower user, or a query.

    Args:
        name: what it is called in ``match_<name>``.
        index: the items that may be answered, in the space of the vectors.
        side: vectors float32 [R, D] of requests, and which requests have one, bool [R].
    """

    def __init__(self, name: str, index: ItemIndex, side: SideVectors) -> None:
        self.name, self.index, self._side = name, index, side

    def retrieve_batch(self, requests: Requests, k: int) -> Retrieved:
        """Each request's k items of largest inner product; nothing for a request without a vector."""
        return filtered(requests, k, self._search)

    def score(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Inner product of the request's and the item's vectors, float32 [C]."""
        vectors_RD, _ = self._side(requests)
        request = owners(offsets)
        out = np.zeros(len(item_id), dtype=np.float32)
        for start in range(0, len(item_id), CHUNK_PAIRS):
            rows = slice(start, start + CHUNK_PAIRS)
            items_PD, _ = self.index.gather(item_id[rows])
            out[rows] = np.einsum("cd,cd->c", items_PD, vectors_RD[request[rows]])
        return out

    def _search(self, requests: Requests, k: int, category: str | None) -> Retrieved:
        vectors_RD, present = self._side(requests)
        ids_BK, scores_BK = self.index.search(vectors_RD[present], k, category=category)
        counts = np.where(present, ids_BK.shape[1], 0)
        return Retrieved(offsets_of(counts), ids_BK.ravel(), scores_BK.ravel())


class SimilarSource(Source):
    """Items like one of the user's latest: the largest recency-weighted cosine with any of them.

    The k best of a maximum over history items are all among the k best of some history item, so merging one
    index search per distinct item is exact whenever the index is.

    Args:
        index: the items that may be answered.
        vectors: vectors of history items, which need not be answerable themselves.
    """

    name = "similar"

    def __init__(self, index: ItemIndex, vectors: VectorLookup) -> None:
        self.index, self._vectors = index, vectors

    def retrieve_batch(self, requests: Requests, k: int) -> Retrieved:
        """Each request's k items of largest weighted cosine; nothing for an empty history."""
        return filtered(requests, k, self._search)

    def score(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The largest weighted cosine of the item with a history item, float32 [C]; 0 without history."""
        spoken = interests(requests.history)
        seen_TD, found = self._vectors.gather(spoken.item_id)
        seen_TD *= spoken.weight[:, None]
        spoken_kept = offsets_of(np.bincount(owners(spoken.offsets)[found], minlength=len(requests)))
        seen_TD = seen_TD[found]
        out = np.zeros(len(item_id), dtype=np.float32)
        for request in np.flatnonzero((np.diff(spoken_kept) > 0) & (np.diff(offsets) > 0)):
            rows = slice(offsets[request], offsets[request + 1])
            items_PD, known = self.index.gather(item_id[rows])
            best = (seen_TD[spoken_kept[request] : spoken_kept[request + 1]] @ items_PD.T).max(axis=0)
            out[rows] = np.where(known, best, 0)
        return out

    def _search(self, requests: Requests, k: int, category: str | None) -> Retrieved:
        spoken = interests(requests.history)
        items, place = np.unique(spoken.item_id, return_inverse=True)
        vectors_BD, found = self._vectors.gather(items)
        ids_BK, scores_BK = self.index.search(vectors_BD[found], k, category=category)
        row_of = np.cumsum(found) - 1
        known = found[place]
        kept = offsets_of(np.bincount(owners(spoken.offsets)[known], minlength=len(requests)))
        return stack(self._merge(ids_BK, scores_BK, row_of[place][known], spoken.weight[known], kept, k))

    def _merge(
        self,
        ids_BK: np.ndarray,
        scores_BK: np.ndarray,
        searches: np.ndarray,
        weight: np.ndarray,
        offsets: np.ndarray,
        k: int,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Merge each request's searches, each times its weight, keeping an item's largest score."""
        rows_BK = self.index.rows(ids_BK.ravel()).reshape(ids_BK.shape)
        best = np.full(len(self.index), -np.inf, dtype=np.float32)
        for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
            for search, factor in zip(searches[start:stop], weight[start:stop], strict=True):
                touched = rows_BK[search]
                best[touched] = np.maximum(best[touched], scores_BK[search] * factor)
            reached = np.flatnonzero(best > -np.inf)
            yield best_first(self.index.ids[reached], best[reached], k)
            best[reached] = -np.inf


class CooccurrenceSource(Source):
    """Items that co-occur with this user's latest.

    Args:
        cooccurrence: the neighbour graph.
        index: the items that may be answered and their categories.
    """

    name = "cooccurrence"

    def __init__(self, cooccurrence: Cooccurrence, index: ItemIndex) -> None:
        self._graph, self.index = cooccurrence, index
        self._answerable: dict[str | None, np.ndarray] = {}

    def retrieve_batch(self, requests: Requests, k: int) -> Retrieved:
        """Each request's k items of largest co-occurrence with its history."""
        return filtered(requests, k, self._search)

    def score(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Summed co-occurrence of each pair, float32 [C]."""
        return self._graph.score(requests.history, item_id, offsets)

    def _search(self, requests: Requests, k: int, category: str | None) -> Retrieved:
        if category not in self._answerable:
            self._answerable[category] = self.index.contains(self._graph.item_ids, category)
        return self._graph.retrieve_batch(requests.history, k, self._answerable[category])


class PopularSource(Source):
    """The most popular items, for users about whom nothing is known; items without users are left out.

    Args:
        item_ids: int64 [I].
        popularity: float32 [I], users who acted on each.
        index: the items that may be answered and their categories.
        trend: float32 [I], the same, of whom those of long ago count less: what orders them; None: ``popularity``.
    """

    name = "popular"

    def __init__(
        self, item_ids: np.ndarray, popularity: np.ndarray, index: ItemIndex, trend: np.ndarray | None = None
    ) -> None:
        self.index = index
        rows = np.flatnonzero(index.contains(item_ids))
        rows = rows[np.argsort(item_ids[rows])]
        self._item_ids, self._users = item_ids[rows], popularity[rows]
        self._score = np.log1p(popularity[rows] if trend is None else trend[rows])
        self._best: dict[str | None, tuple[np.ndarray, np.ndarray]] = {}

    def retrieve_batch(self, requests: Requests, k: int) -> Retrieved:
        """The same k items for every request of a category."""
        return filtered(requests, k, self._search)

    def score(self, requests: Requests, item_id: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """log(1 + users who acted on the item, the older the less), float32 [C]."""
        place, score = rows_of(self._item_ids, item_id), np.zeros(len(item_id), dtype=np.float32)
        score[place >= 0] = self._score[place[place >= 0]]
        return score

    def rare(self, item_id: np.ndarray) -> np.ndarray:
        """Which items at most RARE users acted on, bool [C]; also those that came since."""
        place = rows_of(self._item_ids, item_id)
        users = np.zeros(len(item_id), dtype=np.float32)
        users[place >= 0] = self._users[place[place >= 0]]
        return users <= RARE

    def _search(self, requests: Requests, k: int, category: str | None) -> Retrieved:
        if category not in self._best:
            inside = self.index.contains(self._item_ids, category)
            self._best[category] = best_first(self._item_ids[inside], self._score[inside], int(inside.sum()))
        ids, scores = (column[:k] for column in self._best[category])
        counts = np.full(len(requests), len(ids))
        return Retrieved(offsets_of(counts), np.tile(ids, len(requests)), np.tile(scores, len(requests)))


def profile_source(index: ItemIndex, vectors: VectorLookup) -> VectorSource:
    """Items like the recency-weighted mean of the user's latest: steadier than ``similar``, less varied."""

    def side(requests: Requests) -> tuple[np.ndarray, np.ndarray]:
        return _mean_vectors(interests(requests.history), vectors)

    return VectorSource("profile", index, side)


def query_source(index: ItemIndex) -> VectorSource:
    """Items like the text or picture of the search."""

    def side(requests: Requests) -> tuple[np.ndarray, np.ndarray]:
        if requests.query_vectors is None:
            return np.zeros((len(requests), index.width), np.float32), np.zeros(len(requests), bool)
        return requests.query_vectors, requests.has_query()

    return VectorSource("query", index, side)


def two_tower_source(towers: UserTower, index: ItemIndex) -> VectorSource:
    """Items near the user in the space of the two-tower model; ``index`` holds its item vectors."""

    def side(requests: Requests) -> tuple[np.ndarray, np.ndarray]:
        if requests.users is None:
            return np.zeros((len(requests), index.width), np.float32), np.zeros(len(requests), bool)
        vectors_RE = np.asarray(towers.user_vectors(requests.two_tower_frame()), dtype=np.float32)
        return vectors_RE, np.ones(len(requests), bool)

    return VectorSource("two_tower", index, side)


def propose(
    sources: Sequence[Source],
    requests: Requests,
    per_source: int = PER_SOURCE,
    weights: Weights = EQUAL,
    most: int = CANDIDATES,
) -> Retrieved:
    """The candidates of R requests: the best of every source, without repeats, fused by rank.

    Args:
        sources: S of them.
        requests: R requests.
        per_source: how many each source is asked for.
        weights: of the sources.
        most: how many are kept of the fused order.
    """
    answers = [source.retrieve_batch(requests, per_source) for source in sources]
    return fuse(answers, weights.of([source.name for source in sources]), most)


def match_scores(
    sources: Sequence[Source], requests: Requests, item_id: np.ndarray, offsets: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """Every source's score of every (request, candidate) pair: the ranker's ``match_*`` columns.

    Args:
        sources: S sources.
        requests: R requests.
        item_id: int64 [C], grouped by request.
        offsets: int64 [R + 1].

    Returns:
        names of the S columns and float32 [C, S].
    """
    names = tuple(f"match_{source.name}" for source in sources)
    columns = [source.score(requests, item_id, offsets) for source in sources]
    return names, np.stack(columns, axis=1)


@dataclass(frozen=True)
class Matches:
    """Every source's score of every candidate of one request: computed once, then read in any order.

    Attributes:
        names: the S columns ``match_<source>``.
        item_id: int64 [C], distinct.
        scores: float32 [C, S], in the order of ``item_id``.
    """

    names: tuple[str, ...]
    item_id: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, sources: Sequence[Source], request: Request, item_id: np.ndarray) -> Matches:
        """Score the candidates ``item_id`` int64 [C] of a request with every source."""
        offsets = np.array([0, len(item_id)], dtype=np.int64)
        names, scores = match_scores(sources, Requests.of([request]), item_id, offsets)
        return cls(names, item_id, scores)

    def rows(self, item_id: np.ndarray) -> np.ndarray:
        """The scores of these candidates, float32 [n, S], in this order."""
        order = np.argsort(self.item_id)
        return self.scores[order[np.searchsorted(self.item_id, item_id, sorter=order)]]

    def named(self, item_id: np.ndarray) -> list[dict[str, float]]:
        """The same as one dictionary per candidate, by column."""
        return [dict(zip(self.names, row, strict=True)) for row in self.rows(item_id).tolist()]


def add_matches(frame: Frame, names: Sequence[str], matches_CS: np.ndarray) -> Frame:
    """The same frame with the given match columns, float32 [C, S], in the order of its candidates."""
    candidates = frame.candidates
    for column, name in enumerate(names):
        candidates = candidates.append_column(name, pa.array(np.ascontiguousarray(matches_CS[:, column])))
    return Frame(frame.requests, candidates, frame.offsets, frame.history)


def _mean_vectors(spoken: Interests, vectors: VectorLookup) -> tuple[np.ndarray, np.ndarray]:
    """Recency-weighted means of unit norm, float32 [R, D], and which requests have one."""
    seen_TD, _ = vectors.gather(spoken.item_id)
    seen_TD *= spoken.weight[:, None]
    means_RD = np.zeros((len(spoken.offsets) - 1, seen_TD.shape[1]), dtype=np.float32)
    filled = np.flatnonzero(np.diff(spoken.offsets) > 0)
    if len(filled):
        means_RD[filled] = np.add.reduceat(seen_TD, spoken.offsets[filled], axis=0)
    norms_R1 = np.linalg.norm(means_RD, axis=1, keepdims=True)
    present = norms_R1[:, 0] > 1e-6
    return np.where(norms_R1 > 1e-6, means_RD / np.maximum(norms_R1, 1e-6), 0).astype(np.float32), present


def filtered(
    requests: Requests, k: int, search: Callable[[Requests, int, str | None], Retrieved]
) -> Retrieved:
    """Answer requests a chunk of one category at a time, then take out what each one excludes.

    Excluding afterwards is exact: ``search`` is asked for as many more as the longest exclusion.
    """
    request, item_id, score = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for category, rows in _chunks(requests):
        part = requests if len(rows) == len(requests) else requests.select(rows)
        longest = max((len(excluded) for excluded in part.exclude), default=0)
        found = search(part, k + longest, category)
        owner = owners(found.offsets)
        kept = ~_excluded(part, owner, found.item_id)
        request.append(rows[owner[kept]])
        item_id.append(found.item_id[kept])
        score.append(found.score[kept])
    return group_best(
        np.concatenate(request), np.concatenate(item_id), np.concatenate(score), len(requests), k
    )


def _chunks(requests: Requests) -> Iterator[tuple[str | None, np.ndarray]]:
    by_category: dict[str | None, list[int]] = {}
    for row, category in enumerate(requests.categories):
        by_category.setdefault(category, []).append(row)
    for category, rows in by_category.items():
        for start in range(0, len(rows), CHUNK_REQUESTS):
            yield category, np.array(rows[start : start + CHUNK_REQUESTS], dtype=np.int64)


def _excluded(requests: Requests, owner: np.ndarray, item_id: np.ndarray) -> np.ndarray:
    """Which (request, item) rows the request excludes, bool [T]."""
    counts = np.array([len(excluded) for excluded in requests.exclude], dtype=np.int64)
    if not counts.any():
        return np.zeros(len(item_id), dtype=bool)
    ids = np.concatenate([*requests.exclude, item_id])
    distinct, code = np.unique(ids, return_inverse=True)
    pair = np.concatenate([np.repeat(np.arange(len(counts)), counts), owner]) * len(distinct) + code
    return np.isin(pair[counts.sum() :], pair[: counts.sum()])
