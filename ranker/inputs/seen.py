"""Which ids the training data held: a Bloom filter of their hashes (Bloom, CACM 1970).

Every id that was put in is found; of others, one in four hundred is taken for one of them.
"""

from __future__ import annotations

import base64

import numpy as np

from ranker.inputs.hashing import hash_integers

BITS, PROBES = 16, 4  # of an id


def filter_of(hashes: np.ndarray) -> str:
    """The filter of ids by their hashes, uint64, as base64 of packed bits."""
    bits = np.zeros(max(64, BITS * len(hashes)), dtype=bool)
    bits[_probes(hashes, len(bits))] = True
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def bits_of(written: str) -> np.ndarray:
    """The bits of a written filter, bool."""
    return np.unpackbits(np.frombuffer(base64.b64decode(written), np.uint8)).astype(bool)


def are_seen(bits: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Whether each hash uint64 was put in, bool."""
    found: np.ndarray = bits[_probes(hashes, len(bits))].all(axis=1)
    return found


def _probes(hashes: np.ndarray, count: int) -> np.ndarray:
    step = hash_integers(hashes.view(np.int64))[:, None]
    place = hashes[:, None] + np.arange(PROBES, dtype=np.uint64) * step
    return (place % np.uint64(count)).astype(np.int64)
