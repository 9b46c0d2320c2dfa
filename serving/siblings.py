"""The metrics of processes that share a port: each leaves its own in a folder; whichever is asked answers for all.

A scrape reaches any one of the processes; without this a counter would jump between theirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

EVERY_S = 1.0


class Siblings:
    """The processes of one service.

    Args:
        folder: where each of them leaves its metrics.
        name: of this process, the label ``worker`` of its samples.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self._folder, self._name = folder, name or str(os.getpid())

    def leave(self, own: bytes) -> None:
        """Leave this process's metrics, Prometheus text, for the others."""
        path = self._folder / f"{self._name}.prom"
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(own)
        temporary.replace(path)

    def merged(self, own: bytes) -> bytes:
        """Metrics of all processes: this one's as given, the others' as they left them last, even if they ended."""
        texts = {path.stem: path.read_bytes() for path in sorted(self._folder.glob("*.prom"))}
        merged: dict[str, Metric] = {}
        for name, text in {**texts, self._name: own}.items():
            for family in text_string_to_metric_families(text.decode()):
                whole = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.samples.append(sample._replace(labels={**sample.labels, "worker": name}))
        return generate_latest(_Families(merged.values()))


class _Families:
    """What ``generate_latest`` asks of a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)
