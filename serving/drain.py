"""A service that ends says so first: it answers on while balancers take it out, and then finishes what it has."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Drain:
    """What SIGTERM begins.

    Args:
        grace_s: how long connections are still accepted; a second SIGTERM cuts it short.

    Attributes:
        began: whether the service is about to end; ``/readyz`` says so from then on.
    """

    def __init__(self, grace_s: float) -> None:
        self.began = False
        self._grace_s = grace_s

    @contextmanager
    def on_signal(self) -> Iterator[None]:
        """Drain on SIGTERM, and give the signal to the server, whose handler is there already, after the grace."""
        if threading.current_thread() is not threading.main_thread():  # which gets no signals
            yield
            return
        loop, end = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

        def begin(number: int, frame: FrameType | None) -> None:
            if callable(end):
                wait = 0.0 if self.began else self._grace_s
                loop.call_soon_threadsafe(loop.call_later, wait, end, number, None)
            self.began = True

        signal.signal(signal.SIGTERM, begin)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, end)
