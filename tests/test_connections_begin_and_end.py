"""The service's connections: deadlines and limits of what arrives, the port before everything else, and a quiet end.

Run: pytest tests/test_connections_begin_and_end.py
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
import uvicorn
from fake_shop import recommender
from test_nothing_waits_for_slow_work import Gate, wait_for

from serving.app import create_app
from serving.connections import Connection
from serving.drain import Drain
from serving.server import listen, serve
from serving.settings import Settings

SOON_S = 5  # whatever is broken, no test here waits longer


@contextmanager
def served(tmp_path, moon=None, **limits):
    """The port of a real server in a thread."""
    settings = Settings(run=tmp_path, **limits)
    config = uvicorn.Config(
        create_app(settings, moon or recommender()),
        http=partial(Connection, settings),
        timeout_keep_alive=settings.idle_deadline_s,
        timeout_graceful_shutdown=1,
        log_level="error",
    )
    server, listening = uvicorn.Server(config), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    port = listening.getsockname()[1]
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield port
    finally:
        server.should_exit = True
        thread.join(SOON_S)


def connect(port):
    link = socket.create_connection(("127.0.0.1", port), timeout=SOON_S)
    return link


def everything(link):
    """What the server says until it closes the connection."""
    said = b""
    try:
        while more := link.recv(1 << 16):
            said += more
    except ConnectionResetError:
        pass
    return said


ALIVE = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def one_answer(link):
    """Whether the next thing the server says is that it is alive."""
    said = b""
    while not said.endswith(b"}"):
        more = link.recv(1 << 16)
        assert more, f"the connection was closed after {said!r}"
        said += more
    return said.startswith(b"HTTP/1.1 200") and said.endswith(b'{"status":"alive"}')


def test_a_head_that_does_not_arrive_in_time_ends_the_connection(tmp_path):
    with served(tmp_path, head_deadline_s=0.3) as port:
        silent, slow, second = connect(port), connect(port), connect(port)
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
        second.sendall(ALIVE)
        assert one_answer(second)
        second.sendall(b"GET /heal")  # the next request of a connection is no better
        assert everything(silent) == b""
        assert everything(slow).startswith(b"HTTP/1.1 408")
        assert everything(second).startswith(b"HTTP/1.1 408")
        with connect(port) as whole:
            whole.sendall(ALIVE)
            assert one_answer(whole)


def test_a_body_may_take_longer_than_a_head(tmp_path):
    with served(tmp_path, head_deadline_s=0.2) as port, connect(port) as link:
        content = b'{"text": "even"}'
        link.sendall(
            b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        )
        time.sleep(0.5)
        link.sendall(content)
        assert link.recv(1 << 16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("pieces", [1, 4])
def test_a_head_that_is_too_large_is_refused(tmp_path, pieces):
    head = ALIVE[:-2] + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 1000) for n in range(100)) + b"\r\n"
    with served(tmp_path) as port, connect(port) as link:
        step = len(head) // pieces + 1
        for start in range(0, len(head), step):
            try:
                link.sendall(head[start : start + step])
            except OSError:
                break
            time.sleep(0.01)
        said = everything(link)
        assert said.startswith(b"HTTP/1.1 431") and said.count(b"HTTP/1.1") == 1


def test_a_head_just_below_the_limit_and_a_large_body_are_read(tmp_path):
    head = (
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nX: " + b"a" * 60_000
    )
    content = b'{"text": "even", "image_base64": "' + b"A" * 400_000 + b'"}'
    with served(tmp_path) as port, connect(port) as link:
        link.sendall(head + b"\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        assert link.recv(1 << 16).startswith(b"HTTP/1.1 422")  # it is read: not a picture


def test_more_connections_than_allowed_are_refused_and_the_others_served(tmp_path):
    with served(tmp_path, most_connections=2) as port:
        with connect(port) as one, connect(port) as two:
            for link in (one, two):
                link.sendall(ALIVE)
                assert one_answer(link)
            with connect(port) as third:
                assert everything(third).startswith(b"HTTP/1.1 503")
            one.sendall(ALIVE)
            assert one_answer(one)


def test_a_start_on_a_taken_port_fails_before_it_touches_anything(tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: expected a free address, .*--port"):
            serve(Settings(run=tmp_path / "no such run", port=port))
    assert not (tmp_path / "no such run").exists()


def test_nothing_heavy_is_imported_before_the_port_is_taken():
    heavy = ("torch", "feast", "pyarrow", "transformers", "serving.app")
    program = f"import sys, serving.server; print([one for one in {heavy} if one in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_service_that_is_told_to_end_says_so_answers_on_and_finishes_what_it_has(tmp_path):
    """SIGTERM, in this process: the server has its handlers in the main thread."""
    gate, moon = Gate(), recommender()
    moon.recommend = gate.before(moon.recommend)
    app = create_app(Settings(run=tmp_path, drain_s=1000), moon)
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=SOON_S)
    server, listening = uvicorn.Server(config), listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    said, ended = [], []

    def ask(path):
        link = connect(port)
        link.sendall(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" % path)
        return everything(link)

    def watch():
        with ThreadPoolExecutor(2) as others:
            under_way = others.submit(ask, b"/recommend?user_id=4&k=2")
            gate.wait_until_entered()
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: b"draining" in ask(b"/readyz"))
            said.append(ask(b"/readyz"))
            late = others.submit(ask, b"/similar?item_id=7")  # still accepted; it waits behind the first
            wait_for(lambda: b'moon_inside{thread="answering"} 2.0' in ask(b"/metrics"))
            os.kill(os.getpid(), signal.SIGTERM)  # ends the grace
            wait_for(lambda: server.should_exit)
            gate.open.set()
            said.extend([under_way.result(SOON_S), late.result(SOON_S)])

    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(True))

    def watched():
        try:
            wait_for(lambda: server.started)
            watch()
        finally:  # however it went, the server below comes to an end
            gate.open.set()
            server.should_exit = True

    watcher = threading.Thread(target=watched, daemon=True)
    try:
        watcher.start()
        server.run([listening])
        watcher.join(SOON_S)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [one.split(b"\r\n")[0] for one in said] == [
        b"HTTP/1.1 503 Service Unavailable",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK",
    ]
    assert b'"status":"draining"' in said[0] and ended


def test_a_second_sigterm_does_not_wait():
    async def main():
        ended = asyncio.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            drain = Drain(grace_s=1000)
            with drain.on_signal():
                os.kill(os.getpid(), signal.SIGTERM)
                async with asyncio.timeout(SOON_S):
                    while not drain.began:
                        await asyncio.sleep(0.001)
                assert not ended.is_set()
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(ended.wait(), SOON_S)
        finally:
            signal.signal(signal.SIGTERM, before)

    asyncio.run(main())
