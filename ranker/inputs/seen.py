"""Which ids the training data held: a Bloom filter of their hashes (Bloom, CACM 1970).

Every id that was put in is found; of the others, one in four hundred is taken for one that was.
"""

from __future__ import annotations

import numpy as np

from ranker.inputs.bits import as_text
from ranker.inputs.hashing import hash_integers, remainder

BITS, PROBES = 16, 4  # of an id


def filter_of(hashes: np.ndarray) -> str:
    """The filter of ids by their hashes, uint64, as text."""
    filled = np.zeros(max(64, BITS * len(hashes)), dtype=bool)
    filled[_probes(hashes, len(filled))] = True
    return as_text(filled)


def are_seen(filled: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Whether each hash uint64 was put in a filter, of which these are the bits: bool."""
    found: np.ndarray = filled[_probes(hashes, len(filled))].all(axis=0)
    return found


def _probes(hashes: np.ndarray, count: int) -> np.ndarray:
    """Places of each hash among the bits, int64 [PROBES, n]."""
    step = hash_integers(hashes.view(np.int64))
    return remainder(hashes + np.arange(PROBES, dtype=np.uint64)[:, None] * step, count)
