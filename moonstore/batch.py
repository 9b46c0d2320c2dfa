"""Validation of rows before they are written online: valid rows, and refused rows with a reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.type_map import python_values_to_proto_values
from feast.utils import make_tzaware
from feast.value_type import ValueType

from moonstore import keys
from moonstore.clock import CLOCK_SKEW
from moonstore.encode import ARROW
from moonstore.errors import FutureRowError
from moonstore.matrix import kinds

STAMP = pa.timestamp("us", "UTC")
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
WHOLE = re.compile("[+-]?[0-9]+")
EXACT = {"float": 2**24, "double": 2**53}  # larger integers would be rounded


@dataclass(frozen=True)
class Batch:
    """N valid rows of one view.

    Attributes:
        keys: a column per join key, in the view's order, without nulls.
        features: feature -> N values, of a type that casts to the feature's.
        event_us: int64 of shape (N), event times in microseconds since 1970 UTC.
        created_us: int64 of shape (N), created timestamps in the same unit; None: the source has none.
    """

    keys: list[pa.Array]
    features: dict[str, pa.Array]
    event_us: np.ndarray
    created_us: np.ndarray | None

    def __len__(self) -> int:
        return len(self.event_us)

    def serialized_keys(self, view: FeatureView, version: int) -> list[bytes]:
        """Feast's serialized key of each row, in this version of the serialization."""
        kind = {column.name: column.dtype.to_value_type().name.lower() for column in view.entity_columns}
        found = None
        if version == keys.VERSION:
            found = keys.of_arrow(view.join_keys, self.keys, [kind[name] for name in view.join_keys])
        if found is None:
            found = [serialize_entity_key(one, version) for one in self.entity_keys(view)]
        return found

    def entity_keys(self, view: FeatureView) -> Iterator[EntityKey]:
        """Feast's key of each row."""
        names = view.join_keys
        kind = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        columns = [
            python_values_to_proto_values(values.to_pylist(), kind[name])
            for name, values in zip(names, self.keys, strict=True)
        ]
        for row in zip(*columns, strict=True):
            yield EntityKey(join_keys=names, entity_values=row)


@dataclass(frozen=True)
class Sifted:
    """The valid and the refused rows.

    Attributes:
        batch: the valid rows.
        refused: the other rows unchanged, with a column ``reason``.
    """

    batch: Batch
    refused: pa.Table

    @property
    def reasons(self) -> dict[str, int]:
        """Number of refused rows by reason."""
        counts = pc.value_counts(self.refused.column("reason").combine_chunks())
        return {entry["values"]: entry["counts"] for entry in counts.to_pylist()}


def sift(view: FeatureView, rows: pa.Table, now: datetime) -> Sifted:
    """Separate rows that a store would accept but that would break readers.

    A row is refused if its key or event time is null, its event time is before 1970 or more than ``CLOCK_SKEW`` after
    ``now``, its vector has another width than its view declares, a list of numbers holds NaN, infinity or null, a
    number is infinite, a value does not fit its stored type (text that is not a number, a fraction or NaN for an
    integer, a number too large), an integer is not exact as a float, or its key is not an integer where the entity's
    keys are.

    Args:
        view: defines names, types and widths.
        rows: columns named as in the view, and the source's timestamp columns.
        now: the current time.

    Raises:
        pyarrow.ArrowInvalid: a column does not cast to its feature's type.
    """
    source = view.batch_source
    assert source is not None
    rows = rows.combine_chunks()
    stamp = rows.column(source.timestamp_field).combine_chunks().cast(STAMP)
    reason = np.full(rows.num_rows, "", object)
    keys = _keys(reason, view, rows)
    event_us = stamp.cast(pa.int64()).fill_null(0).to_numpy()
    _mark(reason, pc.is_null(stamp), f"{source.timestamp_field} is null")
    _mark(reason, event_us < 0, f"{source.timestamp_field} is before 1970")
    latest = int((now + CLOCK_SKEW).timestamp() * 1e6)
    _mark(reason, event_us > latest, f"{source.timestamp_field} is in the future")
    features, kind = {}, kinds(view)
    for field in view.features:
        column = _as_stored(reason, field.name, rows.column(field.name).combine_chunks(), kind[field.name])
        _check(reason, field.name, column, kind[field.name], field.vector_length if field.vector_index else 0)
        features[field.name] = column
    good = pa.array(reason == "")
    created = source.created_timestamp_column
    created_us = (
        rows.column(created).combine_chunks().cast(STAMP).cast(pa.int64()).fill_null(0) if created else None
    )
    batch = Batch(
        [key.filter(good) for key in keys],
        {name: column.filter(good) for name, column in features.items()},
        event_us[reason == ""],
        None if created_us is None else created_us.filter(good).to_numpy(),
    )
    refused = rows.append_column("reason", pa.array(reason, pa.string())).filter(pc.invert(good))
    return Sifted(batch, refused)


def refuse_future(view: str, stamps: Sequence[datetime]) -> None:
    """Refuse rows with event times in the future, which would block all newer rows until then.

    Raises:
        FutureRowError: there are such rows; says how many.
    """
    latest = datetime.now(UTC) + CLOCK_SKEW
    late = [stamp for stamp in stamps if make_tzaware(stamp) > latest]
    if late:
        raise FutureRowError(
            f"{view}: expected event times by now, found {len(late)} of {len(stamps)} in the future "
            f"(first {late[0].isoformat()}). Check the sender's clock."
        )


