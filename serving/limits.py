"""Rate limits: a token bucket per caller."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MOST_CALLERS = 10_000


class Buckets:
    """A bucket of tokens for each caller: a request takes one, and they come back at a constant rate.

    Args:
        per_s: tokens that come back in a second.
        burst: how many a bucket holds, and starts with.
        clock: seconds, never going back.
        most: callers remembered; the one that was quiet longest is forgotten first.
    """

    def __init__(
        self,
        per_s: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        most: int = MOST_CALLERS,
    ) -> None:
        self._per_s, self._burst, self._clock, self._most = per_s, burst, clock, most
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller -> tokens, and when

    def wait_s(self, caller: str) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one."""
        now = self._clock()
        tokens, then = self._held.pop(caller, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._per_s)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_s
        self._held[caller] = (tokens if wait else tokens - 1, now)
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return wait
