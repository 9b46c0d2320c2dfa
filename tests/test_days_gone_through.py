"""Which logs are gone through day after day, and how much of a long one."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from dataset.contracts import TIME
from dataset.days import DAY_US
from evaluation import daily as module
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


def test_of_a_long_log_the_latest_days_are_gone_through_and_at_most_so_many_requests(monkeypatch):
    draw = np.random.default_rng(0)
    day = np.sort(draw.choice(np.append(np.arange(0, 40, 3), [90, 91]), 400))
    time_us, days = day * DAY_US + 5, np.unique(day)
    assert Span().of(time_us, 0).tolist() == Span(requests=400).of(time_us, 0).tolist() == list(range(400))
    monkeypatch.setattr(module, "LATEST", 4)
    inside = np.isin(day, days[-4:])
    assert Span().of(time_us, 0).tolist() == np.flatnonzero(inside).tolist()
    assert Span(requests=400).of(time_us, 0).tolist() == list(range(400)), (
        "who asks for many asks for all days"
    )
    monkeypatch.setattr(module, "MOST", 20)
    for span, from_these in ((Span(), inside), (Span(requests=100), np.ones(400, bool))):
        often, most = np.zeros(400), span.requests or 20
        for seed in range(300):
            rows = span.of(time_us, seed)
            assert len(rows) == most and (np.diff(rows) > 0).all()
            often[rows] += 1
        assert (often > 0).tolist() == from_these.tolist()
        assert often[from_these].std() < 0.3 * often[from_these].mean(), "evenly"
    assert Span().of(time_us, 1).tolist() == Span().of(time_us, 1).tolist()


def test_some_requests_of_a_table_are_all_their_rows():
    request = [7, 7, 3, 9, 9, 9]
    table = pa.table({"request_id": request, "place": range(6)})
    assert of_requests(table, np.array([0, 2]))["place"].to_pylist() == [0, 1, 3, 4, 5]
    assert (
        len(of_requests(table, np.array([], np.int64)))
        == len(of_requests(table.slice(0, 0), np.arange(3)))
        == 0
    )
