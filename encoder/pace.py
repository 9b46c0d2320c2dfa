"""How many steps a stage trains: a planned number, or as many as fit into a given CPU time."""

from __future__ import annotations

import time
from collections.abc import Iterator


class Pace:
    """Iterates over the step numbers of a stage.

    The cost of a step is not known in advance: kinds of pairs differ, and a busy machine is slower. So the number of
    steps that fit into the time is estimated again after every step, and the learning-rate schedule follows it.

    Args:
        steps: planned number; only a first estimate if ``seconds`` is given.
        seconds: CPU seconds for the steps from ``first`` on, of which at least one is made; None: as planned.
        first: number of the first step.

    Attributes:
        steps: current estimate of the total number of steps.
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
