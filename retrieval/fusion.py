"""Reciprocal rank fusion: one order from several whose scores are not comparable.

Legend: R requests, S sources, K constants.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataset.jagged import owners
from ranker.order import BY_RANKER, Order
from retrieval.jagged import Retrieved, best_first, group_best
from run.artifacts import MADE_BY, Artifact, ArtifactError, open_artifact, write_artifact

FUSION = 60  # the constant of reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009)
CONSTANTS = (5, FUSION, 500)  # of curves that fall fast, as usual, and hardly
USUAL = (0.0, 1.0, 0.0)  # a source of which nothing was learned: reciprocal ranks
CURVES = "curves.json"


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


@dataclass(frozen=True)
class Weights:
    """How much a place in each source's order counts in the fused one.

    Attributes:
        of_source: source -> K weights, each of the curve (1 + constant) / (place from 1 + constant), so that a source
            may be trusted for its first few items only or far down its list; a source that is not there has USUAL.
        rated: whether the ranker learned from ratings, see ``order``.
        artifact: where they were opened from; None for weights built in memory.
    """

    of_source: Mapping[str, Sequence[float]] = field(default_factory=dict)
    rated: bool = False
    artifact: Artifact | None = None

    def order(self, fused: np.ndarray, scores: np.ndarray, order: Order | None) -> np.ndarray:
        """What orders an answer: the ranker's scores, float32 [C].

        Where the log does not say what was shown, the fused order and they make it together, as far as the ranker
        learned that its own helps (``ranker.order``).

        Args:
            fused: float32 [C], scores of the fused order.
            scores: float32 [C], of the ranker.
            order: what the ranker learned; None: it is of a log of impressions, or of an earlier release.
        """
        return (order or (Order() if self.rated else BY_RANKER))(fused, scores)

    def of(self, names: Sequence[str]) -> np.ndarray:
        """The weights of these sources, float64 [S, K]."""
        return np.array([self.of_source.get(name, USUAL) for name in names], dtype=np.float64)

    @classmethod
    def open(cls, artifact: Artifact) -> Weights:
        """Open an artifact of kind "fusion".

        Raises:
            ArtifactError: it is of a release whose sources had one weight each.
        """
        if not artifact.file(CURVES).exists():
            raise ArtifactError(
                f"{artifact.path}: expected {CURVES}, found none: it was made by an earlier release. "
                f"Run '{MADE_BY['fusion']}' to recreate it."
            )
        curves = json.loads(artifact.file(CURVES).read_text())
        return cls(curves, bool(artifact.config.get("rated", False)), artifact)

    def save(self, out: Path, parents: Mapping[str, Artifact], config: Mapping[str, Any]) -> Artifact:
        """Write an artifact of kind ``fusion``.

        Args:
            out: where to write.
            parents: role -> artifact of everything that answered.
            config: how well the sources and the fused order did, for the reader of the manifest; and ``rated``.
        """
        with write_artifact(out, "fusion", config, parents) as folder:
            weights = {name: list(own) for name, own in self.of_source.items()}
            (folder / CURVES).write_text(json.dumps(weights, indent=2) + "\n")
        return open_artifact(out, "fusion")


EQUAL = Weights()


def fuse(
    answers: Sequence[Retrieved], weights: np.ndarray | None = None, most: int | None = None
) -> Retrieved:
    """Fuse the answers of several sources to the same R requests.

    An item's score is the sum over the sources that answered it, of their curves at its place (``Weights``).

    Args:
        answers: of each of S sources.
        weights: float64 [S, K]; None: USUAL for all.
        most: how many of each request's items are kept; None: all.
    """
    weights = EQUAL.of([""] * len(answers)) if weights is None else weights
    request, item_id, entry, source, place = entries(answers)
    if not len(request):
        return answers[0]
    worth = curves(np.arange(place.max() + 1)) @ weights.T
    score = np.bincount(entry, weights=worth[place, source])
    return group_best(
        request, item_id, score.astype(np.float32), len(answers[0]), len(item_id) if most is None else most
    )


def curves(place: np.ndarray) -> np.ndarray:
    """The K curves at places (n) from 0: float64 (n, K), 1 at the first place."""
    constants = np.array(CONSTANTS, dtype=np.float64)
    return (1 + constants) / (1 + place[:, None] + constants)


def entries(
    answers: Sequence[Retrieved],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every (request, item) that a source answered, once, and who answered it where.

    Returns:
        request, item_id: int64 (E), ordered by request, then item.
        entry, source, place: int64 (T), the row among the E, the source, and the place from 0, of each answer.
    """
    owner = [owners(found.offsets) for found in answers]
    place = [np.arange(len(own)) - found.offsets[own] for own, found in zip(owner, answers, strict=True)]
    request, item_id = np.concatenate(owner), np.concatenate([found.item_id for found in answers])
    source = np.repeat(np.arange(len(answers)), [len(own) for own in owner])
    order = np.lexsort((item_id, request))
    request, item_id = request[order], item_id[order]
    new = np.ones(len(request), dtype=bool)
    new[1:] = (request[1:] != request[:-1]) | (item_id[1:] != item_id[:-1])
    return request[new], item_id[new], np.cumsum(new) - 1, source[order], np.concatenate(place)[order]
