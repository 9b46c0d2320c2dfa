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
        clock: ``log`` answers as if the run's log had ended when the service started, so that a snapshot of an old
            shop still has items of the right age; ``wall`` answers as of now.
        per_source: candidates asked of every retrieval source.
        max_body_bytes: larger requests get 413 before they are parsed.
        max_image_bytes: larger pictures get 413.
        max_image_pixels: larger pictures get 422; a small file can decode to gigabytes.
        body_deadline_s: a body that arrives slower gets 408.
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
    per_source: int = 100
    max_body_bytes: int = 8 * 2**20
    max_image_bytes: int = 5 * 2**20
    max_image_pixels: int = 40_000_000
    body_deadline_s: int = 10
    keys: Path | None = None
    hosts: tuple[str, ...] = ()
    requests_per_s: float = 100.0
    burst: int = 1000

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile is {self.profile!r}: expected one of {', '.join(PROFILES)}")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock is {self.clock!r}: expected one of {', '.join(CLOCKS)}")
        limits = ("max_body_bytes", "max_image_bytes", "max_image_pixels", "requests_per_s", "burst")
        for name in ("port", "per_source", *limits):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
