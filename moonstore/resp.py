"""Many HMGETs as one message, and their replies taken apart as one buffer.

redis-py builds and parses a Python object per key and per value; for some hundred entities that costs more than
the server does. Here the commands of one shape are one byte matrix in which only the entity's id differs, and the
reply is taken apart where its lengths say, all rows together.

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

FEW = 8  # rows that hiredis takes apart faster
MOST_DIGITS = 10  # of a length, with its sign: Redis values end at 512 MB


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
