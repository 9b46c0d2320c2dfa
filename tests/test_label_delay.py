"""A click comes after what was shown: a label is what was known at the moment at which it is asked for."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from test_split import START, FakeDataset, events_table, items_table

from dataset.contracts import TIME
from dataset.log import microseconds
from dataset.protocols import NEVER
from dataset.requests import liked_us
from dataset.split import Split, split_dataset
from evaluation.daily import Log


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Slates of three, some items clicked at once, late, twice, or twice and late; ratings; slates without an id."""
    draw, rows = np.random.default_rng(0), []
    for request in range(120):
        user, minute = int(draw.integers(9)), 10 * request
        own = {} if request % 10 == 9 else {"request_id": request}
        for position, item in enumerate(draw.choice(30, 3, replace=False).tolist()):
            shown = {"user_id": user, "item_id": item, "minute": minute}
            rows.append({**shown, **own, "type": "impression", "position": position})
            for _ in range(int(draw.integers(0, 3))):
                late = int(draw.choice([30, 3_000, 30_000]))
                rows.append({**shown, **own, "type": "click", "minute": minute + 1, "lag": late})
        rows.append(
            {"user_id": user, "item_id": 30 + request % 5, "type": "rating", "minute": minute + 2,
             "value": float(draw.integers(1, 6)), "lag": int(draw.choice([5, 20_000]))}
        )  # fmt: skip
    data = FakeDataset(events_table(rows), items_table(dict.fromkeys(range(35), True)))
    return Split.open(split_dataset(data, tmp_path_factory.mktemp("split") / "split", by="time"))


def known(events, row):
    """The moments at which it became known that the event of a row was followed by a like, by a loop."""
    shown = next(one for one in events if one["event_id"] == row["event_id"])
    if shown["type"] == "rating":
        return [shown["available_time"]] if shown["value"] >= 4 else []
    if shown["request_id"] is None:
        return []
    same = ("request_id", "item_id")
    clicks = (one for one in events if one["type"] == "click" and all(one[n] == shown[n] for n in same))
    return [one["available_time"] for one in clicks]


def test_a_like_is_known_from_its_first_click_on(split):
    events, found = split.log.to_pylist(), liked_us(split.log, split.ranking)
    expected = [min(known(events, row), default=None) for row in split.ranking.to_pylist()]
    moments = pa.array(expected, TIME).cast(pa.int64()).fill_null(NEVER).to_numpy()
    assert np.array_equal(found, moments)
    late = found - microseconds(split.ranking["time"])
    assert {30, 3_000, 30_000} <= {one // 1_000_000 - 60 for one in late[found != NEVER].tolist()}


@pytest.mark.parametrize("minutes", [900, 1000, 1100, 1300, 2000])
def test_the_labels_of_a_moment_are_those_of_the_log_that_ends_there(split, minutes):
    """What became available later is deleted, and labels are made anew."""
    when = START + timedelta(minutes=minutes)
    before = split.log.filter(pc.less(split.log["available_time"], pa.scalar(when, TIME))).to_pylist()
    there = {event["event_id"] for event in before}
    rows = split.ranking.to_pylist()
    requests, first = np.unique([row["request_id"] for row in rows], return_index=True)
    offsets = np.append(np.sort(first), len(rows))
    label = split.ranking["label"].to_numpy()
    nothing = np.empty(0)
    log = Log(
        None, np.zeros(len(requests), np.int64), nothing, nothing, offsets, label,
        liked_us(split.log, split.ranking), nothing, 0,
    )  # fmt: skip
    found = log.known_at(
        np.arange(len(requests)), int(microseconds(pa.chunked_array([pa.array([when], TIME)]))[0])
    )
    expected = [float(row["event_id"] in there and bool(known(before, row))) for row in rows]
    assert found.tolist() == expected
    if minutes == 1000:
        assert 0 < found.sum() < label.sum()
