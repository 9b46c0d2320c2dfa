"""Repeated keys in JSON: parsers keep the last value in silence, and the sender may have meant the other."""

from __future__ import annotations

import json
import re
from typing import Any

from dataset.contracts import DataError

MOST_KEYS = 20_000  # a thousand events have half as many
_KEY = re.compile(r'"\s*:')


def refuse_repeated_keys(text: bytes | str) -> None:
    """Refuse JSON in which one object has a key twice.

    Args:
        text: JSON that a model has accepted, so that it is neither deep nor broken.

    Raises:
        DataError: a key is there twice, or there are more than MOST_KEYS of them.
    """
    decoded = text.decode() if isinstance(text, bytes) else text
    if sum(1 for _ in zip(range(MOST_KEYS + 1), _KEY.finditer(decoded), strict=False)) > MOST_KEYS:
        raise DataError(f"expected at most {MOST_KEYS} keys in JSON, found more")
    json.loads(decoded, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"expected each key of a JSON object once, found {twice[:40]!r} more than once")
    return found
