"""What ``/openapi.json`` says that FastAPI cannot see: bodies that are read by hand, keys, and every refusal."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from dataset.records import Event, Item, ItemState
from feature_repo.ingest.arrivals import MOST_EVENTS
from serving.questions import SearchForm, SearchQuestion

REFUSALS = {
    400: "The Host header names another service",
    401: "No key, or one that is not known",
    403: "The key lacks the scope",
    404: "There is no such thing",
    408: "The body did not arrive in time",
    409: "It is there already and differs",
    413: "Too large, or too many at once",
    415: "Another content type",
    422: "It is not valid; the error names the first fault",
    429: "Too many requests; Retry-After says when to try again",
    503: "It cannot be done now; sending it again is safe",
}
EVERYWHERE = (400, 401, 403, 413, 429)  # what the gate answers
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}},
    "required": ["error"],
}
_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer"},
    "browser": {"type": "http", "scheme": "basic", "description": "GET only; the password is a key"},
}


def refused_with(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, besides those of every route."""
    return {
        status: {"description": REFUSALS[status], "content": {"application/json": {"schema": _ERROR}}}
        for status in sorted({*EVERYWHERE, *statuses})
    }


def describe_keys(app: FastAPI) -> None:
    """Say in the document how to send a key."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        document.setdefault("components", {})["securitySchemes"] = _SCHEMES
        document["security"] = [{"key": []}, {"browser": []}, {}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _body(*contents: tuple[str, dict[str, Any], Any]) -> dict[str, Any]:
    """A request body: content types, their schemas and an example of each."""
    content = {kind: {"schema": schema, "example": example} for kind, schema, example in contents}
    return {"requestBody": {"required": True, "content": content}}


def _form() -> dict[str, Any]:
    schema = SearchForm.model_json_schema()
    picture = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, GIF or BMP"}
    return {**schema, "properties": {**schema["properties"], "image": picture}}


_EVENTS = {"type": "array", "maxItems": MOST_EVENTS, "items": Event.model_json_schema()}
_CLICK = {"event_id": 900001, "user_id": 1, "item_id": 10001, "type": "click"}
_MUG = {"item_id": 900001, "title": "red striped mug", "category": ["kitchen", "mug"], "price": 12.5}
EVENTS_BODY = _body(("application/json", _EVENTS, [_CLICK]))
ITEM_BODY = _body(("application/json", Item.model_json_schema(), _MUG))
SEARCH_BODY = _body(
    ("application/json", SearchQuestion.model_json_schema(), {"text": "red striped mug", "k": 5}),
    ("multipart/form-data", _form(), {"text": "red striped mug", "k": "5"}),
)
STATE_BODY = _body(("application/json", ItemState.model_json_schema(), {"state": "out_of_stock"}))
