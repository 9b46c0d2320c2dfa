"""One round trip to Redis for many HMGETs: the request and the reply as one buffer each.

redis-py builds and parses a Python object per key and per value; for some hundred entities that costs more than
the server does. Here the commands of one shape are one byte matrix in which only the entity's id differs, and the
reply is taken apart where its lengths say, all rows together.

Shapes: N entities, F fields of each.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
import numpy as np
from redis import exceptions

from feature_repo.wire import Cells, Values

NONCE = secrets.token_hex(16).encode()  # no stored value ends like this by chance or on purpose
SENTINEL = b"*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n" % (len(NONCE), NONCE)
END = b"$%d\r\n%s\r\n" % (len(NONCE), NONCE)
UNREADY = (b"-LOADING", b"-MASTERDOWN", b"-CLUSTERDOWN", b"-TRYAGAIN")
LEAST_BUFFER = 1 << 14  # bytes
MAX_IDLE = 16  # connections kept open
PROBE_S = 0.01  # how long a server that hung a moment ago gets to show that it is back
FEW = 8  # rows that hiredis takes apart faster
MOST_DIGITS = 10  # of a length, with its sign: Redis values end at 512 MB


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


class Wire:
    """Connections to one server that give up at a deadline; safe to share between threads.

    A server that hung is probed for ``PROBE_S`` before it is asked again, so that while it hangs no request waits
    longer than that, and the first one after it is back is answered.

    Args:
        address: of the server.
        timeout_s: for one exchange in all, a second try on a connection that had gone stale included.
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        self.address, self.timeout_s = address, timeout_s
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        self._hung = False
        self._expected = LEAST_BUFFER

    def ask(self, commands: bytes) -> np.ndarray:
        """Send commands and return their replies, uint8.

        Raises:
            redis.exceptions.TimeoutError: no whole answer in time.
            redis.exceptions.ConnectionError: refused, or lost twice.
            redis.exceptions.ResponseError: the server does not let us in.
        """
        until = time.monotonic() + self.timeout_s
        if self._hung:
            self._exchange(SENTINEL, time.monotonic() + PROBE_S)
        reply = self._exchange(commands + SENTINEL, until)
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
        try:
            with self._lock:
                link = self._idle.pop() if self._idle else None
            if link is not None:
                try:
                    return self._talk(link, message, until)
                except exceptions.ConnectionError:
                    self.close()  # the server closed it while it was idle: the others are stale too
            return self._talk(self._enter(until), message, until)
        except exceptions.TimeoutError:
            self._hung = True
            raise

    def _talk(self, link: socket.socket, message: bytes, until: float) -> np.ndarray:
        try:
            reply = _exchange(link, message, until, self._expected)
        except BaseException:
            link.close()
            raise
        self._hung = False
        self._expected = max(len(reply) + len(reply) // 8, LEAST_BUFFER)  # the next one may be as long
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(link)
            else:
                link.close()
        return reply

    def _enter(self, until: float) -> socket.socket:
        where = self.address
        name = f"{where.host}:{where.port}"
        try:
            link = socket.create_connection((where.host, where.port), max(until - time.monotonic(), 1e-3))
        except TimeoutError as error:
            raise exceptions.TimeoutError(f"{name} did not accept a connection in time") from error
        except OSError as error:
            raise exceptions.ConnectionError(f"{name}: {error}") from error
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = b""
        if where.password is not None:
            user = [] if where.username is None else [where.username.encode()]
            greeting += command(b"AUTH", *user, where.password.encode())
        if where.database:
            greeting += command(b"SELECT", b"%d" % where.database)
        if greeting:
            answer = _exchange(link, greeting + SENTINEL, until).tobytes()
            if b"-" in (line[:1] for line in answer.split(b"\r\n")):
                link.close()
                raise exceptions.ResponseError(f"{name}: {answer.decode(errors='replace').strip()}")
        return link


def command(*words: bytes) -> bytes:
    """One command."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def _exchange(link: socket.socket, message: bytes, until: float, expected: int = LEAST_BUFFER) -> np.ndarray:
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


class Hmgets:
    """HMGETs of the same fields of many hashes, as one message.

    Args:
        key: of an id; the id has to be 8 little-endian bytes at one place in it.
        fields: of the hash.
    """

    def __init__(self, key: Callable[[int], bytes], fields: Sequence[bytes]) -> None:
        zero, ones = (command(b"HMGET", key(number), *fields) for number in (0, -1))
        self._template = np.frombuffer(zero, np.uint8)
        self._at = int(np.flatnonzero(self._template != np.frombuffer(ones, np.uint8))[0])
        self.fields = len(fields)

    def message(self, ids: np.ndarray) -> bytes:
        """One HMGET per id, int64 (N)."""
        matrix = np.empty((len(ids), len(self._template)), np.uint8)
        matrix[:] = self._template
        matrix[:, self._at : self._at + 8] = ids.astype("<i8").view(np.uint8).reshape(-1, 8)
        return matrix.tobytes()

    def columns(self, reply: np.ndarray, rows: int) -> Sequence[Cells | Values]:
        """The replies to ``rows`` HMGETs, by field.

        Raises:
            redis.exceptions.ResponseError: the reply is anything else.
        """
        if rows <= FEW:
            found: Sequence[Cells | Values] | None = by_hiredis(reply, rows, self.fields)
        else:
            found = all_alike(reply, rows, self.fields) or all_together(reply, rows, self.fields)
        if found is None:
            text = reply[:200].tobytes().decode(errors="replace")
            raise exceptions.ResponseError(f"expected {rows} answers of {self.fields} values, found {text!r}")
        return found


def by_hiredis(reply: np.ndarray, rows: int, fields: int) -> list[Values] | None:
    """Replies by field, a Python object per value: the fastest for few rows; None: this is not what HMGET answers."""
    reader = hiredis.Reader()
    reader.feed(reply.tobytes())
    try:
        answers: list[Any] = [reader.gets() for _ in range(rows)]
    except hiredis.ProtocolError:
        return None
    if reader.has_data() or not all(isinstance(one, list) and len(one) == fields for one in answers):
        return None
    return [[one[field] for one in answers] for field in range(fields)]


def one_by_one(reply: np.ndarray, rows: int, fields: int) -> list[Cells] | None:
    """Replies by field, value after value: the slow twin of the other two; None: this is not what HMGET answers."""
    text = reply.tobytes()
    start, length = np.zeros((2, fields, rows), np.int64)
    header, at = b"*%d\r\n" % fields, 0
    for row in range(rows):
        if not text.startswith(header, at):
            return None
        at += len(header)
        for field in range(fields):
            end = text.find(b"\r\n", at)
            if end < 0 or text[at : at + 1] != b"$":
                return None
            size = int(text[at + 1 : end])
            start[field, row], length[field, row] = end + 2, size
            at = end + 2 + (size + 2 if size >= 0 else 0)
    if at != len(text):
        return None
    return [Cells(reply, start[field], length[field]) for field in range(fields)]


def all_alike(reply: np.ndarray, rows: int, fields: int) -> list[Cells] | None:
    """Replies by field, if every row has its values in the same places; None: they have not."""
    width, rest = divmod(len(reply), rows)
    first = None if rest else one_by_one(reply[:width], 1, fields)
    if first is None:
        return None
    matrix = reply.reshape(rows, width)
    between = np.ones(width, bool)
    for cell in first:
        between[cell.start[0] : cell.start[0] + max(cell.length[0], 0)] = False
    places = np.flatnonzero(between)
    if (matrix[:, places] != matrix[0, places]).any():
        return None
    row = np.arange(rows) * width
    return [Cells(reply, row + cell.start[0], np.full(rows, cell.length[0]), width) for cell in first]


def all_together(reply: np.ndarray, rows: int, fields: int) -> list[Cells] | None:
    """Replies by field, all rows at once; None: this is not what HMGET answers.

    A length says where a value ends and the next length begins, so a row is found by following ``fields`` such
    steps. Steps are worked out for every line of the reply at once, those inside values too, which no row leads to.
    """
    ends = np.flatnonzero(reply[:-1] == 13)
    ends = ends[reply[ends + 1] == 10]
    begins = np.append(0, ends[:-1] + 2)[: len(ends)]
    # Only lines that could be a length: "$" or "*" and a few digits. Most others are inside values.
    line = (ends - begins <= MOST_DIGITS) & ((reply[begins] == ord("$")) | (reply[begins] == ord("*")))
    begins, ends = begins[line], ends[line]
    length = _lengths(reply, begins, ends)
    header = reply[begins] == ord("*")
    following = ends + 2 + np.where(header | (length < 0), 0, length + 2)
    # Lines in order of appearance; the place after the last one leads to itself.
    step = np.append(np.searchsorted(begins, following), len(ends))
    jump = step
    for _ in range(fields):
        jump = step[jump]
    place, found = 0, []
    hop = jump.tolist()
    for _ in range(rows):
        found.append(place)
        place = hop[place]
    row = np.array(found)
    if place != len(ends) or (row >= len(ends)).any():
        return None
    if not header[row].all() or (length[row] != fields).any():
        return None
    out = []
    for _ in range(fields):
        row = step[row]
        if (row >= len(ends)).any() or header[row].any():
            return None
        out.append(Cells(reply, ends[row] + 2, length[row]))
    return out if following[row[-1]] == len(reply) else None


def _lengths(reply: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int64: the number after the first character of each line; -1 where it is negative."""
    digits = ends - begins - 1
    value = np.zeros(len(begins), np.int64)
    for place in range(int(digits.max(initial=0))):
        digit = reply[ends - 1 - place].astype(np.int64) - ord("0")
        value += np.where(digits > place, digit * 10**place, 0)
    return np.where(reply[begins + 1] == ord("-"), -1, value)
