"""One connection, byte by byte: when its deadlines begin and end, what counts as its head, what it says last.

No sockets and no clock: the loop and the transport write down what they are asked. Real connections are in
test_connections_begin_and_end.py.

Run: pytest tests/test_connection_limits.py
"""

import asyncio
from pathlib import Path

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.connections import REASONS, Connection
from serving.settings import Settings

HEAD = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n"


class Timer:
    """A call that is due later."""

    def __init__(self, seconds, call):
        self.seconds, self.call, self.cancelled = seconds, call, False

    def cancel(self):
        self.cancelled = True


class Loop:
    """Keeps what it is asked to do."""

    def __init__(self):
        self.timers, self.tasks = [], []

    def call_later(self, seconds, call):
        self.timers.append(Timer(seconds, call))
        return self.timers[-1]

    def create_task(self, work):
        self.tasks.append(work)
        return self

    def add_done_callback(self, _):
        pass

    def answer(self):
        """Let the application answer what it was given."""
        while self.tasks:
            asyncio.run(asyncio.wait_for(self.tasks.pop(0), 5))

    def due(self, seconds):
        """The timers of this length that nobody cancelled."""
        return [one for one in self.timers if one.seconds == seconds and not one.cancelled]


class Transport:
    """Keeps what is written to it."""

    def __init__(self):
        self.said, self.closed = b"", False

    def get_extra_info(self, _):
        return None

    def write(self, content):
        assert not self.closed, "nothing is said to a closed connection"
        self.said += content

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        pass

    resume_reading = pause_reading


