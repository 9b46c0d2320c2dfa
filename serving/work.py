"""Work that leaves the event loop: a thread with a queue of bounded length.

The event loop only reads and writes. One thread computes the answers: most of an answer is Python, which runs one
thread at a time, so that more threads would only make each other late; more processes (``Settings.workers``) use more
cores. A request that finds the queue full is refused at once, before it costs anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from serving.questions import Refused

P = ParamSpec("P")
T = TypeVar("T")
TRY_AGAIN = {"Retry-After": "1"}  # seconds


class Work:
    """A thread that runs calls in the order in which they arrive.

    Args:
        name: what it does, for the metrics.
        most: how many calls may be running or waiting.

    Attributes:
        name: see above.
        inside: calls that are running or waiting.
        refused: calls that found the queue full.
    """

    def __init__(self, name: str, most: int) -> None:
        self.name, self.inside, self.refused = name, 0, 0
        self._most = most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a call, or what it raised; a caller that gives up before its turn takes it along.

        Raises:
            Refused: 503, the queue is full.
        """
        if self.inside >= self._most:
            self.refused += 1
            raise Refused(
                503,
                f"{self.inside} requests are under way, at most {self._most} may be; try again later",
                TRY_AGAIN,
            )
        self.inside += 1
        # In the request's context, so that what the call logs carries the request's id.
        future = self._thread.submit(copy_context().run, partial(call, *args, **kwargs))
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._left))
        return await asyncio.wrap_future(future)

    def _left(self) -> None:
        self.inside -= 1

    def close(self) -> None:
        """Finish what is running or waiting."""
        self._thread.shutdown()
