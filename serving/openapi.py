"""What ``/openapi.json`` says that FastAPI cannot see: bodies that are read by hand, keys, and every refusal."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from fastapi import FastAPI

from dataset.records import Event, Item, ItemState
from dataset.shop_ids import LARGEST_ID, MOST_ID, IdKind, Kinds
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
EMPTY = {"const": ""}
NONE = ({"type": "null"}, EMPTY)  # how an optional field of a body may be left out
EVERYWHERE = (400, 401, 403, 413, 429)  # what the gate answers
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}},
    "required": ["error"],
}
_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer"},
    "browser": {
        "type": "http",
        "scheme": "basic",
        "description": "GET, and POST of the page; the password is a key",
    },
}


_INTEGER = {"type": "integer"}
_TEXT = {"type": "string", "minLength": 1, "maxLength": MOST_ID}
ID_SCHEMAS: dict[IdKind, dict[str, Any]] = {
    IdKind.INT64: {"type": "integer", "minimum": 0, "maximum": LARGEST_ID},
    IdKind.INTEGER: _INTEGER,
    IdKind.TEXT: _TEXT,
    IdKind.ANY: {"anyOf": [_INTEGER, _TEXT]},
}


def refused_with(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, besides those of every route."""
    return {
        status: {"description": REFUSALS[status], "content": {"application/json": {"schema": _ERROR}}}
        for status in sorted({*EVERYWHERE, *statuses})
    }


def page_refused_with(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of the page's form: as the page, or, before it is read, as those of every route."""
    found = refused_with(*statuses)
    for one in found.values():
        one["content"]["text/html"] = {}
    return found


def describe(app: FastAPI, kinds: Kinds) -> None:
    """Say in the document how to send a key, and what the shop's ids are; it is made once, when first asked for."""
    described = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document: dict[str, Any] = copy.deepcopy(described())  # bodies are shared with other applications
        document.setdefault("components", {})["securitySchemes"] = _SCHEMES
        document["security"] = [{"key": []}, {"browser": []}, {}]
        for operations in document["paths"].values():
            for operation in operations.values():
                _say_kinds(operation, kinds)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _say_kinds(operation: dict[str, Any], kinds: Kinds) -> None:
    """Put the schemas of ids into the parameters and the body of an operation, in place."""
    for one in operation.get("parameters", []):
        kind = kinds.get({"session": "item_id"}.get(one["name"], one["name"]))
        if kind is None or one["schema"].get("default") == "":  # of the page, which says itself what is no id
            continue
        said = ID_SCHEMAS[kind]
        one["schema"] = {**one["schema"], "items": said} if "items" in one["schema"] else said
    for content in operation.get("requestBody", {}).get("content", {}).values():
        record = content["schema"].get("items", content["schema"])
        for name, schema in record["properties"].items():
            if name in kinds:
                said = ID_SCHEMAS[kinds[name]]
                none = [one for one in schema.get("anyOf", []) if one in NONE]
                record["properties"][name] = {"anyOf": [said, *none], "default": None} if none else said


def _body(*contents: tuple[str, dict[str, Any], Any]) -> dict[str, Any]:
    """A request body: content types, their schemas and an example of each."""
    content = {kind: {"schema": schema, "example": example} for kind, schema, example in contents}
    return {"requestBody": {"required": True, "content": content}}


def _form() -> dict[str, Any]:
    """Of ``SearchForm`` and a picture; a browser sends every field, so an empty id is as good as none."""
    schema = SearchForm.model_json_schema()
    fields = schema["properties"]
    fields["user_id"]["anyOf"].append(EMPTY)
    picture = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, GIF or BMP"}
    return {**schema, "properties": {**fields, "image": picture}}


_EVENTS = {"type": "array", "maxItems": MOST_EVENTS, "items": Event.model_json_schema()}
_CLICK = {"event_id": 900001, "user_id": 1, "item_id": 10001, "type": "click"}
_MUG = {"item_id": 900001, "title": "red striped mug", "category": ["kitchen", "mug"], "price": 12.5}
EVENTS_BODY = _body(("application/json", _EVENTS, [_CLICK]))
ITEM_BODY = _body(("application/json", Item.model_json_schema(), _MUG))
_FORM = ("multipart/form-data", _form(), {"text": "red striped mug", "k": "5"})
PAGE_BODY = _body(_FORM)
SEARCH_BODY = _body(
    ("application/json", SearchQuestion.model_json_schema(), {"text": "red striped mug", "k": 5}),
    _FORM,
)
STATE_BODY = _body(("application/json", ItemState.model_json_schema(), {"state": "out_of_stock"}))
