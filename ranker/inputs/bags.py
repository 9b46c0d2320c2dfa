"""Bags of ids: the rows of the id tables that things have, and the jagged tensors by which they are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torchrec import KeyedJaggedTensor


@dataclass(frozen=True)
class Bags:
    """The ids of n things one after the other: of each feature a bag of them, which may be empty.

    Attributes:
        keys: names of the F features.
        values: of each feature the rows of its table, int64, bag after bag.
        counts: int32 [F, n], how many rows each bag holds.
    """

    keys: tuple[str, ...]
    values: Sequence[np.ndarray]
    counts: np.ndarray

    @cached_property
    def _ends(self) -> np.ndarray:
        ends = np.zeros((len(self.keys), self.counts.shape[1] + 1), np.int64)
        np.cumsum(self.counts, axis=1, out=ends[:, 1:])
        return ends

    def jagged(self, *stretches: tuple[slice, np.ndarray]) -> KeyedJaggedTensor:
        """Stretches of the things, each of them in the slots of a mask, bool; other slots are empty bags."""
        lengths = [np.zeros((len(self.keys), where.size), np.int32) for _, where in stretches]
        for one, (some, where) in zip(lengths, stretches, strict=True):
            for row, counts in zip(one, self.counts[:, some], strict=True):
                row[where.ravel()] = counts
        values = [
            rows[ends[some.start] : ends[some.stop]]
            for rows, ends in zip(self.values, self._ends, strict=True)
            for some, _ in stretches
        ]
        bags = sum(where.size for _, where in stretches)
        return jagged(self.keys, values, [np.concatenate(lengths, axis=1).ravel()], bags)


def jagged(
    keys: Sequence[str], values: Sequence[np.ndarray], lengths: Sequence[np.ndarray], bags: int | None = None
) -> KeyedJaggedTensor:
    """One jagged tensor of several keys, each with values int64 and a length per bag; ``bags`` is how many."""
    return KeyedJaggedTensor(
        keys=list(keys),
        values=torch.from_numpy(np.concatenate([np.empty(0, np.int64), *values])),
        lengths=torch.from_numpy(np.concatenate([np.empty(0, np.int32), *lengths]).astype(np.int32)),
        stride=bags,
    )
