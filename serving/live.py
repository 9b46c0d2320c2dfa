"""What serves now, and the watch for what is to serve next.

A generation is opened beside the one that serves and takes its place by one assignment: every request takes the
recommender once, so that no answer is made of two. One that cannot be opened is reported and changes nothing.
"""

from __future__ import annotations

import logging
import threading

from moon.generations import Current, current, folder_of, serving
from serving.recommend import Recommender
from serving.settings import Settings

log = logging.getLogger("moon.serving")

EVERY_S = 0.2


class Live:
    """Holds the recommender that answers.

    Args:
        recommender: what answers first.
        settings: of the run whose ``generations/current.json`` is followed; None: nothing is.
        every_s: seconds between two looks at it.

    Attributes:
        current: what answers now; take it once per request.
        asked: number of the generation that should serve, None where nothing is followed.
        problem: why it does not, empty when it does.
        switches: how often another recommender took over.
    """

    def __init__(
        self, recommender: Recommender, settings: Settings | None = None, every_s: float = EVERY_S
    ) -> None:
        self.current, self.problem, self.switches = recommender, "", 0
        self.asked = recommender.generation
        self._settings, self._every_s = settings, every_s
        self._seen: Current | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def open(cls, settings: Settings) -> Live:
        """Serve the run's active generation, and follow it.

        Raises:
            GenerationError: none is active yet.
            ArtifactError: its artifacts are missing, damaged or do not belong together.
        """
        return cls(_open(settings, serving(settings.run).generation), settings)

    def replace(self, recommender: Recommender) -> None:
        """Answer with another recommender from the next request on; the old one ends with its last request."""
        self.current = recommender
        self.switches += 1

    def look(self) -> None:
        """Follow ``current.json`` if it has changed: open what it names, and let it take over.

        What fails is tried again when the file changes: ``moon embeddings activate`` writes it anew.
        """
        if self._settings is None:
            return
        asked = current(self._settings.run)
        if asked is None or asked == self._seen:
            return
        self._seen, self.asked = asked, asked.generation
        if asked.generation == self.current.generation:
            self.problem = ""
            return
        served = self.current.generation
        try:
            recommender = _open(self._settings, asked.generation)
        except Exception as error:
            log.exception("generation %s cannot be opened, serving %s", asked.generation, served)
            self.problem = f"{type(error).__name__}: {error}"
            return
        self.replace(recommender)
        self.problem = ""
        log.info("generation %s serves, after %s", asked.generation, served)

    def start(self) -> None:
        """Look again and again, in a thread that ends with the process."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._follow, name="generations", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.look()
            except Exception:  # the file itself cannot be read
                log.exception("the active generation cannot be read")


def _open(settings: Settings, number: int) -> Recommender:
    return Recommender.open(settings, folder_of(settings.run, number), number)
