"""The service: HTTP around ``serving.recommend``. ``create_app`` builds it; nothing happens at import.

Handlers are coroutines that read and write; what takes time runs in threads (``serving.work``), one for the answers,
one for parsing, one for what arrives and one that examines store and disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from serving.access import Access
from serving.drain import Drain
from serving.endpoints.answers import add_answers
from serving.endpoints.arrivals import add_arrivals
from serving.endpoints.operations import add_operations
from serving.gate import Gate
from serving.intake import Intake
from serving.keys import KeyRing
from serving.live import Live
from serving.openapi import describe
from serving.recommend import Recommender
from serving.refusals import add_refusals
from serving.settings import Settings
from serving.siblings import Siblings
from serving.telemetry import Telemetry
from serving.work import Work


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
    names = ("answering", "parsing", "examining")
    answering, parsing, examining = works = [Work(name, settings.most_waiting) for name in names]
    if intake is not None:
        works.append(intake.work)
    siblings = None if settings.metrics is None else Siblings(settings.metrics)
    telemetry, drain = Telemetry(live, intake, works, siblings), Drain(settings.drain_s)

    @asynccontextmanager
    async def following(_: FastAPI) -> AsyncIterator[None]:
        live.start()
        sharing = asyncio.create_task(telemetry.share())
        with drain.on_signal():
            yield
        sharing.cancel()
        live.stop()
        for work in works:
            work.close()

    # No /docs: its scripts would come from another site. /openapi.json says the same to any viewer.
    app = FastAPI(title="Moon", docs_url=None, redoc_url=None, lifespan=following)
    add_refusals(app)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(Gate, settings=settings, keys=KeyRing.open(settings))
    app.add_middleware(Access, telemetry=telemetry)  # added last, it is outermost
    add_answers(app, settings, live, answering, parsing, telemetry)
    add_arrivals(app, settings, live, intake, parsing, telemetry)
    add_operations(app, live, intake, drain, examining, telemetry)
    describe(app, live.current.ids.kinds)
    return app
