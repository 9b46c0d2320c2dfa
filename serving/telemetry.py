"""Numbers the service publishes at ``/metrics``, in a registry of their own so that two apps do not mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.recommend import Answer

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Telemetry:
    """Counters and histograms of one app."""

    def __init__(self, items: int, artifacts: dict[str, str]) -> None:
        self.registry = CollectorRegistry()
        self._stage_s = Histogram(
            "moon_stage_seconds",
            "Time a stage took",
            ["endpoint", "stage"],
            registry=self.registry,
            buckets=BUCKETS_S,
        )
        self._responses = Counter(
            "moon_responses", "Responses by status", ["endpoint", "status"], registry=self.registry
        )
        self._fallbacks = Counter(
            "moon_fallbacks",
            "Answers that took a step down",
            ["endpoint", "fallback"],
            registry=self.registry,
        )
        self._empty = Counter(
            "moon_empty_answers", "Answers without a hit", ["endpoint"], registry=self.registry
        )
        Gauge("moon_index_items", "Items in the index", registry=self.registry).set(items)
        made_of = Gauge(
            "moon_artifact", "Artifacts that make the answers", ["role", "id"], registry=self.registry
        )
        for role, artifact_id in artifacts.items():
            made_of.labels(role, artifact_id).set(1)

    def answered(self, endpoint: str, answer: Answer) -> None:
        """Count one answer and its stages."""
        for stage, ms in answer.timings_ms.items():
            self._stage_s.labels(endpoint, stage).observe(ms / 1e3)
        for fallback in answer.fallbacks:
            self._fallbacks.labels(endpoint, fallback).inc()
        if not answer.hits:
            self._empty.labels(endpoint).inc()

    def responded(self, endpoint: str, status: int) -> None:
        """Count one response, refusals included."""
        self._responses.labels(endpoint, str(status)).inc()

    def text(self) -> bytes:
        """Everything, in the Prometheus text format."""
        return generate_latest(self.registry)
