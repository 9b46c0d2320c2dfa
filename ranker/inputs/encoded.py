"""Encoded requests, from which batches are cut.

What is computed of a value does not depend on the batch it is in, and a call of NumPy or Arrow costs more than the
few hundred values of a batch. So the requests of several batches are encoded at a time; a batch only pads its own.

Legend: R requests, C candidates and T behaviours of all of them, K behaviours found for a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from feature_repo.vectors import Vectors
from ranker.inputs.bags import Bags
from ranker.inputs.batch import Batch
from ranker.inputs.padding import placed, slots

EMPTY = {"position": -1}  # what an empty slot holds, where it is not zero


@dataclass(frozen=True)
class Encoded:
    """R requests as flat arrays.

    Attributes:
        offsets, history_offsets: int64 [R + 1], of their candidates and behaviours.
        items: key ``item_id``, of the candidates and then of the behaviours.
        candidates, requests, behaviours: their other ids.
        of_candidates, of_requests, of_behaviours: fields of a ``Batch`` without padding, of C, R and T rows.
        vectors: of the items; None: a control without.
        target_row, history_row: int64 [C] and [T], rows of ``vectors``; -1 where unknown.
        found_age: int64 [C, K], the place of each found behaviour in its history, counted from the latest one, 1.
    """

    offsets: np.ndarray
    history_offsets: np.ndarray
    items: Bags
    candidates: Bags
    requests: Bags
    behaviours: Bags
    of_candidates: Mapping[str, np.ndarray]
    of_requests: Mapping[str, np.ndarray]
    of_behaviours: Mapping[str, np.ndarray]
    vectors: Vectors | None
    target_row: np.ndarray
    history_row: np.ndarray
    found_age: np.ndarray

    def batch(self, start: int, stop: int) -> Batch:
        """The requests ``start`` to ``stop``."""
        request = slice(start, stop)
        shown, behaved = (slice(one[start], one[stop]) for one in (self.offsets, self.history_offsets))
        candidate_mask = slots(np.diff(self.offsets[start : stop + 1]), left=True)
        history_mask = slots(np.diff(self.history_offsets[start : stop + 1]), left=False)
        first = self.offsets[-1]
        among_items = slice(first + behaved.start, first + behaved.stop)
        target_content, target_known = content_at(self.vectors, self.target_row[shown], candidate_mask)
        history_content, history_known = content_at(self.vectors, self.history_row[behaved], history_mask)
        found = self.of_candidates["found_mask"][shown]
        slot = np.where(found, history_mask.shape[1] - self.found_age[shown], 0)
        return Batch(
            items=self.items.jagged((shown, candidate_mask), (among_items, history_mask)),
            candidates=self.candidates.jagged((shown, candidate_mask)),
            requests=self.requests.jagged((request, np.ones(stop - start, dtype=bool))),
            behaviours=self.behaviours.jagged((behaved, history_mask)),
            candidate_mask=torch.from_numpy(candidate_mask),
            history_mask=torch.from_numpy(history_mask),
            target_content=target_content,
            target_known=target_known,
            history_content=history_content,
            history_known=history_known,
            found_slot=_place(slot, candidate_mask),
            **{
                name: _place(values[shown], candidate_mask, EMPTY.get(name, 0))
                for name, values in self.of_candidates.items()
            },
            **{name: torch.from_numpy(values[request]) for name, values in self.of_requests.items()},
            **{name: _place(values[behaved], history_mask) for name, values in self.of_behaviours.items()},
        )


def content_at(vectors: Vectors | None, row: np.ndarray, where: np.ndarray) -> tuple[Tensor, Tensor]:
    """Item vectors in the slots of ``where`` bool [R, N], float32 [R, N, V], and which are known.

    Args:
        vectors: of the items; None: V is 0.
        row: int64, the row of each item in these slots; -1 where unknown.
        where: which slots.
    """
    rows = placed(row, where, -1)
    content = np.zeros((*where.shape, 0), np.float32) if vectors is None else vectors.at(rows)
    return torch.from_numpy(content), torch.from_numpy(rows >= 0)


def _place(values: np.ndarray, where: np.ndarray, empty: float = 0) -> Tensor:
    return torch.from_numpy(placed(values, where, empty))
