"""The service: HTTP around ``serving.recommend``. ``create_app`` builds it; nothing happens at import.

Handlers are coroutines that call straight into numpy and torch: one process per core, no thread hop.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import faiss
import torch
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from dataset.contracts import DataError
from dataset.pictures import media_type
from feature_repo.ingest.arrivals import parse_events, parsed
from feature_repo.ingest.new_items import Item
from feature_repo.online import StoreUnavailable
from serving.answer import Answer
from serving.intake import Intake
from serving.live import Live
from serving.page import render
from serving.questions import (
    RecommendQuestion,
    Refused,
    SearchForm,
    SearchQuestion,
    SimilarQuestion,
    check_image,
    decode_base64,
)
from serving.recommend import Recommender, UnknownCategory, UnknownItem
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
    _refusals(app)
    _counting(app, telemetry)
    _answers(app, settings, live, telemetry)
    _arrivals(app, settings, intake, telemetry)
    _operations(app, live, telemetry)
    return app


def _answers(app: FastAPI, settings: Settings, live: Live, telemetry: Telemetry) -> None:
    """Every handler reads ``live.current`` once: the recommender may be replaced at any moment."""

    def answered(endpoint: str, answer: Answer, moon: Recommender) -> JSONResponse:
        telemetry.answered(endpoint, answer)
        return JSONResponse(
            _content(answer, moon.artifacts), headers={"Server-Timing": _server_timing(answer)}
        )

    @app.get("/recommend")
    async def recommend(question: Annotated[RecommendQuestion, Query()]) -> JSONResponse:
        """What this user should see now."""
        moon = live.current
        answer = moon.recommend(question.user_id, question.k, question.category, session=question.session)
        return answered("/recommend", answer, moon)

    @app.get("/similar")
    async def similar(question: Annotated[SimilarQuestion, Query()]) -> JSONResponse:
        """Items like this one."""
        moon = live.current
        return answered("/similar", moon.similar(question.item_id, question.k), moon)

    @app.post("/search")
    async def search(request: Request) -> JSONResponse:
        """Items that answer a text, a picture or both: JSON (``image_base64``) or multipart (``image``)."""
        text, image, user_id, k = await _asked(request, settings)
        if image is not None:
            image = check_image(image, settings.max_image_bytes, settings.max_image_pixels)
        if image is None and not (text and text.strip()):
            raise Refused(422, "expected a text, an image or both, found neither")
        moon = live.current
        return answered("/search", moon.search(text, image, k, user_id), moon)

    @app.get("/image/{image_id}")
    async def image(image_id: str) -> Response:
        """The picture of an item."""
        content = live.current.catalogue.image_bytes(image_id)
        if content is None:
            raise Refused(404, "no such picture")
        return Response(
            content, media_type=media_type(content), headers={"Cache-Control": "public, max-age=86400"}
        )

    @app.get("/", response_class=HTMLResponse)
    async def page(user_id: str = "", category: str = "", item_id: str = "", text: str = "") -> HTMLResponse:
        """A page to look at."""
        return HTMLResponse(render(live.current, user_id, category, item_id, text))


def _arrivals(app: FastAPI, settings: Settings, intake: Intake | None, telemetry: Telemetry) -> None:
    @app.post("/events")
    async def events(request: Request) -> JSONResponse:
        """What users did: a JSON list of events; a repeated event is stored once."""
        found = await _taken(intake).take(parse_events(await _body(request, settings)))
        telemetry.ingested(found)
        return JSONResponse({"accepted": found.accepted, "duplicates": found.duplicates})

    @app.post("/items", status_code=202)
    async def items(request: Request) -> JSONResponse:
        """An item that is new or has changed, as JSON; it can be recommended within seconds, see ``/similar``."""
        item = parsed(Item, await _body(request, settings))
        if item.image_base64 is not None:
            image = decode_base64(item.image_base64)
            check_image(image, settings.max_image_bytes, settings.max_image_pixels)
        await _taken(intake).keep(item)
        return JSONResponse({"item_id": item.item_id}, status_code=202)


def _operations(app: FastAPI, live: Live, telemetry: Telemetry) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Artifacts agree, the index is loaded, the online store answers and knows its users.

        A generation that cannot be opened is reported but leaves the service ready: the one before it still serves.
        """
        moon = live.current
        problems = moon.ready()
        content = {
            "status": "not ready" if problems else "ready",
            "problems": problems,
            "artifacts": moon.artifacts,
            "generation": {
                "served": moon.generation,
                "asked": live.target_generation,
                "problem": live.problem,
            },
            "items": {
                "loaded_until": moon.items.loaded_until if moon.items is not None else None,
                "problem": live.stale_reason,
                "refused": live.refused,
            },
        }
        return JSONResponse(content, status_code=503 if problems else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(telemetry.text(), media_type="text/plain; version=0.0.4")


def _refusals(app: FastAPI) -> None:
    """Every refusal is ``{"error": reason}``; none echoes the input, which may not be JSON itself (NaN)."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return _error(error.status, error.reason)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _error(422, _reasons(error.errors()))

    @app.exception_handler(UnknownItem)
    @app.exception_handler(UnknownCategory)
    async def unknown(_: Request, error: LookupError) -> JSONResponse:
        return _error(404, str(error.args[0]))

    @app.exception_handler(DataError)
    async def unfit(_: Request, error: DataError) -> JSONResponse:
        return _error(422, str(error))

    @app.exception_handler(StoreUnavailable)
    async def unavailable(_: Request, error: StoreUnavailable) -> JSONResponse:
        return _error(503, f"{error}; what was received is kept, telling it again is safe")

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))


def _counting(app: FastAPI, telemetry: Telemetry) -> None:
    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            response = await call_next(request)
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            response = _error(500, "the service failed; the reason is in its log")
        route = request.scope.get("route")
        telemetry.responded(getattr(route, "path", "unknown"), response.status_code)
        return response


def _taken(intake: Intake | None) -> Intake:
    if intake is None:
        raise Refused(503, "this service accepts no events or items")
    return intake


async def _body(request: Request, settings: Settings) -> bytes:
    try:
        return await asyncio.wait_for(request.body(), settings.body_deadline_s)
    except TimeoutError:
        raise _too_slow(settings) from None


def _too_slow(settings: Settings) -> Refused:
    return Refused(408, f"the body did not arrive within {settings.body_deadline_s} s")


async def _asked(request: Request, settings: Settings) -> tuple[str | None, bytes | None, int | None, int]:
    """Text, picture, user and k of a search, from JSON or a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            asked = SearchQuestion.model_validate_json(await _body(request, settings))
            image = None if asked.image_base64 is None else decode_base64(asked.image_base64)
            return asked.text, image, asked.user_id, asked.k
        if kind == "multipart/form-data":
            form = await asyncio.wait_for(request.form(max_files=1, max_fields=8), settings.body_deadline_s)
            fields: dict[str, Any] = {name: value for name, value in form.items() if name != "image"}
            upload = form.get("image")
            if upload is not None and not isinstance(upload, UploadFile):
                raise Refused(422, "image: expected a file")
            filled = SearchForm.model_validate({name: value for name, value in fields.items() if value != ""})
            image = await upload.read() if upload is not None else None
            return filled.text, image or None, filled.user_id, filled.k
    except TimeoutError:
        raise _too_slow(settings) from None
    except ValidationError as error:
        raise Refused(422, _reasons(error.errors(include_input=False))) from None
    raise Refused(
        415, f"expected application/json or multipart/form-data, found {kind or 'no content type'!r}"
    )


def _content(answer: Answer, artifacts: dict[str, str]) -> dict[str, Any]:
    return {
        "hits": [
            {
                "item_id": hit.card.item_id,
                "score": hit.score,
                "title": hit.card.title,
                "category": hit.card.category,
                "price": hit.card.price,
                "image_id": hit.card.image_id,
                "matches": hit.matches,
            }
            for hit in answer.hits
        ],
        "order": answer.order,
        "fallbacks": list(answer.fallbacks),
        "timings_ms": {stage: round(ms, 3) for stage, ms in answer.timings_ms.items()},
        "artifacts": artifacts,
    }


def _server_timing(answer: Answer) -> str:
    return ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in answer.timings_ms.items())


def _reasons(errors: Any) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in error['loc']) or 'body'}: {error['msg']}" for error in errors
    )


def _error(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status_code=status)
