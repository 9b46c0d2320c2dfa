"""The rules that a profile learns from saved rows, and what they refuse.

Run: pytest tests/test_profile.py
"""

import numpy as np
import pandas as pd
import pytest

from moonstore.profile import UsualProfiler

SAVED = pd.DataFrame(
    {
        "price": [1.0, 2.0, None, 4.0],
        "brand": ["a", "b", "b", None],
        "tags": [["x"], ["x", "y"], ["z"], ["z"]],
        "sold": [True, True, True, True],
    }
)
COLUMNS = list(SAVED.columns)


def found(rows, share=0.0):
    errors = UsualProfiler(COLUMNS, share).analyze_dataset(SAVED).validate(rows).errors
    return {(error.column_name, error.check_name) for error in errors}


def test_the_saved_rows_pass_and_so_does_any_part_of_them():
    report = UsualProfiler(COLUMNS, 0).analyze_dataset(SAVED).validate(SAVED)
    assert report.is_success and str(report) == ""
    assert found(SAVED.iloc[[0, 1]]) == set()


@pytest.mark.parametrize(
    ("column", "value", "check"),
    [
        ("price", 4.5, "usual"),
        ("price", 0.5, "usual"),
        ("price", "4", "usual"),
        ("price", None, "nulls"),
        ("brand", "c", "usual"),
        ("brand", 1.0, "usual"),
        ("brand", ["a"], "usual"),
        ("tags", ["x", "y", "z"], "usual"),
        ("sold", False, "usual"),
    ],
)
def test_a_value_never_seen_is_found(column, value, check):
    rows = SAVED.drop(columns=column).assign(**{column: [value] * 4})
    assert found(rows) == {(column, check)}


def test_a_share_of_the_rows_may_differ():
    rows = SAVED.assign(price=[1.0, 2.0, 9.0, 4.0])
    assert found(rows, share=0.25) == set()
    assert found(rows, share=0.24) == {("price", "usual")}


def test_a_column_that_is_gone_is_found_and_the_report_says_so():
    report = UsualProfiler(["price"], 0).analyze_dataset(SAVED).validate(SAVED[["brand"]])
    assert str(report) == "price: expected the column, found none"


def test_the_report_counts_what_it_found():
    rows = SAVED.assign(price=[9.0, np.nan, np.nan, 4.0])
    report = UsualProfiler(COLUMNS, 0).analyze_dataset(SAVED).validate(rows)
    nulls, usual = report.errors
    assert (nulls.missing_count, nulls.missing_percent) == (2, 50.0)
    assert (usual.unexpected_count, usual.unexpected_percent, usual.observed_value) == (1, 50.0, 9.0)
    assert str(report).splitlines() == [
        "price: expected 25.0% nulls, as in the saved rows, found 2 in 4",
        "price: expected 1 to 4, found 1 others in 2, such as 9",
    ]


@pytest.mark.parametrize("rows", [SAVED.iloc[:0], SAVED[["brand"]]])
def test_nothing_is_learned_from_no_rows_or_from_other_columns(rows):
    with pytest.raises(ValueError, match="expected saved rows with the features price, got"):
        UsualProfiler(["price"]).analyze_dataset(rows)


def test_the_registry_refuses_the_reference_and_says_what_to_do():
    with pytest.raises(TypeError, match=r"as_reference\(name, UsualProfiler\(features\)\)"):
        UsualProfiler(["price"]).to_proto()
