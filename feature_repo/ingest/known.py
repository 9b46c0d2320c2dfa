"""The events that are known, and whether one that comes in tells of one of them again or is another under its id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dataset.identity import event_content
from feature_repo.sources import read_source


class Told(NamedTuple):
    """What is remembered of an event that was accepted.

    Attributes:
        available_us, event_us: its times, microseconds since 1970 UTC.
        content: ``dataset.identity.event_content`` of it.
    """

    available_us: int
    event_us: int
    content: int

    def is_told_by(self, event_us: int | None, content: int) -> bool:
        """Whether an event with this time (None: it names none) and content is this one, told again.

        A time ahead of the arrival was set to just before it, see ``arrivals.events_table``.
        """
        same_time = event_us is None or min(event_us, self.available_us - 1) == self.event_us
        return same_time and content == self.content


def told(events: pa.Table) -> Iterator[tuple[int, Told]]:
    """The stored id of each of these EVENTS rows and what is remembered of it."""
    times = (events.column(name).cast(pa.int64()).to_pylist() for name in ("available_time", "event_time"))
    facts = zip(*times, event_content(events).tolist(), strict=True)
    return zip(events.column("event_id").to_pylist(), map(Told._make, facts), strict=True)


@dataclass(frozen=True)
class LoggedEvents:
    """The events of one version of the offline log.

    Attributes:
        path: of the log.
        ids: stored ids, int64, ascending.
    """

    path: Path
    ids: np.ndarray

    @classmethod
    def read(cls, path: Path) -> LoggedEvents:
        """Read the ids; what the events say is read when it is first asked for."""
        return cls(path, np.sort(read_source(path, ["event_id"]).column(0).to_numpy()))

    def find(self, event_id: int) -> Told | None:
        """The event stored under an id; None: the log does not hold it."""
        place = int(np.searchsorted(self.ids, event_id))
        if place == len(self.ids) or int(self.ids[place]) != event_id:
            return None
        ids, facts = self._facts
        return Told(*facts[:, np.searchsorted(ids, event_id)].tolist())

    @cached_property
    def _facts(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids ascending, int64 (N), and available_us, event_us and content of each, int64 (3, N).

        A fold may have replaced the log since ``read``: the newer one holds all events of the older.
        """
        events = read_source(self.path)
        ids = events.column("event_id").to_numpy()
        order = np.argsort(ids, kind="stable")
        times = [events.column(name).cast(pa.int64()).to_numpy() for name in ("available_time", "event_time")]
        return ids[order], np.stack([*times, event_content(events)])[:, order]
