"""Refusals: every error that a client can cause or meet, as ``{"error": reason}`` with its status."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from dataset.contracts import DataError
from dataset.records import fault
from feature_repo.ingest.arrivals import TooManyEvents
from feature_repo.ingest.item_states import UnknownItem
from feature_repo.online import StoreUnavailable
from serving.logs import REQUEST_ID
from serving.questions import Refused
from serving.recommend import STORE_AWAY, UnknownCategory
from serving.work import TRY_AGAIN

log = logging.getLogger("moon.serving")


def add_refusals(app: FastAPI) -> None:
    """Every refusal is ``{"error": reason}``; none echoes the input, which may not be JSON itself (NaN)."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return error_response(error.status, error.reason, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(422, reasons(error.errors()))

    @app.exception_handler(UnknownItem)
    @app.exception_handler(UnknownCategory)
    async def unknown(_: Request, error: LookupError) -> JSONResponse:
        return error_response(404, str(error.args[0]))

    @app.exception_handler(TooManyEvents)
    async def too_many(_: Request, error: TooManyEvents) -> JSONResponse:
        return error_response(413, str(error))

    @app.exception_handler(DataError)
    async def unfit(_: Request, error: DataError) -> JSONResponse:
        return error_response(422, str(error))

    @app.exception_handler(StoreUnavailable)
    async def unavailable(_: Request, error: StoreUnavailable) -> JSONResponse:
        log.warning("%s", error)  # with the store's address, which is nobody else's business
        reason = f"{STORE_AWAY}; what was received is kept, telling it again is safe"
        return error_response(503, reason, TRY_AGAIN)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = error.headers
        if error.status_code == 405:
            headers = {"Allow": ", ".join(_methods(app, request))}
        return error_response(error.status_code, str(error.detail), headers)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """The methods of all routes of an address; Starlette names those of the first."""
    routes = (route for route in app.routes if isinstance(route, Route))
    here = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in here for method in route.methods or ()})


def reasons(errors: Any) -> str:
    """Where each error of a validation is, and which rule is broken."""
    return "; ".join(fault(error) for error in errors)


def error_response(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The body of every refusal; a failure of the service names the request, so that it can be found in the log."""
    content = {"error": reason}
    if status >= 500:
        content["request_id"] = REQUEST_ID.get()
    return JSONResponse(content, status_code=status, headers=headers)
