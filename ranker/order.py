"""What orders an answer where a log does not say what was shown: retrieval's order and the ranker's, together.

Of ratings a ranker says with what chance an item is liked by who chose it, and nothing of which one is chosen. That,
the scores say by which retrieval orders its candidates: they are log-odds, too. An item is taken and liked with the
product of both chances (Ma et al., Entire Space Multi-Task Model, SIGIR 2018), so the logarithms add up, each as much
as it was seen to be worth (``ranker.order_weights``).

Of what was taken, and nothing else, both say which item is taken next. The ranker learned it from candidates of
another time, which may be unlike those that it orders now: where what is popular changes by the hour, it learned
little.

Shapes: C candidates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from run.artifacts import MADE_BY, ArtifactError

ORDER = "order.json"  # of a ranker that learned from ratings, or from what was taken
RETRIEVED = "retrieved"  # column of candidates: the score of retrieval's order


@dataclass(frozen=True)
class Order:
    """How retrieval's scores and a ranker's make one order; by itself it is retrieval's.

    Attributes:
        retrieved: weight of retrieval's score, at least 0.
        liked: weight of the logarithm of the chance of a like, at least 0; of ratings.
        taken: weight of the ranker's score, at least 0; of what was taken.
    """

    retrieved: float = 1.0
    liked: float = 0.0
    taken: float = 0.0

    def __call__(self, retrieved: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """What orders candidates, float32 [C].

        Args:
            retrieved: float32 [C], scores of retrieval's order.
            scores: float32 [C], log-odds of the ranker, of a like or of being taken.
        """
        said = self.liked * log_chance(scores) + self.taken * scores.astype(np.float64)
        return (self.retrieved * retrieved.astype(np.float64) + said).astype(np.float32)

    @classmethod
    def read(cls, path: Path) -> Order:
        """Read ``order.json``.

        Raises:
            ArtifactError: it holds anything but these weights; one of an earlier release has no ``taken``.
        """
        found = json.loads(path.read_text())
        named = isinstance(found, dict) and {"retrieved", "liked"} <= set(found) <= set(vars(cls()))
        if not named or not all(isinstance(one, float) and 0 <= one < np.inf for one in found.values()):
            raise ArtifactError(
                f"{path}: expected weights of retrieved, liked and taken, at least 0, found {found}. "
                f"Run '{MADE_BY['ranker']}' to make it again."
            )
        return cls(**found)


BY_RANKER = Order(retrieved=0.0, taken=1.0)


def log_chance(scores: np.ndarray) -> np.ndarray:
    """Logarithm of the chance that log-odds float32 [C] mean, float64 [C]."""
    chance: np.ndarray = -np.logaddexp(0.0, -scores.astype(np.float64))
    return chance
