"""The shop's clock: real time, or, for a log of the past, time that continues where that log ends.

Every process that serves or ingests a store has to agree on the time, because an event is visible only to requests
after it became available. The clock is a file beside the sources that holds two moments, shop time and wall time when
it was set; both run on from there at the same rate.
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
    """Wall-clock time, UTC."""
    return datetime.now(UTC)


class ShopClock:
    """The clock of the store at ``store_dir``; calling it returns the shop time.

    Args:
        store_dir: the run's store.
        start: what the clock is set to if it was never set, with a time zone.
    """

    def __init__(self, store_dir: Path, start: datetime) -> None:
        self._path = Path(store_dir) / DATA / CLOCK
        self._read_at: int | None = None
        self._ahead = timedelta(0)
        if not self._path.exists():
            self.set(start)

    def set(self, to: datetime) -> None:
        """Set the shop time to ``to``, for every process."""
        write_json(self._path, {"shop": to.isoformat(), "wall": wall().isoformat()})

    def __call__(self) -> datetime:
        """The shop time, UTC."""
        changed = self._path.stat().st_mtime_ns
        if changed != self._read_at:
            kept = json.loads(self._path.read_text())
            self._ahead = datetime.fromisoformat(kept["shop"]) - datetime.fromisoformat(kept["wall"])
            self._read_at = changed
        return wall() + self._ahead


def shop_clock(store_dir: Path, clock: str, reset: bool = False) -> Callable[[], datetime]:
    """The clock that requests to a store are answered by and its new events are stamped with.

    Args:
        store_dir: the run's store.
        clock: ``wall``: real time; ``log``: starts a second after the newest event in the store.
        reset: set the clock even if it was set before.

    Raises:
        ValueError: ``clock`` is neither.
    """
    if clock == "wall":
        return wall
    if clock != "log":
        raise ValueError(f"clock is {clock!r}: expected log or wall")
    newest = EPOCH + timedelta(microseconds=Journal(store_dir).newest_us(), seconds=1)
    start = max(known_until(store_dir), newest)
    shop = ShopClock(store_dir, start)
    if reset:
        shop.set(start)
    return shop
