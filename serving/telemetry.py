"""Numbers the service publishes at ``/metrics``.

They are kept here rather than in prometheus_client's own counters: importing Feast switches those to files
shared by the whole process, where two apps, or an app and the process before it, would add up.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from feature_repo.dead_letters import KINDS
from feature_repo.ingest.ingestor import Ingested
from serving.answer import Answer
from serving.intake import Intake
from serving.live import Live
from serving.siblings import EVERY_S, Siblings
from serving.work import Work

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

REFUSED = {  # status -> why
    400: "host",
    401: "key",
    403: "scope",
    404: "not found",
    405: "method",
    408: "too slow",
    409: "conflict",
    413: "too large",
    415: "content type",
    422: "invalid",
    429: "rate",
    503: "unavailable",
}


class Telemetry(Collector):
    """Counters and histograms of one app.

    Args:
        live: holds the recommender that serves.
        intake: takes events and items; None: nothing does.
        works: the threads of the app.
        siblings: the processes that share the port with this one; None: there are none.

    Attributes:
        in_flight: requests that are being answered.
    """

    def __init__(
        self,
        live: Live,
        intake: Intake | None = None,
        works: Sequence[Work] = (),
        siblings: Siblings | None = None,
    ) -> None:
        self._live, self._intake, self._works, self._siblings = live, intake, works, siblings
        self._responses: Counter[tuple[str, str]] = Counter()
        self._fallbacks: Counter[tuple[str, str]] = Counter()
        self._empty: Counter[tuple[str]] = Counter()
        self._events: Counter[tuple[str]] = Counter()
        self.ingested(Ingested(0, 0, 0))  # zeros, so that a rate can be taken of the first one
        self._refused: Counter[tuple[str]] = Counter()
        self._stages, self._requests = _Times(), _Times()
        self.in_flight = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def answered(self, endpoint: str, answer: Answer) -> None:
        """Count one answer and its stages."""
        for stage, ms in answer.timings_ms.items():
            self._stages.add((endpoint, stage), ms / 1e3)
        self._fallbacks.update((endpoint, fallback) for fallback in answer.fallbacks)
        if not answer.hits:
            self._empty[(endpoint,)] += 1

    def ingested(self, found: Ingested) -> None:
        """Count the events of one request."""
        self._events[("accepted",)] += found.accepted
        self._events[("duplicates",)] += found.duplicates
        self._events[("late",)] += found.late
        self._events[("conflicts",)] += len(found.conflicts)

    def responded(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one response, refusals included, and the time from the request to its end."""
        self._responses[endpoint, str(status)] += 1
        self._requests.add((endpoint,), seconds)
        if status in REFUSED:
            self._refused[(REFUSED[status],)] += 1

    def text(self) -> bytes:
        """Everything, of all processes, in the Prometheus text format."""
        own = generate_latest(self._registry)
        return own if self._siblings is None else self._siblings.merged(own)

    async def share(self) -> None:
        """Leave this process's numbers for the others, again and again."""
        while self._siblings is not None:
            self._siblings.leave(generate_latest(self._registry))
            await asyncio.sleep(EVERY_S)
            await asyncio.to_thread(self._live.count_refused)

    def collect(self) -> Iterator[Metric]:
        """The current values, for the registry."""
        yield _counter("moon_responses", "Responses by status", ("endpoint", "status"), self._responses)
        yield _counter("moon_refused", "Requests that were refused", ("reason",), self._refused)
        yield GaugeMetricFamily(
            "moon_requests_in_flight", "Requests being answered, this one included", value=self.in_flight
        )
        yield self._requests.family(
            "moon_request_seconds", "Time until a request was answered", ("endpoint",)
        )
        yield _counter(
            "moon_fallbacks", "Answers that used a fallback", ("endpoint", "fallback"), self._fallbacks
        )
        yield _counter("moon_empty_answers", "Answers without a hit", ("endpoint",), self._empty)
        yield _counter(
            "moon_events", "Events ingested; late: online after they were available", ("what",), self._events
        )
        yield self._stages.family("moon_stage_seconds", "Time a stage took", ("endpoint", "stage"))
        moon, live = self._live.current, self._live
        yield GaugeMetricFamily("moon_index_items", "Items in the index", value=len(moon.retriever.index))
        if moon.items is not None and moon.items.loaded_until:
            until = datetime.fromisoformat(moon.items.loaded_until).timestamp()
            yield GaugeMetricFamily(
                "moon_items_loaded_until_seconds", "End of the items' last load", value=until
            )
        behind = float(bool(live.stale_reason))
        yield GaugeMetricFamily("moon_items_behind", "Whether answers lag behind the store", value=behind)
        refused_records = GaugeMetricFamily(
            "moon_dead_letters", "Refused records in the dead letter", labels=("kind",)
        )
        for kind in KINDS:
            refused_records.add_metric((kind,), live.refused.get(kind, 0))
        yield refused_records
        yield GaugeMetricFamily(
            "moon_items_withdrawn",
            "Items in no answer: deleted, inactive or out of stock",
            value=len(moon.withdrawn),
        )
        yield from self._queues()
        made_of = GaugeMetricFamily("moon_artifact", "What makes the answers", labels=("role", "id"))
        for role, artifact_id in moon.artifacts.items():
            made_of.add_metric((role, artifact_id), 1)
        yield made_of
        numbers = GaugeMetricFamily(
            "moon_generation", "Generation that serves, and that should", labels=("is",)
        )
        for name, number in (("served", moon.generation), ("asked", live.target_generation)):
            if number is not None:
                numbers.add_metric((name,), number)
        yield numbers
        yield CounterMetricFamily("moon_switches", "Generations that took over", value=live.switches)
        refused = GaugeMetricFamily(
            "moon_generation_refused", "The generation asked for cannot be opened", labels=("reason",)
        )
        if live.problem:
            refused.add_metric((live.problem,), 1)
        yield refused

    def _queues(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("moon_inside", "Calls that run or wait in a thread", labels=("thread",))
        for work in self._works:
            waiting.add_metric((work.name,), work.inside)
        yield waiting
        yield _counter(
            "moon_busy",
            "Calls refused with 503 because too many were waiting",
            ("thread",),
            {(work.name,): work.refused for work in self._works},
        )
        if self._intake is not None:
            yield CounterMetricFamily(
                "moon_writes_failed",
                "Requests that could not be kept or written online",
                value=self._intake.failed,
            )
            yield GaugeMetricFamily(
                "moon_writes_failing",
                "Whether the last one could not",
                value=float(bool(self._intake.problem)),
            )


class _Times:
    """Histograms of seconds, by labels."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def add(self, labels: tuple[str, ...], seconds: float) -> None:
        counts = self._counts.setdefault(labels, [0] * (len(BUCKETS_S) + 1))
        counts[bisect_left(BUCKETS_S, seconds)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + seconds

    def family(self, name: str, about: str, labels: tuple[str, ...]) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, about, labels=labels)
        bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
        for values, counts in sorted(self._counts.items()):
            below = list(accumulate(counts))
            family.add_metric(values, list(zip(bounds, below, strict=True)), self._sums[values])
        return family


def _counter(
    name: str, about: str, labels: tuple[str, ...], counts: Mapping[tuple, int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, about, labels=labels)
    for values, count in sorted(counts.items()):
        family.add_metric(values, count)
    return family
