"""The service: HTTP around ``serving.recommend``. ``create_app`` builds it; nothing happens at import.

Handlers are coroutines that call straight into numpy and torch: one process per core, no thread hop.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import faiss
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from serving.endpoints.answers import add_answers
from serving.endpoints.arrivals import add_arrivals
from serving.endpoints.operations import add_operations
from serving.intake import Intake
from serving.live import Live
from serving.recommend import Recommender
from serving.refusals import add_refusals, error_response
from serving.settings import Settings
from serving.telemetry import Telemetry

log = logging.getLogger("moon.serving")


def serve(settings: Settings) -> None:
    """Serve a run's active generation until interrupted: one process, one thread per library.

    Raises:
        GenerationError: none is active.
        ArtifactError: its artifacts are missing, damaged or do not belong together.
    """
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    app = create_app(settings)
    with frozen_garbage_collector():
        uvicorn.run(app, host=settings.host, port=settings.port, log_level="info")


@contextmanager
def frozen_garbage_collector() -> Iterator[None]:
    """Exclude everything loaded so far from garbage collection, which would delay some request by a few 100 ms."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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
    telemetry = Telemetry(live)

    @asynccontextmanager
    async def following(_: FastAPI) -> AsyncIterator[None]:
        live.start()
        yield
        live.stop()

    app = FastAPI(
        title="Moon",
        max_body_size=settings.max_body_bytes,
        docs_url="/docs",
        redoc_url=None,
        lifespan=following,
    )
    add_refusals(app)
    _counting(app, telemetry)
    add_answers(app, settings, live, telemetry)
    add_arrivals(app, settings, intake, telemetry)
    add_operations(app, live, telemetry)
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
