"""Feast's stored bytes as numpy columns, without a protobuf object per value.

Every value in an online store is a serialized ``feast.types.Value``: a tag for the type, then the content. Values of
one column with equal length have the same byte layout, so they are decoded together. Protobuf decodes the rest value
by value: unexpected layouts, very few values, and lists of integers, whose layout varies. The slow twin of everything
here is ``Value.FromString``.

Shapes: N rows, L bytes of a value, W numbers of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from google.protobuf.timestamp_pb2 import Timestamp

NUMBERS = {"int32": np.int32, "int64": np.int64, "bool": np.bool_, "unix_timestamp": np.int64}
FIXED = {"float": np.float32, "double": np.float64}
DTYPES = NUMBERS | FIXED
Rows = np.ndarray | slice
Values = Sequence[bytes | None]  # None: missing
SHORT = 64  # bytes; longer values are copied one by one rather than byte by byte
FEW = 4  # up to so many rows protobuf is faster


@dataclass(frozen=True)
class Cells:
    """N stored values inside one buffer.

    Attributes:
        buffer: uint8, the store's reply.
        start: int64 of shape (N), where each value begins.
        length: int64 of shape (N), bytes of each; -1: missing.
        apart: distance in bytes between starts if all lengths and all distances are equal; 0: unknown.
    """

    buffer: np.ndarray
    start: np.ndarray
    length: np.ndarray
    apart: int = 0

    def __len__(self) -> int:
        return len(self.start)

    @classmethod
    def of(cls, values: Values) -> Cells:
        """Cells of separate byte strings."""
        length = np.array([-1 if value is None else len(value) for value in values], dtype=np.int64)
        end = np.cumsum(np.maximum(length, 0))
        joined = b"".join(value for value in values if value)
        return cls(np.frombuffer(joined, np.uint8), end - np.maximum(length, 0), length)

    def bytes(self, row: int) -> bytes:
        """One value."""
        return self.buffer[self.start[row] : self.start[row] + self.length[row]].tobytes()

    def values(self) -> Values:
        """The values one by one."""
        return [None if self.length[row] < 0 else self.bytes(row) for row in range(len(self))]

    def part(self, rows: Rows) -> Cells:
        """The cells of these rows."""
        return Cells(self.buffer, self.start[rows], self.length[rows])

    def groups(self) -> list[tuple[Rows, np.ndarray]]:
        """Rows of each length with their bytes, uint8 (n, L); missing and empty values are in no group."""
        if not len(self):
            return []
        if self.apart:
            length = int(self.length[0])
            shape, strides = (len(self), max(length, 0)), (self.apart, 1)
            view = np.ndarray(shape, np.uint8, self.buffer, int(self.start[0]), strides)  # type: ignore[arg-type]
            return [(slice(None), view)] if length > 0 else []
        lengths = np.unique(self.length)
        return [self._group(np.flatnonzero(self.length == one), one) for one in lengths.tolist() if one > 0]

    def _group(self, rows: np.ndarray, length: int) -> tuple[Rows, np.ndarray]:
        start = self.start[rows]
        if length <= SHORT:
            return rows, self.buffer[start[:, None] + np.arange(length)]
        view = memoryview(self.buffer)  # type: ignore[arg-type]
        joined = b"".join([view[at : at + length] for at in start.tolist()])
        return rows, np.frombuffer(joined, np.uint8).reshape(len(rows), length)


@dataclass(frozen=True)
class Column:
    """N decoded values.

    Attributes:
        values: of shape (N) for scalars (dtype object for strings and bytes); for lists (N, W) if all valid ones
            have W numbers, else (N) of arrays, dtype object. Zero, "" or empty where not valid.
        valid: bool of shape (N), false where the value is missing or null.
    """

    values: np.ndarray
    valid: np.ndarray

    def take(self, rows: np.ndarray) -> Column:
        """These rows, in this order."""
        return Column(self.values[rows], self.valid[rows])

    def where(self, good: np.ndarray) -> Column:
        """The column, invalid where not ``good``."""
        values = self.values.copy()
        for row in np.flatnonzero(~good).tolist():
            values[row] = values[row][:0] if values.dtype == object else 0
        return Column(values, self.valid & good)


def decode(stored: Cells | Values, kind: str) -> Column:
    """Decode a column.

    Args:
        stored: serialized values.
        kind: the field of ``Value`` without "_val": int64, float, string, float_list, ...
    """
    if len(stored) > FEW:
        cells = stored if isinstance(stored, Cells) else Cells.of(stored)
        if kind in NUMBERS or kind in FIXED:
            return _scalars(cells, kind)
        if kind == "string":
            return _strings(cells)
        if kind.endswith("_list") and kind[:-5] in FIXED:
            return _lists(cells, kind)
    return by_protobuf(stored.values() if isinstance(stored, Cells) else stored, kind)


def by_protobuf(values: Values, kind: str) -> Column:
    """The slow twin of ``decode``: one ``Value`` per value."""
    objects: list[Any] = [_value(value, kind) if value else None for value in values]
    valid = np.array([value is not None for value in objects], dtype=bool)
    element = kind.removesuffix("_list")
    dtype = DTYPES.get(element)
    if kind.endswith("_list"):
        arrays: list[np.ndarray] = [np.array([] if one is None else one, dtype or object) for one in objects]
        return Column(_stacked(arrays, valid, dtype or object), valid)
    empty: Any = b"" if kind == "bytes" else "" if dtype is None else 0
    return Column(np.array([empty if one is None else one for one in objects], dtype or object), valid)


def decode_stamps(stored: Cells | Values) -> np.ndarray:
    """Serialized ``Timestamp`` values as microseconds since 1970 UTC, int64 (N); 0 where missing."""
    if len(stored) <= FEW:
        values = stored.values() if isinstance(stored, Cells) else stored
        stamps = [Timestamp.FromString(value or b"") for value in values]
        return np.array([one.seconds * 1_000_000 + one.nanos // 1000 for one in stamps], np.int64)
    cells = stored if isinstance(stored, Cells) else Cells.of(stored)
    out = np.zeros(len(cells), np.int64)
    for rows, matrix in cells.groups():
        seconds, nanos = _stamps(matrix)
        out[rows] = seconds * 1_000_000 + nanos // 1000
    return out


def _stamps(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and nanoseconds of timestamps of equal length: 08 varint, then optionally 10 varint."""
    parts = {8: np.zeros(len(matrix), np.int64), 16: np.zeros(len(matrix), np.int64)}
    shape = matrix[0] > 127
    if ((matrix > 127) != shape).any():  # varints of different lengths with the same total
        for row in range(len(matrix)):
            for mark, one in zip(parts, _stamps(matrix[row : row + 1]), strict=True):
                parts[mark][row] = one[0]
        return parts[8], parts[16]
    at = 0
    while at < matrix.shape[1]:
        end = at + 1
        while shape[end]:
            end += 1
        number = _varint(matrix[:, at + 1 : end + 1])
        for mark, part in parts.items():
            part[matrix[:, at] == mark] = number[matrix[:, at] == mark]
        at = end + 1
    return parts[8], parts[16]


