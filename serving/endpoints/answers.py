"""Answers: recommendations, similar items, search, pictures and the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from dataset.contracts import DataError
from dataset.pictures import MEDIA_TYPES, media_type
from dataset.records import Rule
from dataset.shop_ids import ShopId
from serving.answer import Answer
from serving.bodies import read_search, refuse_repeated
from serving.live import Live
from serving.openapi import PAGE_BODY, SEARCH_BODY, page_refused_with, refused_with
from serving.page import page as page_of
from serving.page import render
from serving.questions import (
    PageQuestion,
    RecommendQuestion,
    Refused,
    SimilarQuestion,
    check_image,
    read_context,
    read_id,
)
from serving.recommend import Recommender
from serving.settings import Settings
from serving.telemetry import Telemetry
from serving.work import Work

PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}}}


def add_answers(
    app: FastAPI, settings: Settings, live: Live, answering: Work, parsing: Work, telemetry: Telemetry
) -> None:
    """Every handler reads ``live.current`` once: the recommender may be replaced at any moment.

    ``answering`` computes the answers, ``parsing`` parses what was asked.
    """

    async def answered(endpoint: str, moon: Recommender, ask: Callable[[], Answer]) -> JSONResponse:
        answer, response = await answering.run(_answer, moon, ask)
        telemetry.answered(endpoint, answer)
        return response

    async def sought(request: Request) -> tuple[str | None, bytes | None, ShopId | None, int]:
        text, image, user_id, k = await read_search(request, settings, parsing, live.current.ids.kinds)
        if image is not None:
            check_image(image, settings.max_image_bytes, settings.max_image_pixels)
        if image is None and not text:
            raise Refused(422, Rule.NO_QUERY)
        return text or None, image, user_id, k

    @app.get("/recommend", responses=refused_with(404, 422, 503))
    async def recommend(request: Request, question: Annotated[RecommendQuestion, Query()]) -> JSONResponse:
        """What this user should see now."""
        refuse_repeated((name for name, _ in request.query_params.multi_items()), lists=("session",))
        moon, asked = live.current, question
        user = read_id("user_id", asked.user_id, moon.ids.kinds)
        session = [read_id("item_id", one, moon.ids.kinds) for one in asked.session]
        context = read_context(asked.context)
        return await answered(
            "/recommend",
            moon,
            lambda: moon.recommend(
                user,
                asked.k,
                asked.category,
                session=session,
                context=context,
                explained=asked.explain,
                new=asked.new,
            ),
        )

    @app.get("/similar", responses=refused_with(404, 422, 503))
    async def similar(request: Request, question: Annotated[SimilarQuestion, Query()]) -> JSONResponse:
        """Items like this one."""
        refuse_repeated(name for name, _ in request.query_params.multi_items())
        moon = live.current
        item = read_id("item_id", question.item_id, moon.ids.kinds)
        return await answered("/similar", moon, lambda: moon.similar(item, question.k))

    @app.post("/search", openapi_extra=SEARCH_BODY, responses=refused_with(408, 415, 422, 503))
    async def search(request: Request) -> JSONResponse:
        """Items that answer a text, a picture or both: JSON (``image_base64``) or multipart (``image``)."""
        moon = live.current
        text, image, user_id, k = await sought(request)
        return await answered("/search", moon, lambda: moon.search(text, image, k, user_id))

    @app.get("/image/{image_id}", response_class=Response, responses=PICTURE | refused_with(404, 503))
    async def image(image_id: str) -> Response:
        """The picture of an item."""
        content = await parsing.run(live.current.catalogue.image_bytes, image_id)
        if content is None:
            raise Refused(404, "no such picture")
        return Response(
            content, media_type=media_type(content), headers={"Cache-Control": "private, max-age=86400"}
        )

    @app.get("/", response_class=HTMLResponse, responses=refused_with(422, 503))
    async def page(request: Request, asked: Annotated[PageQuestion, Query()]) -> HTMLResponse:
        """A page to look at."""
        refuse_repeated(name for name, _ in request.query_params.multi_items())
        shown = (asked.user_id, asked.category, asked.item_id, asked.text)
        return HTMLResponse(await answering.run(render, live.current, *shown))

    @app.post(
        "/",
        response_class=HTMLResponse,
        openapi_extra=PAGE_BODY,
        responses=page_refused_with(408, 415, 422, 503),
    )
    async def search_page(request: Request) -> HTMLResponse:
        """The same page for what its form searches for: words, a picture, or both."""
        moon = live.current
        try:
            text, image, _, _ = await sought(request)
            return HTMLResponse(await answering.run(render, moon, "", "", "", text or "", image))
        except (Refused, DataError) as error:
            refused = error if isinstance(error, Refused) else Refused(422, str(error))
            said = page_of(moon, refused.reason)
            return HTMLResponse(said, refused.status, headers=refused.headers and dict(refused.headers))


def _answer(moon: Recommender, ask: Callable[[], Answer]) -> tuple[Answer, JSONResponse]:
    answer = ask()
    content = _content(answer, moon.artifacts)
    return answer, JSONResponse(content, headers={"Server-Timing": _server_timing(answer)})


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
                **({} if hit.parts is None else {"explanation": hit.parts}),
                **({"explored": True} if hit.explored else {}),
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
