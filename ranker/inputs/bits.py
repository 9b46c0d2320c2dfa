"""Many booleans as text, for a model's configuration."""

from __future__ import annotations

import base64

import numpy as np


def as_text(bits: np.ndarray) -> str:
    """Bits, bool [B], eight to a byte, as base64."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def from_text(text: str, count: int | None = None) -> np.ndarray:
    """The bits of a text, bool [B]; ``count`` is B, which must be told unless it is a multiple of eight."""
    packed = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)
