"""Random slates in a log say without bias what another list would have got.

Run: pytest tests/test_off_policy.py
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from dataset.marketplace.browsing import EXAMINATION
from dataset.split import RANKING, RETRIEVAL
from evaluation.off_policy import RandomSlates, estimates, off_policy_measures

ITEMS, SLATES = 14, 60_000


@pytest.fixture(scope="module")
def planted():
    """Random slates of ten of fourteen items, whose chances of a click when looked at are known."""
    rng = np.random.default_rng(0)
    liking = rng.uniform(0.05, 0.6, size=ITEMS)
    item_id = np.argsort(rng.random((SLATES, ITEMS)), axis=1)[:, :10]
    clicked = rng.random(item_id.shape) < liking[item_id] * EXAMINATION
    propensity = np.full(item_id.shape, 10 / ITEMS, np.float32)
    return liking, RandomSlates(RETRIEVAL.empty_table(), item_id, clicked, propensity)


@pytest.mark.parametrize("items", [range(10), range(13, 3, -1), [5, 2, 11, -1, -1, -1, -1, -1, -1, -1]])
def test_both_estimates_are_the_truth_up_to_noise(planted, items):
    liking, slates = planted
    listed = np.array(items)
    true = (np.where(listed >= 0, liking[listed], 0) * EXAMINATION).sum()
    gain, weight, whole = estimates(np.tile(listed, (SLATES, 1)), slates)
    assert gain.mean() == pytest.approx(true, abs=4 * gain.std() / np.sqrt(SLATES))
    expected = EXAMINATION[listed >= 0].sum() if (listed < 0).any() else whole
    assert weight.mean() == pytest.approx(expected, rel=0.01)
    if (listed >= 0).all():
        assert whole * gain.mean() / weight.mean() == pytest.approx(true, rel=0.02)


def test_one_click_counts_by_hand():
    item_id = np.array([[7, 8, 9, *[-1] * 7]])
    clicked = np.zeros((1, 10), dtype=bool)
    clicked[0, 1] = True
    propensity = np.full((1, 10), 0.5, np.float32)
    slates = RandomSlates(RETRIEVAL.empty_table(), item_id, clicked, propensity)
    gain, weight, _ = estimates(np.array([[3, 4, 8, 7, *range(20, 26)]]), slates)
    second, third, fourth = (place**-0.35 for place in (2, 3, 4))
    assert gain == pytest.approx([third / second / 0.5])
    assert weight == pytest.approx([(third + fourth) / 0.5])
    nothing = estimates(np.full((1, 10), -1), slates)
    assert nothing[0] == nothing[1] == 0


def test_only_random_slates_of_the_test_are_read():
    def row(request, user, item, position, label, part, event):
        values = (request, user, 1_000_000 * request, None, item, position, float(label), part, event)
        return dict(zip(RANKING.names, values, strict=True))

    rows = [
        row(1, 5, 70, 0, 1, "train", 1),
        row(2, 5, 71, 0, 0, "test", 2),  # not drawn at random
        row(3, 6, 73, 1, 1, "test", 4),
        row(3, 6, 72, 0, 0, "test", 3),
    ]
    chance = pa.array([0.1, 0.2, 0.4], pa.float32())
    log = SimpleNamespace(propensities=pa.table({"event_id": [1, 3, 4], "propensity": chance}))
    split = SimpleNamespace(ranking=pa.Table.from_pylist(rows, schema=RANKING))
    found = RandomSlates.of(log, split)
    assert found.requests["user_id"].to_pylist() == [6]
    assert found.requests["request_id"].to_pylist() == [-3]  # no number of a retrieval request
    assert found.requests["relevant"].to_pylist() == [[72, 73]]
    assert found.item_id[0, :3].tolist() == [72, 73, -1]
    assert found.clicked[0, :2].tolist() == [False, True]
    assert found.propensity[0, :3].tolist() == pytest.approx([0.2, 0.4, 1])
    assert RandomSlates.of(SimpleNamespace(propensities=None), split) is None


def test_estimates_stand_beside_the_truth_and_few_clicks_have_no_interval(planted):
    liking, slates = planted

    def judge(_, lists):
        return SimpleNamespace(clicks=(liking[lists] * EXAMINATION).sum(axis=1))

    users = pa.table(
        {"user_id": np.arange(SLATES) % 400, "time": pa.array([0] * SLATES, pa.timestamp("us", "UTC"))}
    )
    first = replace(slates, requests=users)
    lists = {
        "moon": np.tile(np.arange(10), (SLATES, 1)),
        "without_popular": np.tile(np.arange(10), (SLATES, 1)),
    }
    found = {one.name: one for one in off_policy_measures(SimpleNamespace(judge=judge), first, lists, seed=0)}
    assert set(found) == {"off_policy/served/truth", "off_policy/served/ips", "off_policy/served/snips"}
    true = found["off_policy/served/truth"].value
    for kind in ("ips", "snips"):
        one = found[f"off_policy/served/{kind}"]
        assert one.low < true < one.high and one.high - one.low < 0.2 * true
    few = np.flatnonzero(slates.clicked.any(axis=1))[:4]
    some = RandomSlates(
        users.take(few), *(one[few] for one in (slates.item_id, slates.clicked, slates.propensity))
    )
    found = {
        one.name: one
        for one in off_policy_measures(SimpleNamespace(judge=judge), some, {"moon": lists["moon"][:4]}, 0)
    }
    assert found["off_policy/served/ips"].low is None and found["off_policy/served/truth"].low is not None
