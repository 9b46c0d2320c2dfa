"""Connections: a deadline for the head of a request, its greatest size, and the greatest number of connections.

uvicorn has a deadline for connections that are idle between two requests, but waits for ever for the first line of
the first one, and reads a head of any size.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.settings import Settings

REASONS = {408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


class Connection(HttpToolsProtocol):
    """One connection; the head is everything before the body: request line and headers.

    Args:
        settings: the limits.
        uvicorn: what uvicorn gives every connection.
    """

    def __init__(self, settings: Settings, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits = settings
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of the head that is being received
        self._in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head, or refuse the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.most_connections:
            self._refuse(503, f"{self._limits.most_connections} connections are open, more are refused")
        else:
            self._start_deadline()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head; those of a body are the application's, while it reads them."""
        if self.transport.is_closing():
            return
        if self._deadline is None and (not self._in_body or self.cycle.response_complete):
            self._start_deadline()
        if not self._in_body:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_body and self._head_bytes > self._limits.max_head_bytes:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self._limits.max_head_bytes:
            self._refuse_head()
            raise ValueError("the head is too large")  # stops the parser
        self._stop_deadline()
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next bytes are another head."""
        self._in_body = False
        self._stop_deadline()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, unless it was answered already."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._stop_deadline()
        super().connection_lost(exc)

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(self._limits.head_deadline_s, self._too_slow)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline, self._head_bytes = None, 0

    def _too_slow(self) -> None:
        if self._head_bytes:
            self._refuse(408, f"the head did not arrive within {self._limits.head_deadline_s} s")
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        self._refuse(431, f"the head of the request has more than {self._limits.max_head_bytes} bytes")

    def _refuse(self, status: int, reason: str) -> None:
        self._stop_deadline()
        body = f'{{"error":"{reason}"}}'.encode()
        again = b"retry-after: 1\r\n" if status == 503 else b""
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n%s"
            % (status, REASONS[status].encode(), len(body), again, body)
        )
        self.transport.close()
