"""Events and items over HTTP: in a thread of their own, so that a slow disk or store delays no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from dataset.records import Event, Item
from feature_repo.ingest.ingestor import Ingested, Ingestor
from feature_repo.ingest.new_items import keep_item, kept_item


class Intake:
    """Takes events into the store at ``store_dir``, one request after the other.

    Args:
        store_dir: the run's store.
        now: the current time of the shop's clock.
    """

    def __init__(self, store_dir: Path, now: Callable[[], datetime]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="intake")
        self._store_dir, self._now = store_dir, now
        self._ingestor = self._thread.submit(Ingestor, store_dir, now).result()

    async def take(self, events: Sequence[Event]) -> Ingested:
        """See ``feature_repo.ingest.ingestor.Ingestor.ingest``."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ingestor.ingest, events)

    async def kept(self, item_id: int) -> Item | None:
        """The item as it was received last; None: it was not."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, kept_item, self._store_dir, item_id)

    async def keep(self, item: Item) -> None:
        """Save an item for the services that read the store (``feature_repo.ingest.new_items``)."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, keep_item, self._store_dir, item, self._now())
