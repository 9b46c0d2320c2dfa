"""Arrivals: events, and items that are new or have changed."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from dataset.pictures import decoded
from dataset.records import Item
from feature_repo.ingest.arrivals import parse_events, parsed
from serving.bodies import read_body
from serving.intake import Intake
from serving.questions import Refused, check_image, decode_base64
from serving.settings import Settings
from serving.telemetry import Telemetry
from serving.work import Work


def add_arrivals(
    app: FastAPI, settings: Settings, intake: Intake | None, parsing: Work, telemetry: Telemetry
) -> None:
    """Add ``/events`` and ``/items``; ``parsing`` parses bodies and decodes pictures."""

    @app.post("/events")
    async def events(request: Request) -> JSONResponse:
        """What users did: a JSON list of events; a repeated event is stored once."""
        listed = await parsing.run(parse_events, await read_body(request, settings))
        found = await _taken(intake).take(listed)
        telemetry.ingested(found)
        return JSONResponse({"accepted": found.accepted, "duplicates": found.duplicates})

    @app.post("/items", status_code=202)
    async def items(request: Request) -> JSONResponse:
        """An item that is new or has changed, as JSON; it can be recommended within seconds, see ``/similar``."""
        item = await parsing.run(parsed, Item, await read_body(request, settings))
        if item.image_base64 is not None:
            await parsing.run(_check_picture, item.image_base64, settings)
        await _taken(intake).keep(item)
        return JSONResponse({"item_id": item.item_id}, status_code=202)


def _check_picture(image_base64: str, settings: Settings) -> None:
    image = decode_base64(image_base64)
    check_image(image, settings.max_image_bytes, settings.max_image_pixels)
    decoded(image, px=1)  # to its end, at a fraction of its size: the encoder must be able to read it


def _taken(intake: Intake | None) -> Intake:
    if intake is None:
        raise Refused(503, "this service accepts no events or items")
    return intake
