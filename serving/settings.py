"""Settings of the service: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROFILES = ("embedded", "redis")
CLOCKS = ("log", "wall")


@dataclass(frozen=True)
class Settings:
    """How to serve one finished run.

    Attributes:
        run: the run folder.
        profile: online store the run was loaded into, ``embedded`` or ``redis``; checked at the start.
        host: address to listen on.
        port: port to listen on.
        clock: ``log``: the time went on from the end of the run's log when the run was first served or ingested into,
            so that a snapshot of an old shop still has items of the right age; ``wall``: the time of day.
        per_source: candidates asked of every retrieval source.
        explore: log-odds by which items that almost nobody acted on are raised in a recommendation
            (``retrieval.explore``), from 0 to 5.
        max_body_bytes: larger requests get 413 before they are parsed.
        max_image_bytes: larger pictures get 413.
        max_image_pixels: larger pictures get 422: a small file can decode to gigabytes. A JPEG may have four times as
            many, because it is decoded at a fraction of its size.
        body_deadline_s: a body that arrives slower gets 408.
        workers: processes that share the port; each holds the models and uses one core.
        metrics: folder in which these leave their metrics for each other; ``serving.server`` makes one.
        most_waiting: requests of a process that may wait for an answer; a further one gets 503.
        most_connections: of a process; a further one gets 503.
        head_deadline_s: a connection whose request line and headers arrive slower gets 408.
        max_head_bytes: more of request line and headers get 431.
        idle_deadline_s: a connection without a next request is closed.
        drain_s: how long a service that was told to end still accepts requests, so that balancers can leave it.
        keys: the file of API keys; None: those of the environment or of the run folder (``serving.keys``).
        hosts: names under which the service is reached, besides its address and this machine's loopback.
        requests_per_s: requests that one key, or one address without a key, may send in the long run; more get 429. A
            process does not answer as many.
        burst: requests that it may send at once.
    """

    run: Path
    profile: str = "embedded"
    host: str = "127.0.0.1"
    port: int = 8000
    clock: str = "log"
    per_source: int = 500
    explore: float = 0.0
    max_body_bytes: int = 8 * 2**20
    max_image_bytes: int = 5 * 2**20
    max_image_pixels: int = 4_000_000
    body_deadline_s: int = 10
    workers: int = 1
    metrics: Path | None = None
    most_waiting: int = 64
    most_connections: int = 512
    head_deadline_s: float = 10
    max_head_bytes: int = 64 * 2**10
    idle_deadline_s: int = 30
    drain_s: float = 5
    keys: Path | None = None
    hosts: tuple[str, ...] = ()
    requests_per_s: float = 500.0
    burst: int = 1000

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile is {self.profile!r}: expected one of {', '.join(PROFILES)}")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock is {self.clock!r}: expected one of {', '.join(CLOCKS)}")
        if not 0 <= self.explore <= 5:
            raise ValueError(f"explore is {self.explore}: expected log-odds from 0 to 5")
        at_least_1 = ("port", "per_source", "max_body_bytes", "max_image_bytes", "max_image_pixels", "burst")
        for name in (*at_least_1, "workers", "most_waiting", "most_connections", "requests_per_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
