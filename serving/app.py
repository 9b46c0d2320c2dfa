"""The service: HTTP around ``serving.recommend``. ``create_app`` builds it; nothing happens at import.

Handlers are coroutines that call straight into numpy and torch: one process per core, no thread hop.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import faiss
import torch
import uvicorn
from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from serving.access import Access
from serving.endpoints.answers import add_answers
from serving.endpoints.arrivals import add_arrivals
from serving.endpoints.operations import add_operations
from serving.gate import Gate
from serving.intake import Intake
from serving.keys import KeyRing, require_keys
from serving.live import Live
from serving.logs import start_logging
from serving.openapi import describe_keys
from serving.recommend import Recommender
from serving.refusals import add_refusals
from serving.settings import Settings
from serving.telemetry import Telemetry


def serve(settings: Settings) -> None:
    """Serve a run's active generation until interrupted: one process, one thread per library.

    Raises:
        KeysError: other machines reach the address, and there are no API keys.
        GenerationError: none is active.
        ArtifactError: its artifacts are missing, damaged or do not belong together.
    """
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    require_keys(settings)
    start_logging()
    app = create_app(settings)
    with frozen_garbage_collector():
        uvicorn.run(
            app,
            host=settings.host,
            port=settings.port,
            log_level="info",
            access_log=False,  # ours (``serving.access``) has no addresses with queries in it
            server_header=False,
        )


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
        KeysError: the API keys cannot be read.
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

    # No /docs: its scripts would come from another site. /openapi.json says the same to any viewer.
    app = FastAPI(title="Moon", docs_url=None, redoc_url=None, lifespan=following)
    add_refusals(app)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(Gate, settings=settings, keys=KeyRing.open(settings))
    app.add_middleware(Access, telemetry=telemetry)  # added last, it is outermost
    add_answers(app, settings, live, telemetry)
    add_arrivals(app, settings, live, intake, telemetry)
    add_operations(app, live, telemetry)
    describe_keys(app)
    return app
