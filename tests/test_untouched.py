"""What items that nobody had acted on bring, by the truth, against a count of every place."""

import numpy as np
import pytest

from dataset.marketplace.browsing import EXAMINATION
from dataset.marketplace.simulate import simulate
from dataset.tables import Dataset, write_dataset
from evaluation.earlier import NO_QUERY, Moments
from evaluation.truth import Judge
from evaluation.untouched import untouched_measures


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return Judge.of(
        Dataset.open(write_dataset(tmp_path_factory.mktemp("shop") / "dataset", *simulate(2_500, 5)))
    )


@pytest.fixture(scope="module")
def asked(judge):
    users = np.arange(1, 1 + len(judge.world.shoppers.age))
    last = judge.world.requests.time_us.max()
    return Moments(users, np.full(len(users), last), np.full(len(users), NO_QUERY))


def measured(judge, asked, lists, untouched):
    found = untouched_measures(judge, asked, lists, np.sort(judge.items), untouched, "test", 0)
    return {one.name.removeprefix("truth/"): one for one in found}


def slow(judge, asked, ranked, untouched):
    """Clicks by item and by place looked at, one place at a time: of the untouched over those of all others."""
    clicks, looks = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    for row in range(len(asked)):
        alone = asked.take(np.array([row]))
        for place, item in enumerate(ranked[row, :10].tolist()):
            if item < 0:
                continue
            own = item in set(untouched.tolist())
            chance = 1 / (1 + np.exp(-float(judge.log_odds(alone, np.array([[item]]))[0, 0])))
            clicks[own] += chance * EXAMINATION[place]
            looks[own] += EXAMINATION[place]
    few, others = len(untouched), len(judge.items) - len(untouched)
    by_item = (clicks[True] / few) / (clicks[False] / others)
    return by_item, (clicks[True] / looks[True]) / (clicks[False] / looks[False])


def test_the_ratios_are_those_of_a_count_of_every_place(judge, asked):
    draw = np.random.default_rng(1)
    ranked = np.stack([draw.permutation(judge.items)[:14] for _ in range(len(asked))])
    ranked[draw.random(ranked.shape) < 0.1] = -1
    untouched = draw.permutation(judge.items)[: len(judge.items) // 4]
    found = measured(judge, asked, {"drawn": ranked}, untouched)
    by_item, by_place = slow(judge, asked, ranked, untouched)
    assert found["drawn/untouched_by_item"].value == pytest.approx(by_item, rel=1e-5)
    assert found["drawn/untouched_by_place"].value == pytest.approx(by_place, rel=1e-5)
    for one in found.values():
        assert one.low < one.value < one.high and one.n == len(asked)


def test_who_knows_tastes_finds_any_item_alike_and_who_asks_for_sales_none(judge, asked):
    """Planted: which items are untouched is drawn, so that only a method can tell them from others."""
    draw = np.random.default_rng(2)
    items = np.sort(judge.items)
    untouched = np.sort(draw.permutation(items)[: len(items) // 3])
    known = judge.log_odds(asked, np.broadcast_to(items, (len(asked), len(items)))).astype(np.float32)
    new = np.isin(items, untouched)
    scores = {
        "oracle": known,
        "sales": np.where(new, -np.inf, known),
        "given_away": np.where(new, 50 - known, known),
    }
    lists = {name: items[np.argsort(-one, axis=1)[:, :10]] for name, one in scores.items()}
    found = measured(judge, asked, lists, untouched)
    assert found["oracle/untouched_by_place"].value == pytest.approx(1, abs=0.1)
    assert 0.6 < found["oracle/untouched_by_item"].value < 1.6
    assert found["sales/untouched_by_item"].value == 0 and "sales/untouched_by_place" not in found
    assert "given_away/untouched_by_item" not in found, "nothing else is shown, to compare with"


def test_where_all_or_none_are_untouched_there_is_nothing_to_compare(judge, asked):
    lists = {"any": np.broadcast_to(judge.items[:10], (len(asked), 10))}
    assert measured(judge, asked, lists, judge.items) == measured(judge, asked, lists, judge.items[:0]) == {}
