"""Item-to-item co-occurrence: items that the same users act on.

For items i (seen) and j (candidate), over users u who acted on both,

    s(i -> j) = sum_u w(g) / log2(1 + n_u)  /  (n_i^a * n_j^b),   w(g) = g^-c  or, of j before i, d * |g|^-c

where n_u counts the user's distinct items, n_i the item's distinct users, and g is how many places after i the user
acted on j. The exponents a, b, c and the share d are a ``Counting``. With a = b = 0.5, c = 0, d = 1 and no user
weight this is the cosine of plain item-kNN; heavy users say less about each pair they make, and a weaker penalty on
popular candidates keeps the base rate of j, which the cosine divides away
(docs/log/retrieval.md#item-knn-and-what-beats-it). Where the order of a log says what comes next, near pairs and the
direction count (docs/log/retrieval.md#co-occurrence-that-is-fitted-in-the-run).

Legend: T likes (distinct items of users), U users, I items, R requests, B items of one block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from dataset.jagged import entries, offsets_of, owners
from feature_repo.frame import History
from feature_repo.vectors import rows_of
from retrieval.jagged import Retrieved, best_first, group_best, stack
from retrieval.likes import MOST_ITEMS, Likes
from retrieval.requests import RECENCY, interests
from run.artifacts import Artifact, open_artifact, write_artifact

NEIGHBOURS = 200
BLOCK_PAIRS = 2_000_000  # of two likes of one user, in memory at once
BLOCK_REQUESTS = 1024


@dataclass(frozen=True)
class Counting:
    """How pairs of items are counted, and how much each item of a history says.

    Attributes:
        seen: a, the exponent of the seen item's users.
        candidate: b, of the candidate's.
        distance: c, of the places between the two; 0: all pairs of a user count alike.
        backward: d, what a pair counts whose candidate came before the seen item; 1: as much as one after it.
        recency: weight of an item of the history relative to the next newer one.
    """

    seen: float = 0.5
    candidate: float = 0.1
    distance: float = 0.0
    backward: float = 1.0
    recency: float = RECENCY

    @classmethod
    def recorded(cls, config: Mapping[str, Any]) -> Counting:
        """Of an artifact's configuration; of an earlier release's, which says nothing, the default."""
        return cls(**config.get("counting", {}))


PLAIN = Counting()
NOTHING: Mapping[str, Mapping[str, float]] = {}


def build_cooccurrence(
    log: pa.Table,
    out: Path,
    parents: Mapping[str, Artifact],
    neighbours: int = NEIGHBOURS,
    counting: Counting = PLAIN,
    half_life_us: float | None = None,
    reached: Mapping[str, Mapping[str, float]] = NOTHING,
) -> Artifact:
    """Count the log's positive behaviours into an artifact of kind ``cooccurrence``.

    Args:
        log: events in the EVENTS schema, no newer than what the caller may learn from.
        out: where to write.
        parents: role -> artifact the log came from.
        neighbours: how many of each item's strongest neighbours to keep.
        counting: how pairs are counted (``retrieval.counting`` fits it to a log).
        half_life_us: of what a like counts for what is popular now (``retrieval.trend``); None: all count alike.
        reached: how well these did, for the reader of the manifest.
    """
    likes = Likes.of(log)
    items, popularity = likes.items, likes.users_of.astype(np.float32)
    graph = _neighbour_graph(likes, neighbours, counting)
    config = {"neighbours": neighbours, "counting": asdict(counting), "items": len(items)}
    config |= {"half_life_us": half_life_us, "reached": dict(reached)}
    with write_artifact(out, "cooccurrence", config, parents) as folder:
        tensors = {
            "item_id": items,
            "popularity": popularity,
            "trend": likes.trend(half_life_us).astype(np.float32),
            "offsets": graph.indptr.astype(np.int64),
            "neighbour": graph.indices.astype(np.int64),
            "score": graph.data.astype(np.float32),
        }
        save_file(tensors, folder / "neighbours.safetensors")
    return open_artifact(out, "cooccurrence")


class Cooccurrence:
    """The neighbour graph, opened.

    Attributes:
        item_ids: int64 [I] ascending, the items with at least one positive behaviour.
        popularity: float32 [I], how many distinct users acted on each.
        trend: float32 [I], the same, of whom those of long ago count less.
        artifact: where it was opened from.
    """

    def __init__(
        self,
        item_ids: np.ndarray,
        popularity: np.ndarray,
        trend: np.ndarray,
        graph: sp.csr_matrix,
        artifact: Artifact,
    ) -> None:
        self.item_ids, self.popularity, self.trend, self.artifact = item_ids, popularity, trend, artifact
        self._graph_II, self._recency = graph, Counting.recorded(artifact.config).recency

    @classmethod
    def open(cls, artifact: Artifact) -> Cooccurrence:
        """Open an artifact of kind "cooccurrence"."""
        tensors = load_file(artifact.file("neighbours.safetensors"))
        items = tensors["item_id"]
        graph = sp.csr_matrix(
            (tensors["score"].astype(np.float64), tensors["neighbour"], tensors["offsets"]),
            shape=(len(items), len(items)),
        )
        trend = tensors.get("trend", tensors["popularity"])  # an earlier release had none
        return cls(items, tensors["popularity"], trend, graph, artifact)

    def retrieve_batch(self, history: History, k: int, answerable: np.ndarray | None = None) -> Retrieved:
        """The k best items of every history; items that co-occur with nothing in it are left out.

        Args:
            history: R histories.
            k: how many at most.
            answerable: bool [I], which of ``item_ids`` may be returned; None: all.
        """
        answers: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(history), BLOCK_REQUESTS):
            scores_RI = self._scores(history, start, min(start + BLOCK_REQUESTS, len(history)))
            request, column = owners(scores_RI.indptr), scores_RI.indices
            score = scores_RI.data.astype(np.float32)
            if answerable is not None:
                passing = answerable[column]
                request, column, score = request[passing], column[passing], score[passing]
            answers.extend(group_best(request, self.item_ids[column], score, scores_RI.shape[0], k))
        return stack(answers)

    def score(self, history: History, candidates: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Co-occurrence of every (request, candidate) pair, float32 [C]; 0 where there is none.

        Args:
            history: R histories.
            candidates: int64 item ids [C], grouped by request.
            offsets: int64 [R + 1]; request r owns candidates offsets[r]:offsets[r + 1].
        """
        columns, known = self._columns(candidates)
        out = np.zeros(len(candidates), dtype=np.float32)
        for start in range(0, len(history), BLOCK_REQUESTS):
            stop = min(start + BLOCK_REQUESTS, len(history))
            scores_RI = self._scores(history, start, stop)
            rows = slice(offsets[start], offsets[stop])
            request = owners(offsets[start : stop + 1])
            wanted = known[rows]
            if wanted.any():
                found = np.asarray(scores_RI[request[wanted], columns[rows][wanted]]).ravel()
                out[rows][wanted] = found.astype(np.float32)
        return out

    def between(self, item_id: np.ndarray, behaved: np.ndarray) -> np.ndarray:
        """Score of candidates int64 (n) after behaved items int64 (H), float32 (n, H); 0 where there is none."""
        out = np.zeros((len(item_id), len(behaved)), dtype=np.float32)
        column, known = self._columns(item_id)
        row, seen = self._columns(behaved)
        if known.any() and seen.any():
            scores = self._graph_II[row[seen]][:, column[known]].toarray()
            out[np.ix_(known, seen)] = scores.T
        return out

    def _columns(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = rows_of(self.item_ids, ids)
        return place, place >= 0

    def _scores(self, history: History, start: int, stop: int) -> sp.csr_matrix:
        """Weighted sums of neighbour scores of requests start .. stop - 1, sparse [R, I]."""
        bounds = history.offsets[start : stop + 1]
        rows = slice(bounds[0], bounds[-1])
        part = history.rows(rows, bounds - bounds[0])
        spoken = interests(part, self._recency)
        columns, known = self._columns(spoken.item_id)
        request = owners(spoken.offsets)[known]
        weights_RI = sp.csr_matrix(
            (spoken.weight[known].astype(np.float64), (request, columns[known])),
            shape=(stop - start, len(self.item_ids)),
        )
        return (weights_RI @ self._graph_II).tocsr()


def pair_weights(likes: Likes, events: np.ndarray, counting: Counting) -> tuple[np.ndarray, ...]:
    """What every pair of one of these likes and another one of the same user counts, before items are weighed.

    Args:
        likes: of all users.
        events: int64 [n], places among the T likes: the seen items.
        counting: how.

    Returns:
        the seen like's place among ``events`` int64 [P], the candidate's column int64 [P], and float64 [P].
    """
    user = np.searchsorted(likes.offsets, events, side="right") - 1
    start, count = likes.offsets[user], np.diff(likes.offsets)[user]
    other, offsets = entries(start, count)
    seen = owners(offsets)
    gap = other - events[seen]
    of_gap = np.arange(-MOST_ITEMS, MOST_ITEMS + 1)
    weight = np.abs(of_gap).clip(1) ** -counting.distance * np.where(of_gap < 0, counting.backward, 1.0)
    weight[MOST_ITEMS] = 0  # an item does not co-occur with itself
    value = (1.0 / np.log2(1.0 + count))[seen] * weight[gap + MOST_ITEMS]
    kept = value > 0
    return seen[kept], likes.column[other[kept]], value[kept]


def _neighbour_graph(likes: Likes, neighbours: int, counting: Counting) -> sp.csr_matrix:
    """Score every pair of items a block at a time, keeping each item's strongest neighbours."""
    count = len(likes.items)
    users = likes.users_of.astype(np.float64)
    of_seen, of_candidate = users**-counting.seen, users**-counting.candidate
    events = np.argsort(likes.column, kind="stable")
    first = offsets_of(likes.users_of)
    length = np.diff(likes.offsets)
    pairs_before = np.append(0, np.cumsum(np.repeat(length, length)[events]))[first]
    columns, scores, counts = [np.empty(0, np.int64)], [np.empty(0, np.float32)], []
    start = 0
    while start < count:
        stop = int(np.searchsorted(pairs_before, pairs_before[start] + BLOCK_PAIRS, side="right")) - 1
        stop = min(max(stop, start + 1), count)
        block = events[first[start] : first[stop]]
        seen, column, value = pair_weights(likes, block, counting)
        row = likes.column[block[seen]]
        value *= of_seen[row] * of_candidate[column]
        block_BI = sp.coo_matrix((value, (row - start, column)), shape=(stop - start, count)).tocsr()
        for own in range(stop - start):
            mine = slice(block_BI.indptr[own], block_BI.indptr[own + 1])
            found, score = best_first(
                block_BI.indices[mine].astype(np.int64), block_BI.data[mine].astype(np.float32), neighbours
            )
            columns.append(found)
            scores.append(score)
            counts.append(len(found))
        start = stop
    return sp.csr_matrix(
        (np.concatenate(scores), np.concatenate(columns), offsets_of(np.array(counts, np.int64))),
        shape=(count, count),
    )
