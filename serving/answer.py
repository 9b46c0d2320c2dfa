"""The answer of the service, and the timer of its stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serving.catalogue import Card


@dataclass(frozen=True)
class Hit:
    """One item of an answer.

    Attributes:
        card: of the item.
        score: that it is ordered by.
        matches: its score from every source.
        parts: what each feature adds to the ranker's score (``ranker.explain``); None: not asked, or not ranked.
        explored: it stands before items of a better score, because almost nobody acted on it
            (``retrieval.explore``).
    """

    card: Card
    score: float
    matches: dict[str, float]
    parts: dict[str, float] | None = None
    explored: bool = False


@dataclass(frozen=True)
class Answer:
    """The hits, best first, how long each stage took, and which fallbacks were used.

    Attributes:
        hits: at most k, fewer when fewer exist.
        timings_ms: stage -> milliseconds, in the order of the stages.
        fallbacks: names of the fallbacks used (see ``serving.recommend``); empty when nothing was missing.
        order: what the hits are ordered by: ``ranker``, ``retrieval``, ``popularity``,
            ``newest``, ``relevance``, ``similarity``, ``cooccurrence`` or ``relevance+ranker``.
    """

    hits: list[Hit]
    timings_ms: dict[str, float]
    fallbacks: tuple[str, ...]
    order: str


@dataclass
class Stages:
    """Wall-clock milliseconds of the stages of one answer."""

    ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time spent inside the block to ``stage``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.ms[stage] = self.ms.get(stage, 0.0) + (time.perf_counter() - began) * 1e3
