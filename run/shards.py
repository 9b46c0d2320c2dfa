"""Parts of one work that are done apart, on one machine or on several, and joined."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

Shard = tuple[int, int]  # number, from 1, and how many there are
WHOLE: Shard = (1, 1)


class ShardError(ValueError):
    """There is no such shard, or shards do not make a whole."""


def parse_shard(text: str) -> Shard:
    """The shard that ``"2/4"`` names: the second of four.

    Raises:
        ShardError: not two numbers, or no such shard.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match:
        raise ShardError(f"shard: expected a number and how many, as in 1/4, found {text!r}.")
    shard = int(match[1]), int(match[2])
    check_shard(shard)
    return shard


def check_shard(shard: Shard) -> None:
    """Refuse a shard that cannot be.

    Raises:
        ShardError: its number is not between 1 and how many there are.
    """
    number, count = shard
    if not 1 <= number <= count:
        raise ShardError(f"shard: expected a number from 1 to how many there are, found {number}/{count}.")


def check_complete(shards: Iterable[Shard], made_by: str) -> None:
    """Refuse shards that are not every one of a whole, once.

    Args:
        shards: in any order.
        made_by: the command that makes one, for the error message (``"moon embed --shard"``).

    Raises:
        ShardError: naming those that are missing, and those that are there twice or of another number of shards.
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
