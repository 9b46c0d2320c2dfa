"""Numbers the service publishes at ``/metrics``.

They are kept here rather than in prometheus_client's own counters: importing Feast switches those to files
shared by the whole process, where two apps, or an app and the process before it, would add up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from feature_repo.ingest.ingestor import Ingested
from serving.answer import Answer
from serving.intake import Intake
from serving.live import Live
from serving.work import Work

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Telemetry(Collector):
    """Counters and histograms of one app.

    Args:
        live: holds the recommender that serves.
        intake: takes events and items; None: nothing does.
        works: the threads of the app.
    """

    def __init__(self, live: Live, intake: Intake | None = None, works: Sequence[Work] = ()) -> None:
        self._live, self._intake, self._works = live, intake, works
        self._responses: Counter[tuple[str, str]] = Counter()
        self._fallbacks: Counter[tuple[str, str]] = Counter()
        self._empty: Counter[tuple[str]] = Counter()
        self._events: Counter[tuple[str]] = Counter({("accepted",): 0, ("duplicates",): 0, ("late",): 0})
        self._stage_buckets: dict[tuple[str, str], list[int]] = {}
        self._stage_s: Counter[tuple[str, str]] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def answered(self, endpoint: str, answer: Answer) -> None:
        """Count one answer and its stages."""
        for stage, ms in answer.timings_ms.items():
            buckets = self._stage_buckets.setdefault((endpoint, stage), [0] * (len(BUCKETS_S) + 1))
            buckets[bisect_left(BUCKETS_S, ms / 1e3)] += 1
            self._stage_s[endpoint, stage] += ms / 1e3  # type: ignore[assignment]
        self._fallbacks.update((endpoint, fallback) for fallback in answer.fallbacks)
        if not answer.hits:
            self._empty[(endpoint,)] += 1

    def ingested(self, found: Ingested) -> None:
        """Count the events of one request."""
        self._events.update({(name,): count for name, count in asdict(found).items()})

    def responded(self, endpoint: str, status: int) -> None:
        """Count one response, refusals included."""
        self._responses[endpoint, str(status)] += 1

    def text(self) -> bytes:
        """Everything, in the Prometheus text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The current values, for the registry."""
        yield _counter("moon_responses", "Responses by status", ("endpoint", "status"), self._responses)
        yield _counter(
            "moon_fallbacks", "Answers that used a fallback", ("endpoint", "fallback"), self._fallbacks
        )
        yield _counter("moon_empty_answers", "Answers without a hit", ("endpoint",), self._empty)
        yield _counter(
            "moon_events", "Events ingested; late: online after they were available", ("what",), self._events
        )
        stages = HistogramMetricFamily(
            "moon_stage_seconds", "Time a stage took", labels=("endpoint", "stage")
        )
        for labels, counts in sorted(self._stage_buckets.items()):
            bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
            below = [sum(counts[: place + 1]) for place in range(len(counts))]
            stages.add_metric(labels, list(zip(bounds, below, strict=True)), self._stage_s[labels])
        yield stages
        moon, live = self._live.current, self._live
        yield GaugeMetricFamily("moon_index_items", "Items in the index", value=len(moon.retriever.index))
        if moon.items is not None and moon.items.loaded_until:
            until = datetime.fromisoformat(moon.items.loaded_until).timestamp()
            yield GaugeMetricFamily(
                "moon_items_loaded_until_seconds", "End of the items' last load", value=until
            )
        behind = float(bool(live.stale_reason))
        yield GaugeMetricFamily("moon_items_behind", "Whether answers lag behind the store", value=behind)
        yield GaugeMetricFamily(
            "moon_items_refused", "New items in the dead letter", value=float(live.refused)
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


def _counter(
    name: str, about: str, labels: tuple[str, ...], counts: Mapping[tuple, int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, about, labels=labels)
    for values, count in sorted(counts.items()):
        family.add_metric(values, count)
    return family