async def answers(scope, receive, send):
    """Read the body, then say how long it was."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"%03d" % size})


class Server:
    """A server of connections that share one state; heads have 7 s and 100 bytes unless it is said otherwise."""

    def __init__(self, **limits):
        self.settings = Settings(run=Path("run"), **{"head_deadline_s": 7, "max_head_bytes": 100, **limits})
        self.config = uvicorn.Config(answers, lifespan="off", timeout_keep_alive=30)
        self.state, self.loop = ServerState(), Loop()

    def connect(self):
        one = Connection(
            self.settings, config=self.config, server_state=self.state, app_state={}, _loop=self.loop
        )
        one.connection_made(Transport())
        return one

    @property
    def deadlines(self):
        return self.loop.due(7)


def test_a_head_has_its_deadline_from_the_first_moment_until_it_is_there():
    server = Server()
    one = server.connect()
    (deadline,) = server.deadlines
    one.data_received(HEAD[:9])
    assert server.deadlines == [deadline], "more of it gives it no more time"
    one.data_received(HEAD[9:])
    assert server.deadlines == []
    server.loop.answer()
    assert one.transport.said.endswith(b"\r\n\r\n000") and not one.transport.closed


def test_the_next_head_of_a_connection_has_a_deadline_of_its_own_from_its_first_byte():
    server = Server()
    one = server.connect()
    one.data_received(HEAD)
    server.loop.answer()
    assert server.deadlines == []
    one.data_received(b"G")
    (deadline,) = server.deadlines
    deadline.call()
    assert one.transport.said.split(b"000", 1)[1].startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_a_body_is_not_part_of_a_head_and_has_no_deadline_of_one():
    server = Server()
    one = server.connect()
    one.data_received(POST)
    for _ in range(3):
        one.data_received(b"a" * 100)
        assert server.deadlines == []
    server.loop.answer()
    assert one.transport.said.endswith(b"\r\n\r\n300")


def test_a_body_that_goes_on_after_its_answer_has_the_deadline_of_a_head():
    """The application refused it without reading it; nobody else would ever end such a connection."""
    server = Server()

    async def refuses(scope, receive, send):
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    server.config = uvicorn.Config(refuses, lifespan="off")
    one = server.connect()
    one.data_received(POST)
    server.loop.answer()
    assert one.transport.said.startswith(b"HTTP/1.1 413")
    one.data_received(b"a" * 100)
    assert len(server.deadlines) == 1
    one.data_received(b"a" * 100)
    assert len(server.deadlines) == 1
    one.data_received(b"a" * 100)
    assert server.deadlines == [], "it came to its end"


@pytest.mark.parametrize(
    ("before", "what"), [(b"", "the first"), (HEAD, "the next"), (POST + b"a" * 300, "after a body")]
)
@pytest.mark.parametrize(("size", "refused"), [(100, False), (101, True)])
def test_an_unfinished_head_may_have_so_many_bytes_and_no_more(before, what, size, refused):
    server = Server()
    one = server.connect()
    if before:
        one.data_received(before)
        server.loop.answer()
    said = one.transport.said
    head = b"GET /a HTTP/1.1\r\nHost: x\r\nX: "
    head += b"a" * (size - len(head))
    one.data_received(head[:50])
    one.data_received(head[50:])
    assert one.transport.closed == refused
    assert (b"HTTP/1.1 431" in one.transport.said[len(said) :]) == refused


@pytest.mark.parametrize(("size", "refused"), [(100, False), (101, True)])
def test_a_whole_head_is_measured_by_its_address_and_its_headers(size, refused):
    """``/aaa``, ``Host`` and ``x``, and whatever the address is filled up with."""
    server = Server()
    one = server.connect()
    one.data_received(b"GET /" + b"a" * (size - 6) + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    server.loop.answer()
    assert one.transport.said.startswith(b"HTTP/1.1 431" if refused else b"HTTP/1.1 200")
    assert one.transport.said.count(b"HTTP/1.1") == 1 and server.deadlines == []


def body_of(said):
    head, _, body = said.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


def test_the_last_words_of_a_connection_are_a_whole_answer():
    server = Server(most_connections=1)
    first, second = server.connect(), server.connect()
    reason = b'{"error":"1 connections are open, more are refused"}'
    assert second.transport.closed and body_of(second.transport.said) == (
        [
            b"HTTP/1.1 503 Service Unavailable",
            b"content-type: application/json",
            b"content-length: %d" % len(reason),
            b"retry-after: 1",
            b"connection: close",
        ],
        reason,
    )
    assert len(server.deadlines) == 1, "the refused one has none"
    first.data_received(HEAD[:5])
    server.deadlines[0].call()
    reason = b'{"error":"the head did not arrive within 7 s"}'
    assert first.transport.closed and body_of(first.transport.said) == (
        [
            b"HTTP/1.1 408 Request Timeout",
            b"content-type: application/json",
            b"content-length: %d" % len(reason),
            b"connection: close",
        ],
        reason,
    )
    assert server.deadlines == []
    assert REASONS[431] == "Request Header Fields Too Large"


def test_who_never_said_a_word_is_told_none():
    server = Server()
    one = server.connect()
    server.deadlines[0].call()
    assert one.transport.closed and one.transport.said == b""


def test_a_closed_connection_makes_room_and_has_no_deadline():
    server = Server(most_connections=1)
    one = server.connect()
    one.connection_lost(None)
    assert server.deadlines == [] and not server.state.connections
    assert not server.connect().transport.closed


def test_what_is_no_http_is_refused_once_and_what_follows_a_refusal_is_not_read():
    server = Server()
    one = server.connect()
    one.data_received(b"\x16\x03\x01 hello\r\n\r\n")
    assert one.transport.said.startswith(b"HTTP/1.1 400") and one.transport.closed
    said = one.transport.said
    one.data_received(HEAD)
    assert one.transport.said == said and not server.loop.tasks


@pytest.mark.parametrize(
    "lengths",
    [
        b"Content-Length: 6\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 6",
        b"Content-Length: 6\r\nContent-Length: 0",
        b"Content-Length: +6",
        b"Content-Length: 6, 6",
        b"Transfer-Encoding: chunked, identity",
    ],
)
def test_a_body_of_two_lengths_is_refused_and_hides_no_request(lengths):
    """A proxy that believes another of the two would take the end of one request for the beginning of the next."""
    server = Server(max_head_bytes=1000)
    one = server.connect()
    one.data_received(b"POST /a HTTP/1.1\r\nHost: x\r\n" + lengths + b"\r\n\r\n0\r\n\r\n" + HEAD)
    server.loop.answer()
    assert one.transport.said.startswith(b"HTTP/1.1 400") and one.transport.said.count(b"HTTP/1.1") == 1
    assert one.transport.closed


def test_a_connection_that_broke_is_not_closed_again():
    server = Server()
    one = server.connect()
    one.connection_lost(OSError("reset"))
    assert not one.transport.closed and not server.state.connections
