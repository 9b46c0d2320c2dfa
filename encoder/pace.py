"""How many steps training makes: as many as planned, or as many as fit into a time."""

from __future__ import annotations

import time
from collections.abc import Iterator


class Pace:
    """The numbers of the steps of a stage.

    A step's cost is not known before it is made: kinds of pairs differ, and a busy machine is slower than it was.
    So the number that fits into the time is judged anew after every step, and the learning rate follows it.

    Args:
        steps: how many are planned; a first guess where there is a time.
        seconds: CPU seconds that the steps from ``first`` on may take, at least one step; None: as planned.
        first: where to begin.

    Attributes:
        steps: how many there will be in all, as far as is known.
    """

    def __init__(self, steps: int, seconds: float | None = None, first: int = 0) -> None:
        self.steps, self._seconds, self._first = steps, seconds, first

    def __iter__(self) -> Iterator[int]:
        step, started = self._first, time.process_time()
        while step < self.steps:
            yield step
            step += 1
            if self._seconds is not None:
                spent = time.process_time() - started
                fit = round((step - self._first) * self._seconds / max(spent, 1e-9))
                self.steps = max(step, self._first + fit)
