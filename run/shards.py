"""Shards: parts of one job that run independently, on one machine or several, and are joined afterwards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

Shard = tuple[int, int]  # number from 1, count of shards
WHOLE: Shard = (1, 1)


class ShardError(ValueError):
    """A shard that cannot exist, or a set of shards that is not complete."""


def parse_shard(text: str) -> Shard:
    """Parse ``"2/4"``, the second shard of four.

    Raises:
        ShardError: not two numbers, or a number above the count.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match:
        raise ShardError(f"shard: expected NUMBER/COUNT, as in 1/4, found {text!r}.")
    shard = int(match[1]), int(match[2])
    check_shard(shard)
    return shard


def check_shard(shard: Shard) -> None:
    """Refuse a shard that cannot exist.

    Raises:
        ShardError: its number is not between 1 and the count.
    """
    number, count = shard
    if not 1 <= number <= count:
        raise ShardError(f"shard: expected a number from 1 to the count of shards, found {number}/{count}.")


def check_complete(shards: Iterable[Shard], made_by: str) -> None:
    """Refuse a set that does not hold each shard of one count exactly once.

    Args:
        shards: in any order.
        made_by: the command that computes one, for the error message (``"moon embed --shard"``).

    Raises:
        ShardError: naming missing shards, and surplus ones (repeated, or of another count).
    """
    found = Counter(shards)
    count = next(iter(found), WHOLE)[1]
    whole = [(number, count) for number in range(1, count + 1)]
    missing = [shard for shard in whole if shard not in found]
    surplus = sorted(shard for shard, times in found.items() if times > 1 or shard not in whole)
    if missing or surplus:
        said = [
            f"{what} {_names(some)}" for what, some in (("missing", missing), ("surplus", surplus)) if some
        ]
        there = _names(sorted(found.elements())) or "none"
        raise ShardError(
            f"expected every shard of {count} once, found {there}: {', '.join(said)}. Run '{made_by}'."
        )


def _names(shards: list[Shard]) -> str:
    return ", ".join(f"{number}/{count}" for number, count in shards)
