"""Arrivals: events, and items that are new or have changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from dataset.pictures import decoded
from dataset.records import DELETED, Event, Item, ItemState, Rule
from dataset.shop_ids import IdKind, Kinds
from feature_repo.ingest.arrivals import parse_events, parsed
from serving.bodies import read_json
from serving.gate import caller_of
from serving.intake import Intake
from serving.live import Live
from serving.openapi import EVENTS_BODY, ITEM_BODY, STATE_BODY, refused_with
from serving.questions import Refused, TextId, check_image, decode_base64, read_id
from serving.settings import Settings
from serving.telemetry import Telemetry
from serving.work import Work


def add_arrivals(
    app: FastAPI, settings: Settings, live: Live, intake: Intake | None, parsing: Work, telemetry: Telemetry
) -> None:
    """Add ``/events``, ``/items`` and what changes an item's state; ``parsing`` parses bodies, decodes pictures."""
    # A text may have slashes in it.
    any_text = live.current.ids.kinds["item_id"] is IdKind.TEXT
    item_path = "/items/{item_id:path}" if any_text else "/items/{item_id}"

    @app.post("/events", openapi_extra=EVENTS_BODY, responses=refused_with(408, 409, 413, 415, 422, 503))
    async def events(request: Request) -> JSONResponse:
        """What users did: a JSON list of events; a repeated event is stored once.

        Another event under the id of a known one is refused (409) and set aside; the others of the list are taken.
        """
        body, sender = await read_json(request, settings), caller_of(request.scope).name
        listed = await parsing.run(_sent_by, sender, body, live.current.ids.kinds)
        found = await _taken(intake).take(listed)
        telemetry.ingested(found)
        content = {"accepted": found.accepted, "duplicates": found.duplicates}
        if not found.conflicts:
            return JSONResponse(content)
        return JSONResponse({**content, **_conflicts(found.conflicts)}, status_code=409)

    @app.post(
        "/items",
        status_code=202,
        openapi_extra=ITEM_BODY,
        responses=refused_with(408, 409, 413, 415, 422, 503),
    )
    async def items(request: Request, overwrite: bool = False) -> JSONResponse:
        """An item as JSON; it can be recommended within seconds, see ``/similar``.

        One that exists is replaced only with ``overwrite``; sending the same again changes nothing, unless the item
        has another state by now. One that was deleted is back.
        """
        ids = live.current.ids
        item = await parsing.run(parsed, Item, await read_json(request, settings), ids.kinds)
        if item.image_base64 is not None:
            await parsing.run(_check_picture, item.image_base64, settings)
        taken = _taken(intake)
        kept, state = await taken.kept(item.item_id)
        if kept != item or state != item.state:
            exists = kept is not None or ids.one("item_id", item.item_id) in live.current.catalogue
            if exists and state != DELETED and not overwrite:
                raise Refused(
                    409, f"item {item.item_id} exists: POST it to /items?overwrite=true to replace it"
                )
            await taken.keep(item)
        return JSONResponse({"item_id": item.item_id}, status_code=202)

    @app.put(
        f"{item_path}/state",
        status_code=202,
        openapi_extra=STATE_BODY,
        responses=refused_with(404, 408, 415, 422, 503),
    )
    async def put_state(item_id: TextId, request: Request) -> JSONResponse:
        """Whether an item may be answered, as JSON: ``{"state": "out_of_stock"}``; heeded within a second."""
        state = (await parsing.run(parsed, ItemState, await read_json(request, settings))).state
        item = read_id("item_id", item_id, live.current.ids.kinds)
        await _taken(intake).set_state(item, state)
        return JSONResponse({"item_id": item, "state": state}, status_code=202)

    @app.delete(item_path, status_code=202, responses=refused_with(404, 422, 503))
    async def delete(item_id: TextId) -> JSONResponse:
        """An item that is to be in no answer any more, within a second; histories keep it. Posting it undoes this."""
        item = read_id("item_id", item_id, live.current.ids.kinds)
        await _taken(intake).set_state(item, DELETED)
        return JSONResponse({"item_id": item, "state": DELETED}, status_code=202)


def _sent_by(sender: str, body: bytes, kinds: Kinds) -> list[Event]:
    """The events of a body; one that names no sender has the name of the key that it came with."""
    events = parse_events(body, kinds)
    return [one if one.sender else one.model_copy(update={"sender": sender}) for one in events]


def _check_picture(image_base64: str, settings: Settings) -> None:
    image = decode_base64(image_base64)
    check_image(image, settings.max_image_bytes, settings.max_image_pixels)
    decoded(image, px=1)  # to its end, at a fraction of its size: the encoder must be able to read it


def _conflicts(events: Sequence[Event]) -> dict[str, Any]:
    """How many events were refused because of their identity, and the first of them."""
    first = [one.event_id for one in events[:3]]
    reason = (
        f"{Rule.USED_ID.format('event_id')}: {len(events)} events were refused (event_id {first}), the others were "
        f"taken. Give each event its own event_id, or each sender a name (sender)."
    )
    return {"conflicts": len(events), "error": reason}


def _taken(intake: Intake | None) -> Intake:
    if intake is None:
        raise Refused(503, "this service accepts no events or items")
    return intake