def _scalars(cells: Cells, kind: str) -> Column:
    dtype = DTYPES[kind]
    values, valid = np.zeros(len(cells), dtype), np.zeros(len(cells), bool)
    first = tag(kind)
    for rows, matrix in cells.groups():
        if kind in FIXED:
            good = matrix.shape[1] == 1 + np.dtype(dtype).itemsize and bool((matrix[:, 0] == first[0]).all())
            found = np.ascontiguousarray(matrix[:, 1:]).view(dtype)[:, 0] if good else None
        else:
            good = bool((matrix[:, 0] == first[0]).all()) and _one_varint(matrix[:, 1:])
            found = _varint(matrix[:, 1:]).astype(dtype) if good else None
        if found is None:
            slow = by_protobuf(cells.part(rows).values(), kind)
            values[rows], valid[rows] = slow.values, slow.valid
        else:
            values[rows], valid[rows] = found, True
    return Column(values, valid)


def _strings(cells: Cells) -> Column:
    values = np.full(len(cells), "", object)
    valid = cells.length > 0
    first = tag("string")[0]
    view = memoryview(cells.buffer)  # type: ignore[arg-type]
    for row in np.flatnonzero(valid).tolist():
        at, length = int(cells.start[row]), int(cells.length[row])
        if view[at] == first and view[at + 1] == length - 2 < 128:
            values[row] = str(view[at + 2 : at + length], "utf-8")
        else:
            one = _value(cells.bytes(row), "string")
            values[row], valid[row] = one or "", one is not None
    return Column(values, valid)


