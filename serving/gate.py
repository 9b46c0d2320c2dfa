"""What is refused before it is read: foreign hosts, unknown keys, missing scopes, too many or too large requests."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import math
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.keys import STRANGER, Caller, KeyRing, scope_of
from serving.limits import Buckets
from serving.questions import Refused
from serving.refusals import error_response
from serving.settings import Settings

PROBES = ("/healthz", "/readyz")  # a balancer asks them, without a key
TEST_CLIENT = "testserver"  # what Starlette's test client asks for; no name that the public DNS can lead here
BEARER, BASIC = 'Bearer realm="moon"', 'Basic realm="moon", charset="UTF-8"'


class Gate:
    """Lets a request through to the application, or refuses it; says who sent it in ``scope["caller"]``.

    Args:
        app: the application behind the gate.
        settings: names and limits.
        keys: who may do what.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: KeyRing) -> None:
        self._app, self._keys, self._largest = app, keys, settings.max_body_bytes
        self._hosts = {
            "localhost",
            TEST_CLIENT,
            settings.host.lower(),
            *(name.lower() for name in settings.hosts),
        }
        self._buckets = Buckets(settings.requests_per_s, settings.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            scope["caller"] = self._admitted(scope)
        except Refused as refused:
            answer = error_response(refused.status, refused.reason, refused.headers)
            if refused.status == 401 and scope["method"] == "GET":
                # A line of its own: Chrome does not look for it behind a comma.
                answer.headers.append("WWW-Authenticate", BASIC)
            return await answer(scope, receive, send)
        await self._app(scope, receive, send)

    def _admitted(self, scope: Scope) -> Caller:
        """Who asks.

        Raises:
            Refused: 400, host; 401, key; 403, scope; 413, size; 429, rate.
        """
        given = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self._require_host([value for name, value in scope["headers"] if name == b"host"])
        method, path = scope["method"], scope["path"]
        caller = self._keys.caller(_presented(given.get(b"authorization", ""), method, path))
        if path in PROBES:
            return caller or STRANGER
        client = scope.get("client")
        self._require_rate(caller.name if caller and caller.name else f"address {client and client[0]}")
        needed = scope_of(method, path)
        if caller is None:
            reason = f"expected 'Authorization: Bearer KEY' with a key of scope {needed}"
            raise Refused(401, reason, {"WWW-Authenticate": BEARER})
        if needed not in caller.scopes:
            raise Refused(403, f"this key may {' and '.join(sorted(caller.scopes))}; scope needed: {needed}")
        length = given.get(b"content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._largest:
            raise Refused(413, f"the body has {length[:20]} bytes: at most {self._largest} are read")
        return caller

    def _require_host(self, hosts: Iterable[bytes]) -> None:
        """A page of another site may lead its own name here; no site can be named like an address."""
        names = [host.decode("latin-1").lower() for host in hosts]
        if len(names) != 1 or not self._is_ours(_without_port(names[0])):
            raise Refused(
                400, "this service does not answer to that host name: see 'moon serve --allow-host NAME'"
            )

    def _is_ours(self, name: str) -> bool:
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def _require_rate(self, who: str) -> None:
        wait_s = self._buckets.wait_s(who)
        if wait_s:
            raise Refused(429, "too many requests", {"Retry-After": str(math.ceil(wait_s))})


def caller_of(scope: Scope) -> Caller:
    """Who sent a request that came through the gate."""
    caller: Caller = scope["caller"]
    return caller


def _presented(authorization: str, method: str, path: str) -> str | None:
    """The key of a request. A browser sends it as a password; it does so for other sites too, so only to read.

    The page's own form is sent by POST and reads.
    """
    kind, _, rest = authorization.partition(" ")
    if kind.lower() == "bearer":
        return rest.strip()
    if kind.lower() == "basic" and (method == "GET" or (method, path) == ("POST", "/")):
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