def _keys(reason: np.ndarray, view: FeatureView, rows: pa.Table) -> list[pa.Array]:
    """The join keys; marks rows whose key is null or no int64: Feast would coerce "7", 7.9 and true to ids."""
    keys = []
    kind = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    for name in view.join_keys:
        key = rows.column(name).combine_chunks()
        _mark(reason, pc.is_null(key), f"{name} is null")
        if kind[name] == ValueType.INT64 and not pa.types.is_integer(key.type):
            _mark(reason, np.ones(len(key), bool), f"{name} is {key.type}, not an integer")
            key = pa.nulls(len(key), pa.int64())
        if kind[name] == ValueType.INT64:
            key = _whole_numbers(reason, name, key, pa.int64())
        keys.append(key)
    return keys


def _as_stored(reason: np.ndarray, name: str, column: pa.Array, kind: str) -> pa.Array:
    """A column of numbers cast to its stored type; rows with a value that does not fit are marked, the value null.

    The type in the source does not matter: pandas writes integers with gaps as floats with NaN, a CSV has only text.
    """
    dtype = ARROW.get(kind)
    if (
        dtype is None
        or pa.types.is_boolean(dtype)
        or not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype))
    ):
        return column
    if pa.types.is_string(column.type):
        return _parsed(reason, name, column, dtype)
    if pa.types.is_integer(dtype) and (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return _whole_numbers(reason, name, column, dtype)
    if pa.types.is_float32(dtype) and pa.types.is_float64(column.type):
        outside = pc.and_(pc.is_finite(column), pc.is_inf(column.cast(dtype, safe=False)))
        return _without(reason, column, outside, f"{name} does not fit a {kind}").cast(dtype)
    return column


def _whole_numbers(reason: np.ndarray, name: str, column: pa.Array, dtype: pa.DataType) -> pa.Array:
    """Integers from integers of another width, or from floats."""
    bounds = np.iinfo(dtype.to_pandas_dtype())
    lowest, highest = pa.scalar(bounds.min, pa.int64()), pa.scalar(bounds.max, pa.int64())
    if pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
        whole = pc.and_(pc.is_finite(column), pc.equal(pc.floor(column), column))
        column = _without(reason, column, pc.invert(whole), f"{name} is not a whole number")
        # 2**63 - 1 is not a float: the next smaller float is the largest that fits.
        lowest, highest = pa.scalar(float(bounds.min)), pa.scalar(float(np.nextafter(float(bounds.max), 0)))
    elif pa.types.is_unsigned_integer(column.type):
        lowest, highest = pa.scalar(0, column.type), highest.cast(pa.uint64())
    outside = pc.or_(pc.less(column, lowest), pc.greater(column, highest))
    return _without(reason, column, outside, f"{name} does not fit its integers").cast(dtype)


def _parsed(reason: np.ndarray, name: str, column: pa.Array, dtype: pa.DataType) -> pa.Array:
    """Numbers parsed from decimal text."""
    found: list[Any] = []
    for row, text in enumerate(column.to_pylist()):
        try:
            if text is not None and pa.types.is_integer(dtype) and not WHOLE.fullmatch(text):
                raise pa.ArrowInvalid(text)
            found.append(None if text is None else pa.scalar(text).cast(dtype).as_py())
        except pa.ArrowInvalid:
            found.append(None)
            reason[row] = reason[row] or f"{name} is not a number"
    return pa.array(found, dtype)


def _without(reason: np.ndarray, column: pa.Array, bad: pa.Array, says: str) -> pa.Array:
    """The column with null where ``bad``; those rows are marked."""
    bad = pc.fill_null(bad, False)
    _mark(reason, bad, says)
    return pc.if_else(bad, pa.scalar(None, column.type), column)


def _check(reason: np.ndarray, name: str, column: pa.Array, kind: str, width: int) -> None:
    if any(is_list(column.type) for is_list in LISTS):
        if width:
            length = pc.list_value_length(column)
            _mark(reason, pc.fill_null(pc.not_equal(length, width), False), f"{name} is not of width {width}")
        element = ARROW.get(kind.removesuffix("_list"))
        if element is not None and pa.types.is_floating(element):
            values = pc.list_flatten(column).cast(element)
            bad = pc.fill_null(pc.invert(pc.is_finite(values)), True)
            parents = pc.list_parent_indices(column).filter(bad).to_numpy()
            mask = np.zeros(len(column), bool)
            mask[parents] = True
            _mark(reason, mask, f"{name} has NaN, infinity or null inside")
    elif kind in EXACT and pa.types.is_floating(column.type):
        _mark(reason, pc.fill_null(pc.is_inf(column), False), f"{name} is infinite")
    elif kind in EXACT and pa.types.is_integer(column.type):
        numbers = column.cast(pa.int64()).fill_null(0).to_numpy()
        _mark(reason, (numbers > EXACT[kind]) | (numbers < -EXACT[kind]), f"{name} does not fit a {kind}")


def _mark(reason: np.ndarray, bad: pa.Array | np.ndarray, says: str) -> None:
    mask = bad if isinstance(bad, np.ndarray) else bad.to_numpy(zero_copy_only=False).astype(bool)
    reason[mask & (reason == "")] = says