def _lists(cells: Cells, kind: str) -> Column:
    dtype = FIXED[kind.removesuffix("_list")]
    arrays: list[np.ndarray] = [np.zeros(0, dtype)] * len(cells)
    valid = np.zeros(len(cells), bool)
    size = np.dtype(dtype).itemsize
    for rows, matrix in cells.groups():
        header = _list_header_of(kind, matrix.shape[1])
        found: np.ndarray | list[np.ndarray] | None = None
        if header is not None and (matrix[:, : len(header)] == header).all():
            content = np.ascontiguousarray(matrix[:, len(header) :])
            found = content.view(dtype) if content.shape[1] % size == 0 else None
        if found is None:
            slow = [_value(one.tobytes(), kind) for one in matrix]
            valid[rows] = [one is not None for one in slow]
            found = [np.array(one or [], dtype) for one in slow]
        elif len(matrix) == len(cells) and isinstance(found, np.ndarray):
            return Column(found, np.ones(len(cells), bool))
        else:
            valid[rows] = True
        for row, one in zip(np.arange(len(cells))[rows].tolist(), found, strict=True):
            arrays[row] = one
    return Column(_stacked(arrays, valid, dtype), valid)


def _stacked(arrays: list[np.ndarray], valid: np.ndarray, dtype: Any) -> np.ndarray:
    """(N, W) if all valid ones have W numbers, else (N) of arrays."""
    if len(arrays) == 1 and dtype is not object:
        return arrays[0][None]
    widths = {len(one) for one, there in zip(arrays, valid.tolist(), strict=True) if there}
    if len(widths) == 1 and dtype is not object:
        nothing = np.zeros(widths.pop(), dtype)
        return np.array(
            [one if there else nothing for one, there in zip(arrays, valid.tolist(), strict=True)]
        )
    ragged = np.empty(len(arrays), object)
    ragged[:] = arrays
    return ragged


def _value(content: bytes, kind: str) -> Any:
    value = Value.FromString(content)
    which = value.WhichOneof("val")
    if which is None or which == "null_val":
        return None
    if which != f"{kind}_val":
        raise ValueError(f"expected a stored value of type {kind}, found {which.removesuffix('_val')}")
    found = getattr(value, which)
    return (
        found.val if kind.endswith("_list") else found
    )  # numpy copies it without a Python object per number


def _one_varint(matrix: np.ndarray) -> bool:
    return matrix.shape[1] > 0 and bool((matrix[:, :-1] > 127).all() and (matrix[:, -1] < 128).all())


def _varint(matrix: np.ndarray) -> np.ndarray:
    """Decoded varints of equal length, int64 (n)."""
    out = np.zeros(len(matrix), np.uint64)
    for place in range(matrix.shape[1]):
        out |= (matrix[:, place] & np.uint8(127)).astype(np.uint64) << np.uint64(7 * place)
    return out.view(np.int64)


@cache
def tag(kind: str) -> bytes:
    """First byte or bytes of a ``Value`` of this type: field number and wire type."""
    field = Value.DESCRIPTOR.fields_by_name[f"{kind}_val"]
    wire_type = {"float": 5, "double": 1}.get(kind, 0 if kind in NUMBERS else 2)
    return encoded_varint(field.number << 3 | wire_type)


@cache
def list_header(kind: str, content: int) -> bytes:
    """The bytes before the packed numbers of a list, which take ``content`` bytes."""
    packed = bytes([FloatList.DESCRIPTOR.fields_by_name["val"].number << 3 | 2])
    inner = packed + encoded_varint(content) if content else b""
    return tag(kind) + encoded_varint(len(inner) + content) + inner


@cache
def _list_header_of(kind: str, length: int) -> np.ndarray | None:
    """The header of a list whose whole value has ``length`` bytes; None: no value has that length."""
    for content in range(max(length - 24, 0), length):  # two varints and two tags take less
        header = list_header(kind, content)
        if len(header) + content == length:
            return np.frombuffer(header, np.uint8)
    return None


def encoded_varint(number: int) -> bytes:
    """A varint: seven bits per byte, low bits first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
