"""Stable hashing of ids into table rows: the same on every machine and in every run."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROWS_PER_ID = 8  # rows of a table per distinct id of the training data: 12 % of the ids share a row


def table_rows(distinct: int) -> int:
    """How many rows a table gets for ``distinct`` ids seen in training."""
    return max(8, ROWS_PER_ID * distinct)


def hash_integers(values: np.ndarray) -> np.ndarray:
    """Mix int64 ids to uint64 (the finaliser of splitmix64, Steele et al., OOPSLA 2014)."""
    mixed = values.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def remainder(hashes: np.ndarray, divisor: int) -> np.ndarray:
    """Hashes uint64 modulo a number, int64; NumPy divides several at a time, but takes each ``%`` by itself."""
    return (hashes - hashes // np.uint64(divisor) * np.uint64(divisor)).view(np.int64)


def hash_strings(values: pa.Array) -> np.ndarray:
    """Hash strings to uint64; every distinct string is hashed once, however many rows hold it."""
    coded = pc.fill_null(values, "").dictionary_encode()
    distinct = np.fromiter(
        (_hash_text(text) for text in coded.dictionary.to_pylist()), np.uint64, len(coded.dictionary)
    )
    return distinct[coded.indices.to_numpy()]


def hash_column(values: pa.Array) -> np.ndarray:
    """Hash a column of integers or strings to uint64; nulls are the caller's to remove."""
    if pa.types.is_integer(values.type):
        return hash_integers(values.to_numpy(zero_copy_only=False))
    return hash_strings(values)


@lru_cache(maxsize=1 << 18)
def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
