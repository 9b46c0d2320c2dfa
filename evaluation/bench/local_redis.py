"""A Redis server of our own for a benchmark: a free port, nothing written to disk, gone afterwards."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

BINARY, START_S = "redis-server", 20.0


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_redis(port: int, *options: str) -> subprocess.Popen[bytes]:
    """A server on this machine that keeps nothing, once it answers.

    Args:
        port: a free one.
        options: more of redis-server's.

    Raises:
        FileNotFoundError: redis-server is not installed.
        RuntimeError: it does not answer.
    """
    command = [
        BINARY,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        *options,
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            redis.Redis(port=port).ping()
            return server
        except redis.exceptions.ConnectionError:
            time.sleep(0.05)
    server.kill()
    raise RuntimeError(f"redis-server did not answer on port {port} within {START_S:g} s")


@contextmanager
def local_redis() -> Iterator[int | None]:
    """The port of a running server; None where redis-server is not installed.

    Raises:
        RuntimeError: it does not answer.
    """
    if shutil.which(BINARY) is None:
        yield None
        return
    port = free_port()
    server = start_redis(port)
    try:
        yield port
    finally:
        server.kill()
        server.wait()
