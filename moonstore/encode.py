"""Arrow columns as the bytes Feast stores, without a protobuf object per value: the inverse of ``decode``.

The slow twin of everything here is Feast's own ``python_values_to_proto_values`` and ``Value.SerializeToString``.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from moonstore.decode import FIXED, NUMBERS, encoded_varint, list_header, tag

ARROW = {
    "int32": pa.int32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
}
SECONDS, NANOS = b"\x08", b"\x10"  # tags of a Timestamp
POWERS = np.array([1 << 7 * places for places in range(1, 10)], np.uint64)
NOTHING = b""  # how Feast stores a null


def encode(column: pa.Array, kind: str) -> list[bytes]:
    """Serialized values, one per row; NaN scalars are nulls, as in Feast.

    Args:
        column: of a type that casts to ``kind``.
        kind: as in ``moonstore.decode.decode``.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit the type.
    """
    element = kind.removesuffix("_list")
    if kind in ARROW:
        column = column.cast(ARROW[kind])
        valid = _valid(column)
        filled = column.fill_null("" if kind == "string" else False if kind == "bool" else 0)
        found = _scalars(filled, kind)
        return (
            found
            if valid.all()
            else [one if there else NOTHING for one, there in zip(found, valid, strict=True)]
        )
    if kind.endswith("_list") and element in ARROW and element != "string":
        return _lists(column.cast(pa.list_(ARROW[element])), kind)
    values = python_values_to_proto_values(column.to_pylist(), ValueType[kind.upper()])
    return [value.SerializeToString() for value in values]


def encode_stamps(event_us: np.ndarray) -> list[bytes]:
    """Serialized ``Timestamp`` values from microseconds since 1970 UTC, int64 (N), none negative."""
    seconds, micros = np.divmod(event_us, 1_000_000)
    parts = zip(_varints(seconds, SECONDS), _varints(micros * 1000, NANOS), seconds, micros, strict=True)
    return [(s if whole else b"") + (n if part else b"") for s, n, whole, part in parts]


def _valid(column: pa.Array) -> np.ndarray:
    valid = pc.is_valid(column)
    if pa.types.is_floating(column.type):
        valid = pc.and_(valid, pc.invert(pc.fill_null(pc.is_nan(column), True)))
    found: np.ndarray = valid.to_numpy(zero_copy_only=False)
    return found


def _scalars(column: pa.Array, kind: str) -> list[bytes]:
    first = tag(kind)
    if kind == "string":
        return [first + encoded_varint(len(text)) + text for text in map(str.encode, column.to_pylist())]
    numbers = column.to_numpy(zero_copy_only=False)
    if kind in FIXED:
        content = np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), numbers.itemsize)
        return _rows(np.broadcast_to(np.frombuffer(first, np.uint8), (len(numbers), len(first))), content)
    return _varints(numbers.astype(np.int64), first)


def _lists(column: pa.ListArray, kind: str) -> list[bytes]:
    dtype = (NUMBERS | FIXED)[kind.removesuffix("_list")]
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(dtype)
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if kind.removesuffix("_list") in FIXED:
        content, size = flat.tobytes(), counts * np.dtype(dtype).itemsize
    elif kind == "bool_list":
        content, size = flat.astype(np.uint8).tobytes(), counts
    else:
        content, size = _packed(flat.astype(np.int64), counts)
    ends = np.cumsum(size).tolist()
    valid = column.is_valid().to_numpy(zero_copy_only=False).tolist()
    headers = {length: list_header(kind, length) for length in set(size.tolist())}
    rows = zip([0, *ends[:-1]], ends, size.tolist(), valid, strict=True) if ends else ()
    return [headers[length] + content[a:b] if there else NOTHING for a, b, length, there in rows]


def _packed(numbers: np.ndarray, counts: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Concatenated varints, and the number of bytes of each row."""
    bits = numbers.view(np.uint64)
    length = np.searchsorted(POWERS, bits, side="right") + 1
    start = np.cumsum(length) - length
    out = np.zeros(int(length.sum()), np.uint8)
    for place in range(int(length.max(initial=0))):
        rows = length > place
        more = np.where(length[rows] > place + 1, 128, 0).astype(np.uint8)
        out[start[rows] + place] = (bits[rows] >> np.uint64(7 * place)).astype(np.uint8) & 127 | more
    total = np.append(0, np.cumsum(length))
    ends = np.cumsum(counts)
    return out.tobytes(), total[ends] - total[ends - counts]


def _varints(numbers: np.ndarray, first: bytes) -> list[bytes]:
    """Each number as a varint after a tag."""
    bits = numbers.astype(np.int64).view(np.uint64)
    length = np.searchsorted(POWERS, bits, side="right") + 1
    out: list[bytes] = [b""] * len(bits)
    for places in np.unique(length).tolist():
        rows = np.flatnonzero(length == places)
        shifts = (7 * np.arange(places)).astype(np.uint64)
        matrix = (bits[rows, None] >> shifts).astype(np.uint8) & 127
        matrix[:, :-1] |= 128
        tags = np.broadcast_to(np.frombuffer(first, np.uint8), (len(rows), len(first)))
        for row, one in zip(rows.tolist(), _rows(tags, matrix), strict=True):
            out[row] = one
    return out


def _rows(*columns: np.ndarray) -> list[bytes]:
    """Rows of matrices concatenated along axis 1, uint8 (n, L) each, as byte strings."""
    matrix = np.concatenate(columns, axis=1)
    width, content = matrix.shape[1], matrix.tobytes()
    return [content[at : at + width] for at in range(0, len(content), width)]
