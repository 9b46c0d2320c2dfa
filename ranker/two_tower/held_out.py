"""What two towers find of the items that held-out users took next: the epoch is chosen by it.

The loss weighs every positive against a sample; what towers are for is the first places among the whole catalogue.
The two prefer different epochs (docs/log/retrieval.md#an-epoch-chosen-by-what-it-finds).

Legend: R requests, P positives, S seen, N items, E width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset.jagged import owners
from feature_repo.frame import Frame
from feature_repo.vectors import rows_of
from ranker.two_tower.negatives import Sampler

FIRST = 20  # places among which a positive is found
MOST = 5_000  # requests asked: a bound on the time of an epoch's end
CELLS = 1 << 24  # scores in memory at once


@dataclass(frozen=True)
class HeldOut:
    """Requests of held-out users, and what they took.

    Attributes:
        frame: R requests with histories.
        request, row: int64 [P], the request of each positive and its row of the catalogue.
        seen: int64 [S] twice, the requests and the rows of what is in their histories and is not answered.
    """

    frame: Frame
    request: np.ndarray
    row: np.ndarray
    seen: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, sampler: Sampler) -> HeldOut:
        """At most MOST of the requests that a sampler holds out, drawn from its seed."""
        drawn = np.random.default_rng((sampler.seed, 3)).permutation(sampler.held_out)[:MOST]
        frame = sampler.train.select(np.sort(drawn))
        request, row = sampler.positives(frame)
        behaved = rows_of(sampler.ids, frame.history.item_id)
        known = behaved >= 0
        owner = owners(frame.history.offsets)
        return cls(frame, request, row, (owner[known], behaved[known]))

    def places(self, users_RE: np.ndarray, items_NE: np.ndarray) -> np.ndarray:
        """The place from 0 of each positive in its request's order, int64 [P]; of equal scores it is the last."""
        place = np.empty(len(self.row), dtype=np.int64)
        step = max(CELLS // len(items_NE), 1)
        for start in range(0, len(users_RE), step):
            score = users_RE[start : start + step] @ items_NE.T
            request, row = self.seen
            here = (request >= start) & (request < start + step)
            score[request[here] - start, row[here]] = -np.inf
            for one in np.flatnonzero((self.request >= start) & (self.request < start + step)):
                own = score[self.request[one] - start]
                place[one] = np.count_nonzero(own >= own[self.row[one]]) - 1
        return place

    def missed(self, users_RE: np.ndarray, items_NE: np.ndarray, loss: float) -> float:
        """The share of the positives that are not among the first FIRST of the whole catalogue.

        ``loss`` decides between models that miss equally many: it adds less than one more miss would.
        """
        missed = np.count_nonzero(self.places(users_RE, items_NE) >= FIRST)
        return float((missed + loss / (1 + loss)) / len(self.row))
