"""Bytes of an online store are decoded to what protobuf says they are, and encoded as Feast does it."""

import numpy as np
import pyarrow as pa
import pytest
from feast.protos.feast.types import Value_pb2 as proto
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from moonstore.decode import Cells, by_protobuf, decode, decode_stamps
from moonstore.encode import ARROW, encode, encode_stamps

INT64 = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300)
ELEMENTS = {
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": INT64,
    "bool": st.booleans(),
    "unix_timestamp": INT64,
    "float": st.floats(width=32),
    "double": st.floats(),
    "string": st.text(max_size=200),
    "bytes": st.binary(max_size=200),
}
LISTS = {
    "int32": proto.Int32List,
    "int64": proto.Int64List,
    "bool": proto.BoolList,
    "unix_timestamp": proto.Int64List,
    "float": proto.FloatList,
    "double": proto.DoubleList,
    "string": proto.StringList,
}


def serialized(kind, content):
    if content is None:
        return None
    if content == "null":
        return b""
    if content == "explicit null":
        return proto.Value(null_val=proto.NULL).SerializeToString()
    if kind.endswith("_list"):
        content = LISTS[kind.removesuffix("_list")](val=content)
    return proto.Value(**{f"{kind}_val": content}).SerializeToString()


def columns(kind):
    element = ELEMENTS[kind.removesuffix("_list")]
    content = st.lists(element, max_size=30) if kind.endswith("_list") else element
    return st.lists(st.none() | st.sampled_from(["null", "explicit null"]) | content, max_size=12)


def same(left, right):
    assert left.valid.tolist() == right.valid.tolist()
    assert left.values.dtype == right.values.dtype and left.values.shape == right.values.shape
    for one, other in zip(left.values, right.values, strict=True):
        if isinstance(one, str | bytes) or one.dtype == object:
            assert np.array_equal(one, other)
        else:
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()  # NaN and -0.0 included


@pytest.mark.parametrize("kind", [*ELEMENTS, *(f"{kind}_list" for kind in LISTS)])
def test_decodes_what_protobuf_decodes(kind):
    @given(columns(kind))
    def check(contents):
        values = [serialized(kind, content) for content in contents]
        for stored in (values, Cells.of(values)):
            same(decode(stored, kind), by_protobuf(values, kind))

    check()


@pytest.mark.parametrize("width", [1, 31, 128, 5000])
def test_equal_widths_become_a_matrix(width):
    vectors = np.random.default_rng(0).normal(size=(7, width)).astype(np.float32)
    cells = Cells.of([serialized("float_list", vector.tolist()) for vector in vectors])
    assert decode(cells, "float_list").values.tobytes() == vectors.tobytes()
    missing = Cells.of([None, *(serialized("float_list", vector.tolist()) for vector in vectors)])
    column = decode(missing, "float_list")
    assert column.values.shape == (8, width) and not column.values[0].any() and not column.valid[0]


def test_a_value_of_another_type_is_refused():
    cells = Cells.of([serialized("string", "7")])
    with pytest.raises(ValueError, match="expected a stored value of type int64, found string"):
        decode(cells, "int64")


@given(st.lists(st.none() | st.tuples(st.integers(0, 2**33), st.integers(0, 999_999)), max_size=12))
def test_stamps(moments):
    stamps = [None if m is None else Timestamp(seconds=m[0], nanos=m[1] * 1000) for m in moments]
    values = [None if stamp is None else stamp.SerializeToString() for stamp in stamps]
    for stored in (values, Cells.of(values)):
        assert decode_stamps(stored).tolist() == [0 if s is None else s.ToMicroseconds() for s in stamps]


@pytest.mark.parametrize("kind", [*ARROW, *(f"{kind}_list" for kind in ARROW)])
def test_encodes_what_feast_encodes(kind):
    def filled(contents):
        return [None if content in ("null", "explicit null") else content for content in contents]

    element = ARROW[kind.removesuffix("_list")]
    dtype = pa.list_(element) if kind.endswith("_list") else element

    @given(columns(kind))
    def check(contents):
        column = pa.array(filled(contents), dtype)
        expected = [
            proto.Value() if value is None or value != value else value_of(kind, value)
            for value in column.to_pylist()
        ]
        assert encode(column, kind) == [value.SerializeToString() for value in expected]

    check()


def value_of(kind, content):
    return proto.Value.FromString(serialized(kind, content))


def test_what_feast_makes_of_a_column_is_what_we_make_of_it():
    column = pa.array([1.5, None, float("nan"), -0.0], pa.float64())
    feasts = python_values_to_proto_values(column.to_pandas().tolist(), ValueType.FLOAT)
    assert encode(column, "float")[0] == feasts[0].SerializeToString()
    assert encode(column, "float")[1:3] == [b"", b""]
    lists = pa.array([[1, 2**40], [], None], pa.list_(pa.int64()))
    feasts = python_values_to_proto_values(lists.to_pylist(), ValueType.INT64_LIST)
    assert encode(lists, "int64_list") == [value.SerializeToString() for value in feasts]


@given(st.lists(st.tuples(st.integers(0, 2**33), st.integers(0, 999_999)), max_size=12))
def test_stamps_are_encoded(moments):
    stamps = [Timestamp(seconds=s, nanos=us * 1000) for s, us in moments]
    event_us = np.array([s * 1_000_000 + us for s, us in moments], np.int64)
    assert encode_stamps(event_us) == [stamp.SerializeToString() for stamp in stamps]
