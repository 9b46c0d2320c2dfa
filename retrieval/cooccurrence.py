"""Item-to-item co-occurrence: items that the same users act on.

For items i (seen) and j (candidate), over users u who acted on both,

    s(i -> j) = sum_u 1 / log2(1 + n_u)  /  (n_i^0.5 * n_j^0.1)

where n_u counts the user's distinct items and n_i the item's distinct users. With both exponents 0.5 and no
user weight this is the cosine of plain item-kNN; heavy users say less about each pair they make, and a weaker
penalty on popular candidates keeps the base rate of j, which the cosine divides away
(docs/log/retrieval.md#item-knn-and-what-beats-it).

Legend: U users, I items, R requests, B items of one block.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from dataset.contracts import POSITIVE_CODES, behaviour_codes
from dataset.jagged import offsets_of, owners
from dataset.order import sequence_of
from feature_repo.frame import History
from feature_repo.vectors import rows_of
from retrieval.jagged import Retrieved, best_first, group_best, stack
from retrieval.requests import interests
from run.artifacts import Artifact, open_artifact, write_artifact

NEIGHBOURS = 200
SEEN_EXPONENT = 0.5
CANDIDATE_EXPONENT = 0.1
MOST_ITEMS = 500  # of a user's newest distinct items; pairs grow with its square, and such users are robots
BLOCK_ITEMS = 2048
BLOCK_REQUESTS = 1024


def build_cooccurrence(
    log: pa.Table, out: Path, parents: Mapping[str, Artifact], neighbours: int = NEIGHBOURS
) -> Artifact:
    """Count the log's positive behaviours into an artifact of kind ``cooccurrence``.

    Args:
        log: events in the EVENTS schema, no newer than what the caller may learn from.
        out: where to write.
        parents: role -> artifact the log came from.
        neighbours: how many of each item's strongest neighbours to keep.
    """
    user_id, item_id = _positive_pairs(log)
    items, column = np.unique(item_id, return_inverse=True)
    _, row = np.unique(user_id, return_inverse=True)
    shape = (int(row.max(initial=-1)) + 1, len(items))
    acted_UI = sp.csr_matrix((np.ones(len(row)), (row, column)), shape=shape)
    popularity = np.bincount(column, minlength=len(items)).astype(np.float32)
    graph = _neighbour_graph(acted_UI, neighbours)
    config = {
        "neighbours": neighbours,
        "seen_exponent": SEEN_EXPONENT,
        "candidate_exponent": CANDIDATE_EXPONENT,
        "items": len(items),
    }
    with write_artifact(out, "cooccurrence", config, parents) as folder:
        tensors = {
            "item_id": items,
            "popularity": popularity,
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
        artifact: where it was opened from.
    """

    def __init__(
        self, item_ids: np.ndarray, popularity: np.ndarray, graph: sp.csr_matrix, artifact: Artifact
    ) -> None:
        self.item_ids, self.popularity, self.artifact = item_ids, popularity, artifact
        self._graph_II = graph

    @classmethod
    def open(cls, artifact: Artifact) -> Cooccurrence:
        """Open an artifact of kind "cooccurrence"."""
        tensors = load_file(artifact.file("neighbours.safetensors"))
        items = tensors["item_id"]
        graph = sp.csr_matrix(
            (tensors["score"].astype(np.float64), tensors["neighbour"], tensors["offsets"]),
            shape=(len(items), len(items)),
        )
        return cls(items, tensors["popularity"], graph, artifact)

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
        spoken = interests(part)
        columns, known = self._columns(spoken.item_id)
        request = owners(spoken.offsets)[known]
        weights_RI = sp.csr_matrix(
            (spoken.weight[known].astype(np.float64), (request, columns[known])),
            shape=(stop - start, len(self.item_ids)),
        )
        return (weights_RI @ self._graph_II).tocsr()


def _positive_pairs(log: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (user, item) pairs with positive behaviour: each user's newest MOST_ITEMS."""
    positive = np.isin(behaviour_codes(log["type"], log["value"]), POSITIVE_CODES)
    user, item = (log[name].to_numpy()[positive] for name in ("user_id", "item_id"))
    time = log["available_time"].cast(pa.int64()).to_numpy()[positive]
    place = np.argsort(np.lexsort((sequence_of(log)[positive], time)))  # of each event in the log
    order = np.lexsort((-place, item, user))
    user, item, place = user[order], item[order], place[order]
    newest = np.ones(len(user), dtype=bool)
    newest[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    user, item, place = user[newest], item[newest], place[newest]
    order = np.lexsort((-place, user))
    user, item = user[order], item[order]
    kept = np.arange(len(user)) - np.searchsorted(user, user) < MOST_ITEMS
    return user[kept], item[kept]


def _neighbour_graph(acted_UI: sp.csr_matrix, neighbours: int) -> sp.csr_matrix:
    """Score every pair of items a block at a time, keeping each item's strongest neighbours."""
    per_user = np.asarray(acted_UI.sum(axis=1)).ravel()
    per_item = np.asarray(acted_UI.sum(axis=0)).ravel()
    weighted_UI = (
        sp.diags(1.0 / np.log2(1.0 + per_user)) @ acted_UI @ sp.diags(per_item**-CANDIDATE_EXPONENT)
    ).tocsr()
    seen_IU = (sp.diags(per_item**-SEEN_EXPONENT) @ acted_UI.T).tocsr()
    columns, scores, counts = [np.empty(0, np.int64)], [np.empty(0, np.float32)], []
    for start in range(0, seen_IU.shape[0], BLOCK_ITEMS):
        block_BI = (seen_IU[start : start + BLOCK_ITEMS] @ weighted_UI).tocsr()
        for row in range(block_BI.shape[0]):
            entries = slice(block_BI.indptr[row], block_BI.indptr[row + 1])
            column, score = block_BI.indices[entries], block_BI.data[entries]
            other = column != start + row
            column, score = best_first(column[other], score[other].astype(np.float32), neighbours)
            columns.append(column)
            scores.append(score)
            counts.append(len(column))
    shape = (seen_IU.shape[0],) * 2
    return sp.csr_matrix(
        (np.concatenate(scores), np.concatenate(columns), offsets_of(np.array(counts, np.int64))), shape=shape
    )
