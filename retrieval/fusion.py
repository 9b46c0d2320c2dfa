"""Reciprocal rank fusion: one order from several whose scores are not comparable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataset.log import pairs
from feature_repo.vectors import rows_of
from retrieval.jagged import Retrieved, best_first, group_best, owners
from run.artifacts import Artifact, open_artifact, write_artifact

FUSION = 60  # the constant of reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009)
GRID = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # weights that are tried
ROUNDS = 3  # in which every source's weight is tried again
WEIGHTS = "weights.json"


def fuse_within(tiers: np.ndarray, ids: np.ndarray, ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reciprocal rank fusion of two orders of the same items, which leaves the tiers whole.

    Of a search: relevance to the query and worth to the user are two things, and neither may overrule the other; but
    whoever asks for mugs gets the mugs first, whatever else they would take.

    Args:
        tiers: int64 [C]; an item of a higher tier goes before all of a lower one.
        ids: int64 [C], best first in the first order.
        ranked: float32 [C], scores of the same items that make the second.

    Returns:
        ids, best first, and scores: the tier and, below 1, the fused reciprocal ranks.
    """
    rank = np.argsort(np.lexsort((ids, -ranked)))
    fused = 1.0 / (FUSION + 1 + np.arange(len(ids))) + 1.0 / (FUSION + 1 + rank)
    return best_first(ids, (tiers + fused).astype(np.float32), len(ids))


def fuse(
    answers: Sequence[Retrieved], weights: Sequence[float] | None = None, most: int | None = None
) -> Retrieved:
    """Fuse the answers of several sources to the same R requests.

    An item's score is the sum over the sources that answered it of weight / (FUSION + rank), rank counted from 1.

    Args:
        answers: of each source.
        weights: of each source; None: all weigh the same.
        most: how many of each request's items are kept; None: all.
    """
    weights = [1.0] * len(answers) if weights is None else weights
    request, item_id, parts = _entries(answers)
    if not len(request):
        return answers[0]
    score = (parts @ np.asarray(weights)).astype(np.float32)
    return group_best(request, item_id, score, len(answers[0]), len(item_id) if most is None else most)


@dataclass(frozen=True)
class Weights:
    """How much each source's order counts in the fused one, learned from requests whose answers are known.

    Attributes:
        of_source: weight by source; a source that is not there weighs 1.
        artifact: where they were opened from; None for weights built in memory.
    """

    of_source: Mapping[str, float] = field(default_factory=dict)
    artifact: Artifact | None = None

    def of(self, names: Sequence[str]) -> list[float]:
        """The weights of these sources, in this order."""
        return [self.of_source.get(name, 1.0) for name in names]

    @classmethod
    def open(cls, artifact: Artifact) -> Weights:
        """Open an artifact of kind "fusion"."""
        return cls(json.loads(artifact.file(WEIGHTS).read_text()), artifact)

    def save(self, out: Path, parents: Mapping[str, Artifact], config: Mapping[str, Any]) -> Artifact:
        """Write an artifact of kind ``fusion``.

        Args:
            out: where to write.
            parents: role -> artifact of everything that answered.
            config: how well the sources and the fused order did, for the reader of the manifest.
        """
        with write_artifact(out, "fusion", config, parents) as folder:
            (folder / WEIGHTS).write_text(json.dumps(dict(self.of_source), indent=2) + "\n")
        return open_artifact(out, "fusion")


EQUAL = Weights()


def learn_weights(
    answers: Mapping[str, Retrieved], offsets: np.ndarray, relevant: np.ndarray
) -> tuple[Weights, dict[str, float]]:
    """The weights with the best NDCG of the fused order, found one source at a time on a grid.

    The search starts at the best source alone, so the fused order is never below its best member on these requests.

    Args:
        answers: source -> its answers to the same R requests.
        offsets: int64 (R + 1), into ``relevant``.
        relevant: int64, ids of the items that each request should find.

    Returns:
        The weights, and the NDCG over the whole list of every source alone and of the order ``fused``.
    """
    names = list(answers)
    request, item_id, parts = _entries(list(answers.values()))
    wanted = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    place = _places(request, item_id, wanted, relevant)
    wanted, place = wanted[place >= 0], place[place >= 0]
    if not len(place):  # nothing was found: nothing is known of the sources
        return Weights(), {}
    bounds = np.searchsorted(request, [wanted, wanted + 1])

    def ndcg(weights: np.ndarray) -> float:
        score = (parts @ weights).astype(np.float32)
        better = np.array(
            [
                np.count_nonzero(score[start:own] >= score[own])
                + np.count_nonzero(score[own:stop] > score[own])
                for start, stop, own in zip(*bounds, place, strict=True)
            ]
        )
        return float(np.where(score[place] > 0, 1 / np.log2(2 + better), 0).sum() / len(relevant))

    single = np.eye(len(names))
    quality = [ndcg(one) for one in single]
    best, reached = single[int(np.argmax(quality))], max(quality)
    for _ in range(ROUNDS):
        before = reached
        for column in range(len(names)):
            for weight in GRID:
                tried = best.copy()
                tried[column] = weight
                if (found := ndcg(tried)) > reached:
                    best, reached = tried, found
        if reached == before:
            break
    figures = dict(zip(names, quality, strict=True)) | {"fused": reached}
    return Weights(dict(zip(names, best.tolist(), strict=True))), figures


def _entries(answers: Sequence[Retrieved]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every (request, item) that a source answered, once, ordered: request, item, and 1 / (FUSION + rank) by source.

    Returns:
        int64 (E), int64 (E), float64 (E, S), 0 where the source did not answer the item.
    """
    owner = [owners(found.offsets) for found in answers]
    rank = [np.arange(len(own)) - found.offsets[own] for own, found in zip(owner, answers, strict=True)]
    request, item_id = np.concatenate(owner), np.concatenate([found.item_id for found in answers])
    source = np.repeat(np.arange(len(answers)), [len(own) for own in owner])
    order = np.lexsort((item_id, request))
    request, item_id = request[order], item_id[order]
    new = np.ones(len(request), dtype=bool)
    new[1:] = (request[1:] != request[:-1]) | (item_id[1:] != item_id[:-1])
    parts = np.zeros((int(new.sum()), len(answers)))
    parts[np.cumsum(new) - 1, source[order]] = 1.0 / (FUSION + 1 + np.concatenate(rank)[order])
    return request[new], item_id[new], parts


def _places(request: np.ndarray, item_id: np.ndarray, wanted: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Row of each (wanted, relevant) pair among the ordered (request, item) rows, -1 where it is not there."""
    pair = pairs(np.concatenate([request, wanted]), np.concatenate([item_id, relevant]))
    return rows_of(pair[: len(request)], pair[len(request) :])
