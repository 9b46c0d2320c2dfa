"""The numbers of a side at a stroke are those of its rules, one after the other, to the bit."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.contracts import DataError
from feature_repo.vectors import VectorTable
from ranker.inputs.rules.booleans import Boolean
from ranker.inputs.rules.numbers import Number
from ranker.inputs.rules.side_by_side import SideBySide, one_by_one
from ranker.inputs.rules.timestamps import Age
from ranker.inputs.rules.vectors import Vector

FLOATS = st.one_of(st.none(), st.floats(-(2.0**99), 2.0**99, width=32), st.just(math.nan))
INTEGERS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
SCALARS = [
    (pa.float32(), FLOATS),
    (pa.float64(), FLOATS),
    (pa.int64(), INTEGERS),
    (pa.int32(), st.integers(-9, 9)),
]


@st.composite
def sides(draw):
    """A table of up to eight features of every kind of number, and their rules."""
    rows, columns, rules = draw(st.integers(0, 6)), {}, {}
    for place in range(draw(st.integers(0, 8))):
        name, absent = f"f{place}", draw(st.booleans())
        kind = draw(st.sampled_from(["number"] * 5 + ["age", "boolean", "vector"]))
        dtype, values = draw(st.sampled_from(SCALARS))
        if kind == "number":
            transform = draw(st.sampled_from(["log", "standard"]))
            mean, deviation = draw(st.floats(-9, 9)), draw(st.floats(0.1, 9))
            unit, null = draw(st.sampled_from([1.0, 0.001])), draw(st.sampled_from([None, 0.0, 7.0]))
            bounds = draw(st.sampled_from([(None, None), (-1.0, 1.5)]))
            rule = Number(name, transform, mean, deviation, unit, absent, null, *bounds)
        elif kind == "age":
            dtype, values, rule = (
                pa.int64(),
                st.one_of(st.none(), st.integers(0, 2**50)),
                Age(name, 1.0, 2.0, absent, draw(st.sampled_from([None, 0.0, 7.0]))),
            )
        elif kind == "boolean":
            dtype, values, rule = pa.bool_(), st.one_of(st.none(), st.booleans()), Boolean(name, absent)
        else:
            dtype, values = pa.list_(pa.float32()), st.one_of(st.none(), st.just([1.0, -2.0]))
            rule = Vector(name, 2, 0.5, absent)
        columns[name] = pa.array(draw(st.lists(values, min_size=rows, max_size=rows)), dtype)
        rules[name] = (name, rule)
    return pa.table({"item_id": np.arange(rows), **columns}), rules


@settings(max_examples=150, deadline=None)
@given(sides())
def test_all_at_once_is_one_after_the_other(side):
    table, rules = side
    time_us = np.arange(len(table)) * 10**14
    found, expected = SideBySide(rules).numbers(table, time_us), one_by_one(rules, table, time_us)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_an_infinite_number_among_several_is_named():
    table = pa.table({"a": [1.0, 2.0], "b": [0.0, math.inf], "c": [1.0, 1.0]})
    rules = {name: (name, Number(name, "log", 0.0, 1.0)) for name in ("a", "b", "c")}
    with pytest.raises(DataError, match=r"column b: 1 of 2 values are infinite .rows \[1\]."):
        SideBySide(rules).numbers(table, np.zeros(2, np.int64))


def test_vectors_are_gathered_into_any_shape_and_only_when_they_were_there():
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2) + 1
    table = VectorTable(np.array([3, 5, 9]), matrix, available_us=np.array([10, 20, 30]))
    assert table.known_rows(np.array([3, 4, 5, 9]), np.array([11, 99, 20, 31])).tolist() == [0, -1, -1, 2]
    rows = np.array([[2, -1], [0, 0]])
    np.testing.assert_array_equal(table.at(rows), [[matrix[2], [0, 0]], [matrix[0], matrix[0]]])
    empty = VectorTable(np.array([], np.int64), matrix[:0])
    assert empty.at(np.array([[-1, -1]])).tolist() == [[[0, 0], [0, 0]]]
