"""What is done around every request: an id, the headers of its response, a line in the log, and the counting."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.headers import HEADERS
from serving.logs import REQUEST_ID
from serving.refusals import error_response
from serving.telemetry import Telemetry

log = logging.getLogger("moon.serving")
access_log = logging.getLogger("moon.access")

SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
HUNG_UP = 499  # nobody reads it: the client went before it was answered


class Access:
    """The outermost layer.

    Args:
        app: the application and its gate.
        telemetry: counts the responses.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app, self._telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = _request_id(scope)
        REQUEST_ID.set(request_id)
        status, began = HUNG_UP, time.perf_counter()

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()), *HEADERS, (b"x-request-id", request_id.encode())
                ]  # fmt: skip
            await send(message)

        self._telemetry.in_flight += 1
        try:
            await self._app(scope, receive, answering)
        except ClientDisconnect:
            pass
        except Exception:
            log.exception("%s %s failed", scope["method"], _route(scope))
            if status != HUNG_UP:
                raise  # half of an answer is out: only closing the connection can tell
            failed = error_response(500, "the service failed; its log says why")
            await failed(scope, receive, answering)
        finally:
            self._telemetry.in_flight -= 1
            self._note(scope, status, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        self._telemetry.responded(route, status, seconds)
        if access_log.isEnabledFor(logging.INFO):
            caller = scope.get("caller")
            fields = {
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 2),
                "key": caller.name if caller is not None else "",
            }
            access_log.info("answered", extra={"fields": fields})


def _request_id(scope: Scope) -> str:
    """The client's, if it is short and harmless, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SANE_ID.fullmatch(value):
            return str(value.decode())
    return secrets.token_hex(8)


def _route(scope: Scope) -> str:
    """The template of the route that answered, or would have if the gate had not refused; ``unknown``: none."""
    found = scope.get("route")
    if found is None:
        found = next((one for one in scope["app"].routes if one.matches(scope)[0] == Match.FULL), None)
    return str(getattr(found, "path_format", "unknown"))
