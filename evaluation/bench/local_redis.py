"""Redis servers that this process starts and stops itself.

A benchmark is never given the address of a server. It starts its own empty server here, on a free port: there is
nothing to flush, and no way to reach other data.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

BINARY, START_S = "redis-server", 20.0
NOT_INSTALLED = "redis-server is not installed: 'apt-get install redis-server', or 'brew install redis'"

ONCE = Retry(NoBackoff(), 0)  # by default redis-py retries for seconds before it reports an error


def installed() -> bool:
    """Whether this machine can start a Redis server."""
    return shutil.which(BINARY) is not None


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_redis(port: int, *options: str) -> subprocess.Popen[bytes]:
    """Start a server on this machine and wait until it answers; without further options it does not persist data.

    Args:
        port: a free port.
        options: further command-line options of redis-server.

    Raises:
        FileNotFoundError: redis-server is not installed.
        RuntimeError: the server ended or does not answer, or another server answers on this port.
    """
    if not installed():
        raise FileNotFoundError(NOT_INSTALLED)
    quiet = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
    server = subprocess.Popen(
        [BINARY, "--port", str(port), *quiet, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(server, port)
    except RuntimeError:
        server.kill()
        server.wait()
        raise
    return server


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    """Wait until this process answers, not another server that took the port in the meantime."""
    deadline = time.monotonic() + START_S
    with redis.Redis(port=port, retry=ONCE) as client:  # the loop below retries faster
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise RuntimeError(
                    f"redis-server ended with code {server.returncode}. Is port {port} taken? Run the command again."
                )
            try:
                client.ping()  # refused while it loads persisted data
                answering = client.info("server")["process_id"]
            except redis.exceptions.ConnectionError:
                time.sleep(0.01)
                continue
            if answering != server.pid:
                raise RuntimeError(
                    f"expected our Redis, process {server.pid}, on port {port}; process {answering} answers there. "
                    f"It was not changed. Run the command again."
                )
            return
    raise RuntimeError(f"redis-server did not answer on port {port} within {START_S:g} s")


class RedisServer:
    """A Redis server started by this process on a free port, to be used in a ``with`` statement.

    Attributes:
        port: its port on this machine, also after ``restart``.
    """

    def __init__(self, *options: str) -> None:
        """Start it with further options of redis-server; raises the errors of ``start_redis``."""
        self.port, self._options = free_port(), options
        self._process = start_redis(self.port, *options)

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def address(self) -> str:
        """``host:port``, for Feast's ``connection_string``."""
        return f"127.0.0.1:{self.port}"

    def url(self, database: int = 0) -> str:
        """URL of one of its databases."""
        return f"redis://{self.address}/{database}"

    def client(self) -> redis.Redis:
        """A new client of database 0 that does not retry."""
        return redis.Redis(port=self.port, retry=ONCE)

    def hang(self) -> None:
        """Make it accept connections without answering, until ``wake``."""
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Resume it after ``hang``, and wait until it answers."""
        self._process.send_signal(signal.SIGCONT)
        self.client().ping()

    def kill(self) -> None:
        """Kill it: connections are refused from now on."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start it again on the same port after ``kill``, with its persisted data."""
        self._process = start_redis(self.port, *self._options)
