"""What time it is in the shop: now, or, for a log of the past, as if that log had ended when the service started.

Every process that serves or ingests a store has to agree on it, since the time at which an event became available
decides who may see it. A shop's clock is kept in a file beside the sources: the moment in the shop and the moment on
the wall at which it was set; from there both run on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feature_repo.ingest.journal import Journal
from feature_repo.sources import DATA
from feature_repo.store import known_until
from moonstore.freshness import EPOCH
from run.artifacts import write_json

CLOCK = "clock.json"


def wall() -> datetime:
    """The time on the wall."""
    return datetime.now(UTC)


class ShopClock:
    """The time in the shop at ``store_dir``; call it.

    Args:
        store_dir: the run's store.
        start: what it is set to if nobody has set it yet, with a zone.
    """

    def __init__(self, store_dir: Path, start: datetime) -> None:
        self._path = Path(store_dir) / DATA / CLOCK
        self._read_at: int | None = None
        self._ahead = timedelta(0)
        if not self._path.exists():
            self.set(start)

    def set(self, to: datetime) -> None:
        """Make it ``to`` now, for every process."""
        write_json(self._path, {"shop": to.isoformat(), "wall": wall().isoformat()})

    def __call__(self) -> datetime:
        """The time in the shop, UTC."""
        changed = self._path.stat().st_mtime_ns
        if changed != self._read_at:
            kept = json.loads(self._path.read_text())
            self._ahead = datetime.fromisoformat(kept["shop"]) - datetime.fromisoformat(kept["wall"])
            self._read_at = changed
        return wall() + self._ahead


def shop_clock(store_dir: Path, clock: str, anew: bool = False) -> Callable[[], datetime]:
    """The time that a store is served as of, and that its events come at.

    Args:
        store_dir: the run's store.
        clock: ``wall``: now; ``log``: as if the newest event the store holds had come a second before the clock was
            set.
        anew: set it, whoever has set it before.

    Raises:
        ValueError: another clock.
    """
    if clock == "wall":
        return wall
    if clock != "log":
        raise ValueError(f"clock is {clock!r}: expected log or wall")
    newest = EPOCH + timedelta(microseconds=Journal(store_dir).newest_us(), seconds=1)
    start = max(known_until(store_dir), newest)
    shop = ShopClock(store_dir, start)
    if anew:
        shop.set(start)
    return shop
