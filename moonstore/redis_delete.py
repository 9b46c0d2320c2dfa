"""Delete one view from Redis, where all views of an entity share one hash: only the view's fields are removed.

Feast's own deletion holds every key and every reply of a database in memory, leaves the created timestamps, and its
pattern also matches keys of projects whose name ends in ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

from redis import Redis, RedisCluster

KEYS_AT_ONCE = 1000


def delete_fields(client: Redis | RedisCluster, before: bytes, after: bytes, fields: Sequence[bytes]) -> int:
    """Delete fields of every hash whose key is ``before``, eight bytes of an id, ``after``.

    Redis serves other clients between batches; idempotent.

    Returns:
        number of fields deleted.
    """
    pattern = _literal(before) + b"?" * 8 + _literal(after)
    found, deleted = client.scan_iter(pattern, count=KEYS_AT_ONCE), 0
    while keys := list(islice(found, KEYS_AT_ONCE)):
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hdel(key, *fields)  # type: ignore[arg-type]
            deleted += sum(pipe.execute())
    return deleted


def _literal(part: bytes) -> bytes:
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", part)
