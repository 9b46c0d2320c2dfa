"""The recommender that serves, replaced when the generation, the materialized features or the new items change.

The next recommender is built beside the current one and replaces it by one assignment: every request reads it once,
so that no answer mixes two. One that cannot be opened is reported and changes nothing.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from dataset.contracts import DataError
from feature_repo.ingest import new_items
from feature_repo.ingest.clock import shop_clock
from feature_repo.item_matrix import embedding_of, matrix_key, open_item_matrix
from feature_repo.online import StoreUnavailable
from feature_repo.store import open_store
from moonstore.errors import StoreError
from run.generations import Current, current, folder_of, serving
from serving.recommend import STORE_AWAY, Recommender
from serving.refresh import refreshed
from serving.settings import Settings

log = logging.getLogger("moon.serving")

EVERY_S = 0.2
State = tuple[str, tuple[tuple[str, int], ...]]


class Live:
    """Holds the recommender that answers.

    Args:
        recommender: the first one to serve.
        settings: of the run whose ``generations/current.json`` and store are watched; None: nothing is.
        every_s: seconds between two checks.

    Attributes:
        current: the recommender that serves; read it once per request.
        target_generation: number of the generation that should serve, None where nothing is watched.
        problem: why it does not serve, empty when it does.
        refused: how many new items are in the dead letter, because they cannot be encoded or stored.
        stale_reason: why ``current`` lags behind the store, empty when it is up to date.
        switches: how often another generation took over.
    """

    def __init__(
        self, recommender: Recommender, settings: Settings | None = None, every_s: float = EVERY_S
    ) -> None:
        self.current, self.problem, self.stale_reason, self.switches = recommender, "", "", 0
        self.target_generation, self.refused = recommender.generation, 0
        self._settings, self._every_s = settings, every_s
        self._opened = recommender
        self._seen: Current | None = None
        self._state: State | None = None  # of the store when ``current`` was built
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def open(cls, settings: Settings) -> Live:
        """Serve the run's active generation, and later ones.

        Raises:
            GenerationError: none is active yet.
            ArtifactError: its artifacts are missing, damaged or do not belong together.
        """
        first = _open(settings, serving(settings.run).generation)
        first.now = shop_clock(settings.run / "store", settings.clock)
        live = cls(first, settings)
        live.look()
        return live

    def replace(self, recommender: Recommender) -> None:
        """Answer with another recommender from the next request on; the old one ends with its last request."""
        self.current = recommender
        self.switches += 1

    def look(self) -> None:
        """Update ``current`` if the target generation or the store has changed."""
        if self._settings is not None:
            self._follow_generation(self._settings)
            newer = self._up_to_date(self._settings.run / "store")
            self.current = newer or self.current

    def _follow_generation(self, settings: Settings) -> None:
        """Open the generation that ``current.json`` names, bring it up to date, and switch to it.

        A failure is tried again when the file changes: ``moon embeddings activate`` rewrites it.
        """
        asked = current(settings.run)
        if asked is None or asked == self._seen:
            return
        self._seen, self.target_generation, self.problem = asked, asked.generation, ""
        if asked.generation == self._opened.generation:
            return
        try:
            opened = _open(settings, asked.generation)
        except Exception as error:
            log.exception(
                "generation %s cannot be opened, serving %s", asked.generation, self._opened.generation
            )
            self.problem = f"{type(error).__name__}: {error}"
            return
        opened.now = self._opened.now
        self._opened, self._state = opened, None
        # Without item features in memory it reads every candidate from the store, until the next check.
        self.replace(self._up_to_date(settings.run / "store") or opened)
        log.info("generation %s serves", asked.generation)

    def _up_to_date(self, store_dir: Path) -> Recommender | None:
        """The open generation with the store's present content; None: nothing has changed, or the update failed."""
        try:
            embedding = embedding_of(store_dir, self._opened.artifacts["embedding"])
            state = (matrix_key(store_dir, embedding), new_items.state(store_dir))
            if state == self._state:
                return None
            store = open_store(store_dir)
            matrix, items = open_item_matrix(store, embedding), new_items.new_items(store_dir)
            newer = refreshed(self._opened, store, matrix, items)
            self._state, self.stale_reason = state, ""
            self.refused = len(new_items.refused_items(store_dir))
            return newer
        except (StoreError, StoreUnavailable, DataError) as error:
            reason = STORE_AWAY if isinstance(error, StoreUnavailable) else str(error)
            if reason != self.stale_reason:
                log.warning("not up to date: %s", error)
            self.stale_reason = reason
            return None

    def start(self) -> None:
        """Check for changes periodically, in a daemon thread."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._follow, name="live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop checking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.look()
            except Exception:  # a file cannot be read: the current recommender goes on serving
                log.exception("the check for changes failed")


def _open(settings: Settings, number: int) -> Recommender:
    return Recommender.open(settings, folder_of(settings.run, number), number)
