"""Which logs are gone through day after day, and how much of a long one."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from dataset.contracts import TIME
from dataset.days import DAY_US
from evaluation.daily import Span, daily, why_not
from feature_repo.frames.logged import of_requests
from ranker.recipes import attention
from run.sizes import size


def split_of(shows=True, by="time", ranks=True, days=(5, 5, 6)):
    time = pa.array([day * DAY_US for day in days], pa.int64()).cast(TIME)
    return SimpleNamespace(shows=shows, by=by, ranks=ranks, ranking=pa.table({"time": time}))


@pytest.mark.parametrize(
    "given, why",
    [
        ({"shows": False}, "nothing says what was shown and not liked"),
        ({"by": "users"}, "the split is by users, not by time"),
        ({"ranks": False}, "nothing in the log says what users took"),
        ({"days": (5, 5)}, "the requests after what retrieval learned from are of one day"),
        ({"days": ()}, "the requests after what retrieval learned from are of one day"),
    ],
)
def test_a_log_that_cannot_be_gone_through_is_said_and_leaves_nothing(tmp_path, capsys, given, why):
    assert why_not(split_of()) == ""
    (tmp_path / "daily").mkdir()
    daily(tmp_path, None, split_of(**given), size("nano"), attention(), 0, Span())
    assert f"not day after day: {why}" in capsys.readouterr().err
    assert not (tmp_path / "daily").exists(), "of an earlier split"


def test_of_a_long_log_the_latest_days_are_gone_through_and_at_most_so_many_requests():
    draw = np.random.default_rng(0)
    day = np.sort(draw.choice(np.append(np.arange(0, 40, 3), [90, 91]), 400))
    time_us = day * DAY_US + 5
    days = np.unique(day)
    assert Span(days=4).of(time_us, 0).tolist() == [n for n, one in enumerate(day) if one in days[-4:]]
    assert Span(days=99).of(time_us, 0).tolist() == Span().of(time_us, 0).tolist() == list(range(400))
    often = np.zeros(400)
    for seed in range(300):
        rows = Span(days=4, requests=20).of(time_us, seed)
        assert len(rows) == 20 == len(set(rows.tolist())) and (np.diff(rows) > 0).all()
        often[rows] += 1
    inside = np.isin(day, days[-4:])
    assert (often > 0).tolist() == inside.tolist() and often[inside].std() < 0.3 * often[inside].mean()
    assert Span(requests=20).of(time_us, 1).tolist() == Span(requests=20).of(time_us, 1).tolist()


def test_some_requests_of_a_table_are_all_their_rows():
    request = [7, 7, 3, 9, 9, 9]
    table = pa.table({"request_id": request, "place": range(6)})
    assert of_requests(table, np.array([0, 2]))["place"].to_pylist() == [0, 1, 3, 4, 5]
    assert (
        len(of_requests(table, np.array([], np.int64)))
        == len(of_requests(table.slice(0, 0), np.arange(3)))
        == 0
    )
