"""Events and items over HTTP: in a thread of their own, so that a slow disk or store delays no answer."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from dataset.records import Event, Item
from dataset.shop_ids import ShopId
from feature_repo.ingest.ingestor import Ingested, Ingestor
from feature_repo.ingest.item_states import change_state, state_of
from feature_repo.ingest.new_items import keep_item, kept_item
from feature_repo.online import StoreUnavailable
from feature_repo.sources import DATA, JOURNAL
from moonstore.disk import disk_reason
from moonstore.errors import StoreError
from serving.questions import Refused
from serving.work import TRY_AGAIN, Work

log = logging.getLogger("moon.serving")

P = ParamSpec("P")
T = TypeVar("T")
MOST_WAITING = 16  # each may bring ``MOST_EVENTS``: what comes later waits a second or two, not longer
BLOCK = 4096  # bytes; a file system gives out its space in such


class Intake:
    """Takes events into the store at ``store_dir``, one request after the other.

    Args:
        store_dir: the run's store.
        now: the current time of the shop's clock.

    Attributes:
        work: the thread, and what waits for it.
        failed: requests that could not be kept, or not written online.
        problem: why the last one could not, empty once another one could.
    """

    def __init__(self, store_dir: Path, now: Callable[[], datetime]) -> None:
        self.work = Work("intake", MOST_WAITING)
        self.failed, self.problem = 0, ""
        self._store_dir, self._now = store_dir, now
        self._ingestor = Ingestor(store_dir, now)

    async def take(self, events: Sequence[Event]) -> Ingested:
        """See ``feature_repo.ingest.ingestor.Ingestor.ingest``; refuses with 503 what cannot be kept."""
        return await self.work.run(self._written, self._ingestor.ingest, events, "HTTP")

    async def kept(self, item_id: ShopId) -> tuple[Item | None, str]:
        """The item as it was received last, None if it was not, and its present state."""
        return await self.work.run(self._written, self._kept, item_id)

    async def keep(self, item: Item) -> None:
        """Save an item for the services that read the store (``feature_repo.ingest.new_items``)."""
        await self.work.run(self._written, keep_item, self._store_dir, item, self._now())

    async def set_state(self, item_id: ShopId, state: str) -> None:
        """See ``feature_repo.ingest.item_states.change_state``."""
        await self.work.run(self._written, change_state, self._store_dir, item_id, state, self._now())

    def unwritable(self) -> str:
        """Why nothing can be written now, by writing something; empty if it can."""
        try:
            with tempfile.TemporaryFile(dir=self._store_dir / DATA / JOURNAL) as stream:
                stream.write(bytes(BLOCK))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            return f"nothing can be written to {JOURNAL}: {error.strerror or error}"
        return ""

    def _kept(self, item_id: ShopId) -> tuple[Item | None, str]:
        return kept_item(self._store_dir, item_id), state_of(self._store_dir, item_id)

    def _written(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            result = call(*args, **kwargs)
        except (OSError, StoreError) as error:
            self.failed += 1
            self.problem = str(error)
            log.warning("not kept: %s", error)
            if isinstance(error, StoreUnavailable):  # the journal has it
                raise
            why = disk_reason(error) or getattr(error, "strerror", None) or error
            reason = f"what was sent cannot be kept: {why}; send it again later"
            raise Refused(503, reason, TRY_AGAIN) from error
        self.problem = ""
        return result
