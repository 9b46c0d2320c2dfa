"""Feast's own HTTP server, with its answers made from columns: ``python -m moonstore serve``.

Four fifths of a request to ``feast serve`` are an object per value, a Python value of each, and their JSON. Here an
answer of our stores stays in columns until it is written, and pydantic, with which Feast's server comes, writes it.
Endpoints, metrics, permissions and the audit log are Feast's.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from feast import FeatureStore, feature_server
from feast.feature_server_utils import convert_response_to_dict
from feast.online_response import OnlineResponse
from pydantic_core import to_json

from moonstore.response import ColumnResponse

feasts_app = feature_server.get_app


class Whole:
    """An answer that gives itself to Feast's server, which asks it for a protobuf message."""

    def __init__(self, answer: OnlineResponse) -> None:
        self.proto = answer


class FastJSONResponse(JSONResponse):
    """JSON as Feast's server writes it; numbers that JSON has no word for are texts, as in its answers."""

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return to_json(content, inf_nan_mode="strings")


def content(answer: Any) -> dict[str, Any]:
    """What the server writes of an online read, or of another of Feast's protobuf answers."""
    if isinstance(answer, ColumnResponse):
        return answer.json()
    return convert_response_to_dict(answer.proto if isinstance(answer, OnlineResponse) else answer)


def app(
    store: FeatureStore, registry_ttl_sec: int = feature_server.DEFAULT_FEATURE_SERVER_REGISTRY_TTL
) -> FastAPI:
    """Feast's app for a store; for the arguments see ``feast.feature_server.get_app``."""
    now, later = store.get_online_features, store.get_online_features_async

    def read(**asked: Any) -> Whole:
        return Whole(now(**asked))

    async def read_later(**asked: Any) -> Whole:
        return Whole(await later(**asked))

    served = copy(store)
    vars(served).update(get_online_features=read, get_online_features_async=read_later)
    return feasts_app(served, registry_ttl_sec)


def take_over() -> None:
    """Let Feast's ``serve`` command of this process start ``app``."""
    ours = {"get_app": app, "convert_response_to_dict": content, "JSONResponse": FastJSONResponse}
    vars(feature_server).update(ours)
