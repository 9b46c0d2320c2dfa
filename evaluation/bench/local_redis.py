"""Redis servers that this process starts, and owns until they are gone.

A benchmark is never given the address of a server. It starts one here, on a free port, and what it measures is
an empty server that nobody else knows of: there is nothing to flush, and no way to reach somebody else's data.
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

ONCE = Retry(NoBackoff(), 0)  # redis-py would wait for seconds before it reports that nobody answers


def installed() -> bool:
    """Whether this machine can start a Redis server."""
    return shutil.which(BINARY) is not None


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_redis(port: int, *options: str) -> subprocess.Popen[bytes]:
    """Start a server on this machine and wait until it answers; it keeps nothing on disk unless asked to.

    Args:
        port: a free one.
        options: more of redis-server's command line.

    Raises:
        FileNotFoundError: redis-server is not installed.
        RuntimeError: it ended, it does not answer, or another server answers on this port.
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
    """Until this very process answers: another server may have taken the port since it was found free."""
    deadline = time.monotonic() + START_S
    with redis.Redis(port=port, retry=ONCE) as client:  # asked again below, sooner than its own retries
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise RuntimeError(
                    f"redis-server ended with code {server.returncode}. Is port {port} taken? Run the same again."
                )
            try:
                client.ping()  # refused while it loads what it kept
                answering = client.info("server")["process_id"]
            except redis.exceptions.ConnectionError:
                time.sleep(0.01)
                continue
            if answering != server.pid:
                raise RuntimeError(
                    f"expected our Redis, process {server.pid}, on port {port}; process {answering} answers there. "
                    f"It was left alone. Run the same again."
                )
            return
    raise RuntimeError(f"redis-server did not answer on port {port} within {START_S:g} s")


class RedisServer:
    """A Redis server that this process started, on a port of its own; use it as a context.

    Attributes:
        port: where it listens on this machine, also after ``restart``.
    """

    def __init__(self, *options: str) -> None:
        """Start it with more of redis-server's options; raises what ``start_redis`` does."""
        self.port, self._options = free_port(), options
        self._process = start_redis(self.port, *options)

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def address(self) -> str:
        """``host:port``, as Feast's ``connection_string`` wants it."""
        return f"127.0.0.1:{self.port}"

    def url(self, database: int = 0) -> str:
        """The address of one of its databases."""
        return f"redis://{self.address}/{database}"

    def client(self) -> redis.Redis:
        """A new client of its database 0, which asks once and does not try again."""
        return redis.Redis(port=self.port, retry=ONCE)

    def hang(self) -> None:
        """Let it accept connections and answer nobody, until ``wake``."""
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on, and wait until it answers."""
        self._process.send_signal(signal.SIGCONT)
        self.client().ping()

    def kill(self) -> None:
        """End it at once: connections are refused from now on."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start it again on the same port after ``kill``; it holds what it kept on disk."""
        self._process = start_redis(self.port, *self._options)
