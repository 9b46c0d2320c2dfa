"""Arrivals: events, and items that are new or have changed."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from dataset.records import Item
from feature_repo.ingest.arrivals import parse_events, parsed
from serving.bodies import read_json
from serving.intake import Intake
from serving.live import Live
from serving.openapi import EVENTS_BODY, ITEM_BODY, refused_with
from serving.questions import Refused, check_image, decode_base64
from serving.settings import Settings
from serving.telemetry import Telemetry


def add_arrivals(
    app: FastAPI, settings: Settings, live: Live, intake: Intake | None, telemetry: Telemetry
) -> None:
    """Add ``/events`` and ``/items``."""

    @app.post("/events", openapi_extra=EVENTS_BODY, responses=refused_with(408, 409, 413, 415, 422, 503))
    async def events(request: Request) -> JSONResponse:
        """What users did: a JSON list of events; a repeated event is stored once."""
        found = await _taken(intake).take(parse_events(await read_json(request, settings)))
        telemetry.ingested(found)
        return JSONResponse({"accepted": found.accepted, "duplicates": found.duplicates})

    @app.post(
        "/items",
        status_code=202,
        openapi_extra=ITEM_BODY,
        responses=refused_with(408, 409, 413, 415, 422, 503),
    )
    async def items(request: Request, overwrite: bool = False) -> JSONResponse:
        """An item as JSON; it can be recommended within seconds, see ``/similar``.

        One that the catalogue holds is replaced only with ``overwrite``; sending the same again changes nothing.
        """
        item = parsed(Item, await read_json(request, settings))
        if item.image_base64 is not None:
            image = decode_base64(item.image_base64)
            check_image(image, settings.max_image_bytes, settings.max_image_pixels)
        taken = _taken(intake)
        kept = await taken.kept(item.item_id)
        if kept != item:
            if not overwrite and (kept is not None or item.item_id in live.current.catalogue):
                raise Refused(
                    409, f"item {item.item_id} exists: POST it to /items?overwrite=true to replace it"
                )
            await taken.keep(item)
        return JSONResponse({"item_id": item.item_id}, status_code=202)


def _taken(intake: Intake | None) -> Intake:
    if intake is None:
        raise Refused(503, "this service accepts no events or items")
    return intake
