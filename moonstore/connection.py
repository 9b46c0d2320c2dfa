"""Connections to one Redis server that answer in time or say that they do not.

A deadline holds for a question in all, a second try on a connection that had gone stale included. A server that let
a deadline pass has tripped the breaker: it is sent a probe, and until it answers that, questions fail at once.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from dataclasses import dataclass

import numpy as np
from redis import exceptions

NONCE = secrets.token_hex(16).encode()  # no stored value ends like this by chance or on purpose
SENTINEL = b"*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n" % (len(NONCE), NONCE)
END = b"$%d\r\n%s\r\n" % (len(NONCE), NONCE)
UNREADY = (b"-LOADING", b"-MASTERDOWN", b"-CLUSTERDOWN", b"-TRYAGAIN")
LEAST_BUFFER = 1 << 14  # bytes
MAX_IDLE = 16  # connections kept open
PROBE_S = 0.01  # how long a new probe is waited for
LOOK_S = 0.002  # how long a question waits to see an older one answered
PROBE_AGAIN_S = 0.5  # a lost probe would be sent again later and later by TCP, so it is replaced


@dataclass(frozen=True)
class Address:
    """Where a Redis server is and how to enter it.

    Attributes:
        host, port: of the server.
        database: its number.
        username, password: None without.
    """

    host: str
    port: int
    database: int = 0
    username: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Breaker:
    """Remembers that a server hangs, and notices that it is back.

    The server is sent a probe and owes its answer: whoever asks next only looks whether it has come, one thread at a
    time. So while the server hangs a question costs next to nothing, and the first one after it is back is answered.

    Args:
        address: of the server.
    """

    def __init__(self, address: Address) -> None:
        self.open = False
        self._address = address
        self._lock = threading.Lock()
        self._probe: socket.socket | None = None
        self._again = 0.0

    def check(self) -> None:
        """Do nothing if the server answers.

        Raises:
            redis.exceptions.TimeoutError: it hangs.
            redis.exceptions.ConnectionError: it refuses.
        """
        if not self.open:
            return
        if not self._lock.acquire(timeout=LOOK_S):
            raise exceptions.TimeoutError(f"{self._address} hangs")
        try:
            if self.open and not self._answered():
                raise exceptions.TimeoutError(f"{self._address} hangs")
            self._close()
        except exceptions.ConnectionError:
            self._close()  # to be refused takes no time
            raise
        finally:
            self._lock.release()

    def _answered(self) -> bool:
        now, wait = time.monotonic(), LOOK_S
        fresh = now >= self._again
        if fresh:
            self._drop()
            self._again, wait = now + PROBE_AGAIN_S, PROBE_S
            self._probe = connect(self._address, now + PROBE_S)
        if self._probe is None:
            return False
        try:
            self._probe.settimeout(wait)
            if fresh:
                self._probe.sendall(SENTINEL)
            self._probe.recv(1)
        except TimeoutError:
            return False
        except OSError:
            pass
        return True  # whatever it said: an answer, that it wants a password, or good-bye

    def _close(self) -> None:
        self.open, self._again = False, 0.0
        self._drop()

    def _drop(self) -> None:
        if self._probe is not None:
            self._probe.close()
            self._probe = None


class Wire:
    """Connections to one server; safe to share between threads.

    Args:
        address: of the server.
        timeout_s: for one question in all.
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        self.address, self.timeout_s = address, timeout_s
        self._breaker = Breaker(address)
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        self._expected = LEAST_BUFFER

    def ask(self, commands: bytes) -> np.ndarray:
        """Send commands and return their replies, uint8.

        Raises:
            redis.exceptions.TimeoutError: no whole answer in time.
            redis.exceptions.ConnectionError: refused, or lost twice.
            redis.exceptions.ResponseError: the server does not let us in.
        """
        until = time.monotonic() + self.timeout_s
        self._breaker.check()
        try:
            reply = self._exchange(commands + SENTINEL, until)
        except exceptions.TimeoutError:
            self._breaker.open = True
            raise
        if reply[:12].tobytes().startswith(UNREADY):
            raise exceptions.ConnectionError(reply[:200].tobytes().decode(errors="replace").strip())
        return reply

    def close(self) -> None:
        """Close every connection; the next question opens a new one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    def _exchange(self, message: bytes, until: float) -> np.ndarray:
        with self._lock:
            link = self._idle.pop() if self._idle else None
        if link is not None:
            try:
                return self._talk(link, message, until)
            except exceptions.ConnectionError:
                self.close()  # the server closed it while it was idle: the others are stale too
        return self._talk(self._enter(until), message, until)

    def _talk(self, link: socket.socket, message: bytes, until: float) -> np.ndarray:
        try:
            reply = exchange(link, message, until, self._expected)
        except BaseException:
            link.close()
            raise
        self._expected = max(len(reply) + len(reply) // 8, LEAST_BUFFER)  # the next one may be as long
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(link)
            else:
                link.close()
        return reply

    def _enter(self, until: float) -> socket.socket:
        where, link = self.address, connect(self.address, until)
        greeting = b""
        if where.password is not None:
            user = [] if where.username is None else [where.username.encode()]
            greeting += command(b"AUTH", *user, where.password.encode())
        if where.database:
            greeting += command(b"SELECT", b"%d" % where.database)
        if greeting:
            answer = exchange(link, greeting + SENTINEL, until).tobytes()
            if b"-" in (line[:1] for line in answer.split(b"\r\n")):
                link.close()
                raise exceptions.ResponseError(f"{where}: {answer.decode(errors='replace').strip()}")
        return link


def connect(address: Address, until: float) -> socket.socket:
    """A connection.

    Raises:
        redis.exceptions.TimeoutError: not accepted in time.
        redis.exceptions.ConnectionError: refused.
    """
    try:
        link = socket.create_connection((address.host, address.port), max(until - time.monotonic(), 1e-3))
    except TimeoutError as error:
        raise exceptions.TimeoutError(f"{address} did not accept a connection in time") from error
    except OSError as error:
        raise exceptions.ConnectionError(f"{address}: {error}") from error
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def command(*words: bytes) -> bytes:
    """One command."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def exchange(link: socket.socket, message: bytes, until: float, expected: int = LEAST_BUFFER) -> np.ndarray:
    """Send a message that ends in ``SENTINEL`` and return what comes before its answer, uint8.

    Raises:
        redis.exceptions.TimeoutError: no whole answer in time.
        redis.exceptions.ConnectionError: the connection was lost.
    """
    buffer = bytearray(expected)
    filled = 0
    try:
        link.settimeout(max(until - time.monotonic(), 1e-3))
        link.sendall(message)
        while not buffer.endswith(END, 0, filled):
            if filled == len(buffer):
                buffer.extend(bytes(len(buffer)))
            link.settimeout(max(until - time.monotonic(), 1e-3))
            with memoryview(buffer) as view:
                came = link.recv_into(view[filled:])
            if not came:
                raise exceptions.ConnectionError("the server closed the connection")
            filled += came
    except TimeoutError as error:
        raise exceptions.TimeoutError("no whole answer in time") from error
    except OSError as error:
        raise exceptions.ConnectionError(str(error)) from error
    return np.frombuffer(buffer, np.uint8, filled - len(END))
