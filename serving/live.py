"""The recommender that serves, replaced when the generation, the materialized features or the new items change.

The next recommender is built beside the current one and replaces it by one assignment: every request reads it once,
so that no answer mixes two. One that cannot be opened is reported and changes nothing.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from dataset.contracts import DataError
from feature_repo import dead_letters
from feature_repo.ingest import item_states, new_items
from feature_repo.ingest.clock import shop_clock
from feature_repo.item_matrix import embedding_of, matrix_key, open_item_matrix
from feature_repo.online import StoreUnavailable
from feature_repo.own_ids import in_own_ids
from feature_repo.store import open_store
from moonstore.disk import DiskError
from moonstore.errors import StoreError
from run.artifacts import ArtifactError
from run.generations import Current, before, current, folder_of, serving
from serving.opening import open_recommender
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
        refused: number of records in the store's dead letter by kind (``feature_repo.dead_letters``), as
            ``count_refused`` found them last.
        switches: how often another generation took over.
    """

    def __init__(
        self, recommender: Recommender, settings: Settings | None = None, every_s: float = EVERY_S
    ) -> None:
        self.current, self.problem, self.switches = recommender, "", 0
        self.target_generation, self.refused = recommender.generation, dict[str, int]()
        self._settings, self._every_s = settings, every_s
        self._opened = self._whole = (
            recommender  # as opened; with the store's content, withdrawn items included
        )
        self._seen: Current | None = None
        self._state: State | None = None  # of the store when ``_whole`` was built
        self._withdrawn: dict[int, str] = {}
        self._counted = False  # whether the dead letter was counted since the last check
        self._changes = 0  # of items' states when ``_withdrawn`` was read
        self._behind = {"states": "", "store": ""}  # why ``current`` lags behind each
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def stale_reason(self) -> str:
        """Why ``current`` lags behind the store; empty when it is up to date."""
        return self._behind["states"] or self._behind["store"]

    @classmethod
    def open(cls, settings: Settings) -> Live:
        """Serve the run's active generation, and later ones; the one before it if it cannot be opened.

        Raises:
            GenerationError: none is active yet.
            ArtifactError: its artifacts are missing, damaged or do not belong together, and there is none before it.
            StoreError: the states of the items cannot be read: deleted ones would be answered.
        """
        first = _first(settings)
        first.now = shop_clock(settings.run / "store", settings.clock)
        live = cls(first, settings)
        live._read_states(settings.run / "store")
        live.look()
        return live

    def replace(self, recommender: Recommender) -> None:
        """Answer with another recommender from the next request on; the old one ends with its last request."""
        self.current = recommender
        self.switches += 1

    def look(self) -> None:
        """Update ``current`` if the target generation or the store has changed."""
        if self._settings is None:
            return
        store_dir = self._settings.run / "store"
        changed = self._follow_states(store_dir)
        switched = self._follow_generation(self._settings)
        newer = self._follow_store(store_dir)
        if switched:
            self.replace(self._whole.without(self._withdrawn))
            log.info("generation %s serves", self.current.generation)
        elif newer or changed:
            self.current = self._whole.without(self._withdrawn)
        self._counted = False

    def count_refused(self) -> dict[str, int]:
        """Count the dead letter, if it may have changed since it was last counted; with many records that takes time.

        Whoever shows ``refused`` calls this first, in a thread that may wait.
        """
        if self._settings is not None and not self._counted:
            self._counted = True  # first: what changes in between is counted again
            self.refused = dead_letters.counts(self._settings.run / "store")
        return self.refused

    def _read_states(self, store_dir: Path) -> None:
        changes = item_states.changes(store_dir)  # first: what changes in between is read again
        self._withdrawn, self._changes = item_states.withdrawn(store_dir), changes

    def _follow_states(self, store_dir: Path) -> bool:
        """Read which items are withdrawn; returns whether that has changed."""
        try:
            changed = item_states.changes(store_dir) != self._changes
            if changed:
                self._read_states(store_dir)
            self._behind["states"] = ""
            return changed
        except StoreError as error:  # what was withdrawn before stays hidden
            self._lags("states", error, str(error))
            return False

    def _follow_generation(self, settings: Settings) -> bool:
        """Open the generation that ``current.json`` names; returns whether it is another one.

        A failure is tried again when the file changes: ``moon embeddings activate`` rewrites it.
        """
        asked = current(settings.run)
        if asked is None or asked == self._seen:
            return False
        self._seen, self.target_generation, self.problem = asked, asked.generation, ""
        letter = f"{dead_letters.GENERATIONS}/{asked.generation}"
        if asked.generation == self._opened.generation:
            dead_letters.remove(settings.run / "store", letter)
            return False
        try:
            opened = _open(settings, asked.generation)
        except Exception as error:
            log.exception(
                "generation %s cannot be opened, serving %s", asked.generation, self._opened.generation
            )
            self.problem = in_own_ids(settings.run / "store", f"{type(error).__name__}: {error}")
            asked_for = {"generation": asked.generation, "since": asked.since}
            dead_letters.put(
                settings.run / "store",
                dead_letters.GENERATIONS,
                "serve",
                self.problem,
                asked_for,
                str(asked.generation),
            )
            return False
        opened.now = self._opened.now
        # Without item features in memory it reads every candidate from the store, until the next check.
        self._opened, self._whole, self._state = opened, opened, None
        dead_letters.remove(settings.run / "store", letter)
        return True

    def _follow_store(self, store_dir: Path) -> bool:
        """Bring the open generation up to date with the store; returns whether anything has changed."""
        try:
            embedding = embedding_of(store_dir, self._opened.artifacts["embedding"])
            state = (matrix_key(store_dir, embedding), new_items.fingerprint(store_dir))
            if state == self._state:
                return False
            store = open_store(store_dir)
            matrix, items = open_item_matrix(store, embedding), new_items.new_items(store_dir)
            self._whole = refreshed(self._opened, store, matrix, items)
            self._state, self._behind["store"] = state, ""
            return True
        except (StoreError, StoreUnavailable, DataError, ArtifactError, DiskError) as error:
            self._lags("store", error, STORE_AWAY if isinstance(error, StoreUnavailable) else str(error))
            return False

    def _lags(self, behind: str, error: Exception, reason: str) -> None:
        if reason != self._behind[behind]:
            log.warning("not up to date: %s", error)
        self._behind[behind] = reason

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


def _first(settings: Settings) -> Recommender:
    active, earlier = serving(settings.run).generation, before(settings.run)
    try:
        return _open(settings, active)
    except Exception:
        if earlier is None:
            raise
        log.exception("generation %s cannot be opened, starting with %s", active, earlier)
        return _open(settings, earlier)


def _open(settings: Settings, number: int) -> Recommender:
    return open_recommender(settings, folder_of(settings.run, number), number)
