"""Many HMGETs as one message, and their replies parsed as one buffer.

redis-py builds and parses a Python object per key and value; for a few hundred entities that costs more than the
server's work. Here all commands form one byte matrix in which only the entity's id differs, and the reply is split at
its length fields, all rows together.

Shapes: N entities, F fields of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hiredis
import numpy as np
from redis import exceptions

from moonstore.connection import command
from moonstore.decode import Cells, Values

FEW = 8  # up to so many rows hiredis is faster
MOST_DIGITS = 10  # characters of "$" or "*" and a length: Redis values are at most 512 MB


class Hmgets:
    """HMGETs of the same fields of many hashes, as one message.

    Args:
        fields: fields of the hash to read.
        key: function from an id to its Redis key, which has to contain the id as 8 little-endian bytes; None: the
            keys are given one by one.
    """

    def __init__(self, fields: Sequence[bytes], key: Callable[[int], bytes] | None = None) -> None:
        self.fields = len(fields)
        self._before = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(fields))
        self._after = b"\r\n" + command(*fields).split(b"\r\n", 1)[1]
        if key is not None:
            zero, ones = (command(b"HMGET", key(number), *fields) for number in (0, -1))
            self._template = np.frombuffer(zero, np.uint8)
            self._at = int(np.flatnonzero(self._template != np.frombuffer(ones, np.uint8))[0])

    def of_keys(self, keys: Sequence[bytes]) -> bytes:
        """One HMGET per Redis key."""
        before, after = self._before, self._after
        return b"".join([b"%b$%d\r\n%b%b" % (before, len(key), key, after) for key in keys])

    def message(self, ids: np.ndarray) -> bytes:
        """One HMGET per id, int64 (N)."""
        matrix = np.empty((len(ids), len(self._template)), np.uint8)
        matrix[:] = self._template
        matrix[:, self._at : self._at + 8] = ids.astype("<i8").view(np.uint8).reshape(-1, 8)
        return matrix.tobytes()

    def columns(self, reply: np.ndarray, rows: int) -> Sequence[Cells | Values]:
        """Parse the replies to ``rows`` HMGETs into values by field.

        Raises:
            redis.exceptions.ResponseError: any other reply.
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
    """Values by field, a Python object each; the fastest for few rows. None: not a reply to HMGETs."""
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
    """Values by field, parsed one after the other: the slow twin of the next two. None: not a reply to HMGETs."""
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
    """Values by field, if all rows have the same byte layout; None: they differ."""
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
    """Values by field, all rows at once; None: not a reply to HMGETs.

    A length field gives the position of the next one, so a row is ``fields`` such steps. The steps are computed for
    all lines of the reply at once, including lines inside values, which no row reaches.
    """
    ends = np.flatnonzero(reply[:-1] == 13)
    ends = ends[reply[ends + 1] == 10]
    begins = np.append(0, ends[:-1] + 2)[: len(ends)]
    # Only lines that look like a length: "$" or "*" and a few digits. Most others are inside values.
    line = (ends - begins <= MOST_DIGITS) & ((reply[begins] == ord("$")) | (reply[begins] == ord("*")))
    begins, ends = begins[line], ends[line]
    length = _lengths(reply, begins, ends)
    header = reply[begins] == ord("*")
    following = ends + 2 + np.where(header | (length < 0), 0, length + 2)
    # Lines in order of appearance; the index after the last one steps to itself.
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
    """The number after the first character of each line, int64; -1 where it is negative."""
    digits = ends - begins - 1
    value = np.zeros(len(begins), np.int64)
    for place in range(int(digits.max(initial=0))):
        digit = reply[ends - 1 - place].astype(np.int64) - ord("0")
        value += np.where(digits > place, digit * 10**place, 0)
    return np.where(reply[begins + 1] == ord("-"), -1, value)
