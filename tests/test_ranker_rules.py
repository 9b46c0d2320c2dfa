"""Every rule of the table gives the textbook's values; null, rare, unknown and NaN have a meaning of their own."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.contracts import DataError
from feature_repo.features import item_profile, item_stats, query_stats, user_profile
from feature_repo.services import ctr_v1
from feature_repo.signature import Feature, signature_of
from ranker.inputs.hashing import hash_integers, hash_strings
from ranker.inputs.rules import categories, numbers
from ranker.inputs.rules.categories import Dictionary, Hashed
from ranker.inputs.rules.numbers import Buckets, Moments, Number
from ranker.inputs.rules.table import from_json, learner, to_json
from ranker.inputs.rules.timestamps import Age
from ranker.inputs.rules.vectors import Vector

NOW_US = 1_700_000_000_000_000
NONE = np.zeros(0, np.int64)


def feature(kind, dtype, **tags):
    return Feature("x", "view", "x", "candidate", kind, dtype, tags)


def learned(kind, values, dtype, time_us=NONE, pieces=1, **tags):
    one = learner(feature(kind, dtype, **tags))
    column = pa.array(values, dtype)
    for part in np.array_split(np.arange(len(column)), pieces):
        one.see(column.take(pa.array(part)), time_us[part] if len(time_us) else NONE)
    rule = one.learned()
    assert from_json(json.loads(json.dumps(to_json(rule)))) == rule
    return rule


def rows_of(rule, values, dtype):
    """Rows of the table for each value."""
    rows, lengths = rule.ids(pa.array(values, dtype))
    ends = np.append(0, np.cumsum(lengths))
    assert rows.dtype == np.int64 and ends[-1] == len(rows)
    assert not len(rows) or 0 <= rows.min() and rows.max() < rule.rows
    return [rows[ends[one] : ends[one + 1]].tolist() for one in range(len(lengths))]


def numbers_of(rule, values, dtype, time_us=NONE):
    found = rule.numbers(pa.array(values, dtype), time_us)
    assert found.dtype == np.float32 and found.shape == (len(values), len(rule.names))
    return found.tolist()


def test_a_category_has_a_row_of_its_own_and_so_have_the_unknown_and_null():
    rule = learned("category", ["b", "a", None, "b"], pa.string(), pieces=3)
    assert rule == Dictionary(("a", "b")) and rule.rows == 4
    assert rows_of(rule, ["a", "b", "new", None, ""], pa.string()) == [[2], [3], [0], [1], [0]]
    assert rows_of(rule, [], pa.string()) == []
    whole = pa.array(["new", "b", None, "a"])
    assert rule.ids(whole.slice(1, 2))[0].tolist() == [3, 1]


def test_rare_categories_are_unknown():
    values = ["a"] * 3 + ["b"] * 2 + ["c"]
    rule = learned("category", values, pa.string(), pieces=6, min_count="2")
    assert rule.values == ("a", "b")
    assert rows_of(rule, ["a", "b", "c", None], pa.string()) == [[2], [3], [0], [1]]


@pytest.mark.parametrize("dtype", [pa.int32(), pa.int64()])
def test_integers_are_categories_as_they_are(dtype):
    rule = learned("category", [7, -1, 7, None], dtype)
    assert rule == Dictionary((-1, 7))
    assert rows_of(rule, [-1, 7, 8, None], dtype) == [[2], [3], [0], [1]]


def test_booleans_can_be_categories():
    rule = learned("category", [True, False, None], pa.bool_())
    assert rows_of(rule, [False, True, None], pa.bool_()) == [[2], [3], [1]]


def test_a_category_of_which_training_saw_nothing_has_the_two_rows_of_every_dictionary():
    rule = learned("category", [None, None], pa.string())
    assert rule.rows == 2 and rows_of(rule, [None, "a"], pa.string()) == [[1], [0]]


def test_a_bag_has_a_row_for_each_of_its_values():
    bags = pa.list_(pa.string())
    rule = learned("categories", [["b", "a"], [], None, ["a", None]], bags)
    assert rule == Dictionary(("a", "b"))
    given_bags = [["b", "a"], [], None, ["new"], ["a", None, "a"], None]
    assert rows_of(rule, given_bags, bags) == [[3, 2], [], [1], [0], [2, 2], [1]]
    whole = pa.array(given_bags, bags)
    assert rule.ids(whole.slice(1, 3))[0].tolist() == [1, 0]


def test_hashed_categories_fall_into_the_row_that_their_hash_names():
    rule = learned("category", ["a", "b", None], pa.string(), hashed="64")
    assert rule == Hashed(64)
    row = [int(one % np.uint64(64)) for one in hash_strings(pa.array(["a", "new"]))]
    assert rows_of(rule, ["a", None, "new"], pa.string()) == [[row[0]], [], [row[1]]]
    bags = pa.list_(pa.int64())
    wide = learned("categories", [[1, 2], None], bags, hashed="1000")
    at = [int(one % np.uint64(1000)) for one in hash_integers(np.array([1, 2]))]
    assert rows_of(wide, [[1, None, 2], None, []], bags) == [at, [], []]


def test_hashed_and_rare_categories_share_a_row_that_no_other_has():
    values = [f"often{one}" for one in range(20)] * 3 + [f"rare{one}" for one in range(20)]
    rule = learned("category", values, pa.string(), pieces=7, hashed="4096", min_count="3")
    often = [f"often{one}" for one in range(20)]
    plain_rows = [int(one % np.uint64(4096)) for one in hash_strings(pa.array(often))]
    assert rows_of(rule, often, pa.string()) == [[one] for one in plain_rows]
    unknown = rows_of(rule, [f"rare{one}" for one in range(20)] + ["new"], pa.string())
    assert unknown == [[0]] * 21 and 0 not in plain_rows


def test_more_values_than_a_dictionary_should_hold_are_hashed(monkeypatch):
    monkeypatch.setattr(categories, "LARGEST", 10)
    assert isinstance(learned("category", list(range(10)), pa.int64()), Dictionary)
    rule = learned("category", list(range(11)), pa.int64(), pieces=3)
    assert rule == Hashed(8 * 11)
    twice = learned("category", [one // 2 for one in range(24)] + list(range(50, 90)), pa.int64(),
                    pieces=4, min_count="2")  # fmt: skip
    unknown = rows_of(twice, [50, 89], pa.int64())
    assert twice.rows == 8 * 12 and unknown == [[0], [0]]
    assert rows_of(twice, [3], pa.int64()) != [[0]]


def test_a_number_is_standardised_over_its_training_values():
    rule = learned("number", [1.0, 2.0, 3.0, 4.0], pa.float64(), pieces=2)
    assert rule == Number("x", "standard", 2.5, pytest.approx(math.sqrt(1.25)), least=1.0, most=4.0)
    expected = [[(value - 2.5) / math.sqrt(1.25)] for value in (1.0, 2.5, 4.0)]
    np.testing.assert_allclose(numbers_of(rule, [1.0, 2.5, 4.0], pa.float64()), expected, rtol=1e-6)
    rare = learned("number", [0.0] * 99 + [1e9], pa.float64())
    assert numbers_of(rare, [1e9], pa.float64()) == [[5.0]]  # cut at five deviations


@pytest.mark.parametrize("tags", [{}, {"transform": "log"}])
def test_a_number_beyond_all_that_training_saw_is_the_most_extreme_that_it_saw(tags):
    rule = learned("number", [3.0, None, 1.0, 4.0, 2.0], pa.float64(), pieces=3, **tags)
    beyond, bounds = [[-1e9, 0.5, 4.5, 1e9], [1.0, 1.0, 4.0, 4.0]]
    assert numbers_of(rule, beyond, pa.float64()) == numbers_of(rule, bounds, pa.float64())
    assert numbers_of(rule, [None, math.nan], pa.float64()) == [[0.0, 1.0]] * 2
    of_nulls = learned("number", [None, None], pa.float64(), **tags)
    assert numbers_of(of_nulls, [2.0], pa.float64()) != numbers_of(of_nulls, [3.0], pa.float64())


def test_an_age_beyond_all_that_training_saw_is_the_greatest_that_it_saw():
    """Items that are as old as the log: without a bound a day later is as far off as a model cares to go on."""
    day = 86_400_000_000
    ages = np.arange(20, 25) * day
    rule = learned("timestamp", [0] * 5, pa.int64(), ages)
    later, last = (
        numbers_of(rule, [0], pa.int64(), np.array([age])) for age in (ages[-1] + 9 * day, ages[-1])
    )
    assert later == last and last[0][0] < 2
    assert numbers_of(rule, [0], pa.int64(), np.array([0])) == numbers_of(rule, [0], pa.int64(), ages[:1])


def test_null_is_the_average_and_has_an_indicator_where_training_knew_nulls():
    rule = learned("number", [1.0, None, 3.0, math.nan], pa.float64(), pieces=4)
    assert rule.names == ("x", "no x") and (rule.mean, rule.deviation) == (2.0, 1.0)
    found = numbers_of(rule, [3.0, None, math.nan], pa.float64())
    assert found == [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    never = learned("number", [1.0, 3.0], pa.float64())
    assert numbers_of(never, [3.0, None], pa.float64()) == [[1.0], [0.0]]
    always = learned("number", [None, None], pa.float64())
    assert numbers_of(always, [None], pa.float64()) == [[0.0]]


def test_counts_enter_as_logarithms_and_other_numbers_as_they_are_unless_a_tag_says_otherwise():
    e = math.e
    assert learned("number", [1, 2], pa.int64()).transform == "log"
    assert learned("number", [1, 2], pa.int32(), transform="standard").transform == "standard"
    assert learned("number", [1.0, 2.0], pa.float32()).transform == "standard"
    rule = learned("number", [0.0, e - 1, 1 - e, e * e - 1], pa.float64(), transform="log")
    logs = np.array([0.0, 1.0, -1.0, 2.0])
    expected = ((logs - logs.mean()) / logs.std())[:, None]
    np.testing.assert_allclose(
        numbers_of(rule, [0.0, e - 1, 1 - e, e * e - 1], pa.float64()), expected, rtol=1e-6
    )


def test_infinite_numbers_are_refused():
    with pytest.raises(DataError, match=r"column x: 1 of 3 values are infinite \(rows \[1\]\)"):
        learned("number", [1.0, math.inf, None], pa.float64())


def test_large_numbers_that_hardly_differ_keep_their_deviation():
    values = (1e9 + np.arange(1000.0) % 2).tolist()
    rule = learned("number", values, pa.float64(), pieces=13)
    assert rule.deviation == pytest.approx(0.5, rel=1e-6)
    assert learned("number", [7.0] * 9, pa.float64()).deviation == 1.0  # a constant is not divided by zero


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=6), max_size=6))
def test_moments_of_the_pieces_are_those_of_the_whole(pieces):
    moments = Moments()
    for piece in pieces:
        moments.add(np.array(piece, dtype=float))
    whole = np.array([value for piece in pieces for value in piece if not math.isnan(value)])
    assert moments.count == len(whole)
    if len(whole):
        assert moments.mean == pytest.approx(whole.mean(), abs=1e-6)
        expected = whole.std() if whole.std() > 1e-6 else 1.0
        assert moments.deviation == pytest.approx(expected, rel=1e-6, abs=2e-6)
        assert (moments.least, moments.most) == (whole.min(), whole.max())
    else:
        assert moments.least is moments.most is None


def test_buckets_are_equally_frequent():
    values = np.random.default_rng(0).permutation(np.arange(400.0)).tolist()
    rule = learned(
        "number", [*values, None, math.nan], pa.float64(), pieces=5, transform="buckets", buckets="4"
    )
    assert rule == Buckets("x", (99.0, 199.0, 299.0)) and rule.rows == 5
    inside = [-5.0, 98.9, 99.0, 250.0, 299.0, 1e9, None, math.nan]
    assert rows_of(rule, inside, pa.float64()) == [[1], [1], [2], [3], [4], [4], [0], [0]]


def test_a_value_that_is_very_frequent_is_one_bucket():
    rule = learned("number", [0.0] * 90 + list(range(1, 11)), pa.float64(), transform="buckets", buckets="10")
    assert rule.borders == ()
    rule = learned("number", [0.0] * 50 + [1.0] * 50, pa.float64(), transform="buckets", buckets="10")
    assert rule.borders == (1.0,)
    assert learned("number", [None], pa.float64(), transform="buckets").rows == 2


@pytest.mark.parametrize("dtype", [pa.int64(), pa.float64()])
def test_a_null_that_is_a_number_is_that_number(dtype):
    """An item without statistics was shown 0 times, not as often as the average item."""
    rule = learned("number", [None, 3, None, 3], dtype, pieces=3, null="0", transform="log")
    assert rule.names == ("x",) and (rule.mean, rule.deviation) == pytest.approx((math.log(2), math.log(2)))
    np.testing.assert_allclose(numbers_of(rule, [None, 0, 1, 3], dtype), [[-1], [-1], [0], [1]], atol=1e-6)
    never = learned("number", [1, 3], dtype, null="0", transform="standard")
    assert numbers_of(never, [None, 3], dtype) == [[-1.0], [1.0]]  # as the least that training saw


def test_a_timestamp_that_is_null_is_as_old_as_its_tag_says():
    time_us = np.full(2, NOW_US)
    rule = learned("timestamp", [NOW_US - 3_000_000, None], pa.int64(), time_us, null="0")
    assert rule.names == ("age of x",) and rule.mean == pytest.approx(math.log(2))
    found = numbers_of(rule, [NOW_US - 3_000_000, None], pa.int64(), time_us)
    np.testing.assert_allclose(found, [[1], [-1]], rtol=1e-6)


def test_an_item_that_was_never_shown_has_counts_of_zero_and_is_new():
    """What our views say of an item that has no row yet."""
    views = (user_profile, item_profile, item_stats, query_stats)
    features = {one.name: one for one in signature_of(ctr_v1, views).features}
    counts = [f"{what}_{window}" for window in ("7d", "28d", "all") for what in ("shown", "positive")]
    for name in (*counts, "first_seen_us"):
        one, time_us = learner(features[name]), np.full(2, NOW_US)
        known = pa.array([9 if name in counts else NOW_US - 9_000_000, None], pa.int64())
        one.see(known, time_us)
        rule = one.learned()
        assert len(rule.names) == 1, "no indicator: what is behind it was learned from few"
        zero = pa.array([0 if name in counts else NOW_US, None], pa.int64())
        same = rule.numbers(zero, time_us)
        assert same[0] == same[1] < rule.numbers(known, time_us)[0]


def test_borders_of_many_values_are_those_of_every_kth(monkeypatch):
    values = np.random.default_rng(0).normal(size=20_000)
    monkeypatch.setattr(numbers, "SAMPLE", 1000)
    rule = learned("number", values.tolist(), pa.float64(), pieces=37, transform="buckets", buckets="8")
    expected = np.quantile(values[::32], np.arange(1, 8) / 8, method="inverted_cdf")
    assert rule.borders == tuple(expected)


def test_a_timestamp_is_its_age_at_the_request():
    hour = 3_600_000_000
    time_us = np.array([NOW_US, NOW_US + hour, NOW_US, NOW_US])
    values = [NOW_US - hour, NOW_US, NOW_US + hour, None]
    rule = learned("timestamp", values, pa.int64(), time_us, pieces=2)
    logs = np.array([math.log(3601), math.log(3601), 0.0])
    scale = pytest.approx(logs.mean()), pytest.approx(logs.std())
    assert rule == Age("x", *scale, True, least=0.0, most=math.log(3601))
    assert rule.names == ("age of x", "no x")
    expected = [*[[(one - logs.mean()) / logs.std(), 0] for one in logs], [0, 1]]
    np.testing.assert_allclose(numbers_of(rule, values, pa.int64(), time_us), expected, rtol=1e-5)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_are_read_in_any_unit(unit):
    rule, second = Age("x", 0.0, 1.0), pa.scalar(NOW_US - 9_000_000, pa.timestamp("us", "UTC"))
    column = pa.array([second.as_py()], pa.timestamp(unit, "UTC"))
    assert rule.numbers(column, np.array([NOW_US]))[0, 0] == pytest.approx(math.log(10))


def test_a_boolean_is_one_or_zero():
    rule = learned("boolean", [True, False], pa.bool_())
    assert numbers_of(rule, [True, False, None], pa.bool_()) == [[1.0], [0.0], [0.0]]
    rule = learned("boolean", [True, None], pa.bool_(), pieces=2)
    assert numbers_of(rule, [True, False, None], pa.bool_()) == [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]


VECTOR = pa.list_(pa.float32())


def test_a_vector_is_its_components_in_units_of_their_usual_size():
    rule = learned("vector", [[3.0, 0.0], [0.0, 1.0]], VECTOR, pieces=2)
    size = math.sqrt(10 / 4)
    assert rule == Vector("x", 2, pytest.approx(size)) and rule.names == ("x[0]", "x[1]")
    found = numbers_of(rule, [[1.0, -2.0], None, [1e6, 0.0]], VECTOR)
    np.testing.assert_allclose(found, [[1 / size, -2 / size], [0, 0], [5, 0]], rtol=1e-6)
    rule = learned("vector", [None, [3.0, 4.0], None], VECTOR, pieces=3, project="7")
    assert rule.absent and rule.project == 7 and rule.scale == pytest.approx(math.sqrt(25 / 2))
    assert numbers_of(rule, [None, [0.0, 0.0]], VECTOR) == [[0, 0, 1], [0, 0, 0]]
    assert learned("vector", [None], VECTOR).names == ()


def test_vectors_of_another_width_or_with_holes_are_refused():
    with pytest.raises(DataError, match=r"width 2, found 1 of 3 of another \(rows \[2\], widths \[3\]\)"):
        learned("vector", [[1.0, 2.0], None, [1.0, 2.0, 3.0]], VECTOR)
    with pytest.raises(DataError, match="column x: 2 components are null or NaN"):
        learned("vector", [[1.0, None], [math.nan, 1.0]], VECTOR)


def test_a_kind_without_a_rule_is_refused():
    with pytest.raises(DataError, match="feature x: there is no rule for the kind 'colour'"):
        learner(feature("colour", pa.string()))
