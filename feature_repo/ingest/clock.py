"""The shop's clock: real time, or, for a log of the past, time that continues where that log ends.

Every process that serves or ingests a store has to agree on the time, because an event is visible only to requests
after it became available. So the clock belongs to the run: a file beside the sources holds two moments, shop time
and wall time when it was set, and both run on from there at the same rate. The first process that needs the clock
sets it; a later one only moves it forward, where the store knows of a newer event, and never back.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feature_repo.ingest.journal import Journal
from feature_repo.sources import DATA
from feature_repo.store import known_until
from moonstore.files import locked, write_json
from moonstore.freshness import EPOCH
from run.artifacts import ArtifactError, read_json

SECOND = timedelta(seconds=1)
CLOCK, LOCK = "clock.json", ".clock.lock"
AGAIN = "Remove it: the next start of 'moon serve' sets it."  # what to do about a damaged one


def wall() -> datetime:
    """Wall-clock time, UTC."""
    return datetime.now(UTC)


class ShopClock:
    """The clock of the store at ``store_dir``; calling it returns the shop time.

    Args:
        store_dir: the run's store.
        start: what the clock is set to if it was never set, or if it is more than a second behind: a second after the
            newest event that the store knows, with a time zone.
    """

    def __init__(self, store_dir: Path, start: datetime) -> None:
        self._path = Path(store_dir) / DATA / CLOCK
        self._read_at: int | None = None
        self._ahead = timedelta(0)
        with locked(self._path.with_name(LOCK)):
            if not self._path.exists() or self() + SECOND < start:
                self.set(start)

    def set(self, to: datetime) -> None:
        """Set the shop time to ``to``, for every process."""
        write_json(self._path, {"shop": to.isoformat(), "wall": wall().isoformat()})

    def __call__(self) -> datetime:
        """The shop time, UTC."""
        changed = self._path.stat().st_mtime_ns
        if changed != self._read_at:
            kept = read_json(self._path, AGAIN, ("shop", "wall"))
            try:
                self._ahead = datetime.fromisoformat(kept["shop"]) - datetime.fromisoformat(kept["wall"])
            except (TypeError, ValueError) as error:
                raise ArtifactError(
                    f"{self._path}: damaged, no two times any more ({error}). {AGAIN}"
                ) from None
            self._read_at = changed
        return wall() + self._ahead


def shop_clock(store_dir: Path, clock: str) -> Callable[[], datetime]:
    """The clock that requests to a store are answered by and its new events are stamped with.

    Args:
        store_dir: the run's store.
        clock: ``wall``: real time; ``log``: started a second after the newest event in the store, when it was first
            asked for, and has been running since.

    Raises:
        ValueError: ``clock`` is neither.
    """
    if clock == "wall":
        return wall
    if clock != "log":
        raise ValueError(f"clock is {clock!r}: expected log or wall")
    newest = EPOCH + timedelta(microseconds=Journal(store_dir).newest_us(), seconds=1)
    return ShopClock(store_dir, max(known_until(store_dir), newest))
