"""The service: HTTP around ``serving.recommend``. ``create_app`` builds it; nothing happens at import.

Handlers are coroutines that read and write; what takes time runs in threads (``serving.work``), one for the answers,
one for parsing, one for what arrives and one that examines store and disk.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from serving.drain import Drain
from serving.endpoints.answers import add_answers
from serving.endpoints.arrivals import add_arrivals
from serving.endpoints.operations import add_operations
from serving.intake import Intake
from serving.live import Live
from serving.recommend import Recommender
from serving.refusals import add_refusals, error_response
from serving.settings import Settings
from serving.telemetry import Telemetry
from serving.work import Work

log = logging.getLogger("moon.serving")


def create_app(
    settings: Settings, recommender: Recommender | None = None, intake: Intake | None = None
) -> FastAPI:
    """The application over one run.

    Args:
        settings: limits, and the run whose active generation serves.
        recommender: serve this one instead; ``settings.run`` is not watched.
        intake: where events go when ``recommender`` is given; None: they are refused.

    Raises:
        GenerationError: none is active.
        ArtifactError: its artifacts are missing, damaged or do not belong together.
    """
    if recommender is None:
        live = Live.open(settings)
        intake = Intake(settings.run / "store", live.current.now)
    else:
        live = Live(recommender)
    names = ("answering", "parsing", "examining")
    answering, parsing, examining = works = [Work(name, settings.most_waiting) for name in names]
    if intake is not None:
        works.append(intake.work)
    telemetry, drain = Telemetry(live, intake, works), Drain(settings.drain_s)

    @asynccontextmanager
    async def following(_: FastAPI) -> AsyncIterator[None]:
        live.start()
        with drain.on_signal():
            yield
        live.stop()
        for work in works:
            work.close()

    app = FastAPI(
        title="Moon",
        max_body_size=settings.max_body_bytes,
        docs_url="/docs",
        redoc_url=None,
        lifespan=following,
    )
    add_refusals(app)
    _counting(app, telemetry)
    add_answers(app, settings, live, answering, parsing, telemetry)
    add_arrivals(app, settings, intake, parsing, telemetry)
    add_operations(app, live, intake, drain, examining, telemetry)
    return app


def _counting(app: FastAPI, telemetry: Telemetry) -> None:
    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            response = await call_next(request)
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            response = error_response(500, "the service failed; the reason is in its log")
        route = request.scope.get("route")
        telemetry.responded(getattr(route, "path", "unknown"), response.status_code)
        return response
