"""Connections to one Redis server with a deadline per request and a circuit breaker.

The deadline covers the whole request, including a second try after a stale connection. A missed deadline opens the
breaker: the server is sent a probe, and until it answers the probe, requests fail immediately.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from dataclasses import dataclass

import numpy as np
from redis import exceptions

NONCE = secrets.token_hex(16).encode()  # random, so that no stored value can end with it
SENTINEL = b"*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n" % (len(NONCE), NONCE)
END = b"$%d\r\n%s\r\n" % (len(NONCE), NONCE)
UNREADY = (b"-LOADING", b"-MASTERDOWN", b"-CLUSTERDOWN", b"-TRYAGAIN")
LEAST_BUFFER = 1 << 14  # bytes
MAX_IDLE = 16  # connections kept open
PROBE_S = 0.01  # wait for the answer to a new probe
LOOK_S = 0.002  # wait for the answer to an older probe
PROBE_AGAIN_S = 0.5  # then a new probe replaces the old one, which TCP would resend at growing intervals


@dataclass(frozen=True)
class Address:
    """Address and credentials of a Redis server.

    Attributes:
        host, port: of the server.
        database: database number.
        username, password: None if not needed.
    """

    host: str
    port: int
    database: int = 0
    username: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Breaker:
    """A circuit breaker: open while a server hangs, closed once it answers a probe.

    Later requests only look whether the answer to the pending probe has arrived, one thread at a time. So a request
    costs next to nothing while the server hangs, and the first request after it recovers is answered.

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
        """Return if the server may be asked.

        Raises:
            redis.exceptions.TimeoutError: the server hangs.
            redis.exceptions.ConnectionError: the server refuses connections.
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
            self._close()  # a refusal is immediate, so no breaker is needed
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
        return True  # any answer counts: a reply, a request for a password, or a closed connection

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
        timeout_s: deadline of a request.
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
            redis.exceptions.TimeoutError: no complete reply in time.
            redis.exceptions.ConnectionError: refused, or lost twice.
            redis.exceptions.ResponseError: authentication or database selection failed.
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
        """Close every connection; the next request opens a new one."""
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
                self.close()  # the server closed this idle connection, so the others are stale too
        return self._talk(self._enter(until), message, until)

    def _talk(self, link: socket.socket, message: bytes, until: float) -> np.ndarray:
        try:
            reply = exchange(link, message, until, self._expected)
        except BaseException:
            link.close()
            raise
        self._expected = max(len(reply) + len(reply) // 8, LEAST_BUFFER)  # the next reply may be as long
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
    """Open a TCP connection.

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
    """One command in the Redis protocol (RESP)."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def exchange(link: socket.socket, message: bytes, until: float, expected: int = LEAST_BUFFER) -> np.ndarray:
    """Send a message that ends in ``SENTINEL``; returns the reply up to the sentinel's echo, uint8.

    Raises:
        redis.exceptions.TimeoutError: no complete reply in time.
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
                received = link.recv_into(view[filled:])
            if not received:
                raise exceptions.ConnectionError("the server closed the connection")
            filled += received
    except TimeoutError as error:
        raise exceptions.TimeoutError("no complete reply in time") from error
    except OSError as error:
        raise exceptions.ConnectionError(str(error)) from error
    return np.frombuffer(buffer, np.uint8, filled - len(END))
