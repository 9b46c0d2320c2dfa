"""The simulated shop judges any list by its own probabilities, whatever was logged.

Run: pytest tests/test_truth.py
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dataset.contracts import DataError
from dataset.marketplace import browsing
from dataset.marketplace.browsing import IMAGE_QUERY, TEXT_QUERY
from dataset.marketplace.catalogue import FACETS, WIDTH, WORDS
from dataset.marketplace.simulate import simulate
from dataset.tables import Dataset, write_dataset
from evaluation.baselines import top_k
from evaluation.earlier import NO_QUERY, Moments
from evaluation.truth import Judge, methods_of, resampled_means

EVENTS, SEED, HOUR_US = 2_500, 5, 3_600_000_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.open(write_dataset(tmp_path_factory.mktemp("shop") / "dataset", *simulate(EVENTS, SEED)))


@pytest.fixture(scope="module")
def judge(dataset):
    return Judge.of(dataset)


def logged(judge):
    """Every logged request as a moment, and its slate of item ids."""
    requests, slates = judge.world.requests, judge.world.slates
    asked = Moments(requests.user + 1, requests.time_us, judge.query_of_request)
    return asked, np.where(slates.item < 0, -1, judge.items[slates.item])


def test_logged_slates_are_judged_as_the_truth_beside_the_dataset_says(dataset, judge):
    asked, slates = logged(judge)
    clicks = judge.judge(asked, slates).clicks
    truth = dict(zip(*(dataset.truth[name].to_pylist() for name in dataset.truth.column_names), strict=True))
    impressions = dataset.events.filter(pc.equal(dataset.events["type"], "impression"))
    total: dict[tuple[int, int], float] = {}
    for row in impressions.select(["event_id", "user_id", "request_id"]).to_pylist():
        key = row["user_id"], row["request_id"]
        total[key] = total.get(key, 0) + truth[row["event_id"]]
    order = np.argsort(asked.time_us, kind="stable")  # requests are numbered by time
    expected = [total[int(asked.user_id[row]), number] for number, row in enumerate(order, start=1)]
    assert clicks[order] == pytest.approx(expected, rel=1e-5)
    assert (judge.query_of_request != NO_QUERY).sum() > 20


def by_hand(judge, user_id, time_us, asking, slate):
    """Clicks, purchases and revenue of one slate, event by event and facet by facet."""
    world = judge.world
    catalogue, requests, slates = world.catalogue, world.requests, world.slates
    names, row_of = list(FACETS), {item: row for row, item in enumerate(catalogue.item_id.tolist())}
    start = dict(zip(names, np.cumsum([0, *map(len, FACETS.values())]).tolist(), strict=False))
    shift, last = np.zeros(WIDTH), None
    for request in sorted(np.flatnonzero(requests.user == user_id - 1), key=lambda r: requests.time_us[r]):
        now = requests.time_us[request]
        if now >= time_us:
            break
        if last is not None:
            shift *= np.exp(-(now - last) / (3 * HOUR_US))
        last = now
        for place in np.flatnonzero(slates.clicked[request]):
            item = slates.item[request, place]
            for number, name in enumerate(names):
                shift[start[name] + catalogue.facet[item, number]] += browsing.CLICK_SHIFT[name]
            shift[WORDS:] += browsing.CLICK_TRAIT_SHIFT * catalogue.trait[item]
        shift = np.clip(shift, -1, 1)
    if last is not None:
        shift *= np.exp(-(time_us - last) / (3 * HOUR_US))
    interest = world.shoppers.interest[user_id - 1] + shift
    if asking is not None:
        wanted, kind = requests.wanted[asking], requests.query_kind[asking]
        named = browsing.PHRASES[requests.phrase[asking]][0] if kind == TEXT_QUERY else browsing.PICTURE_ASKS
        for name in named:
            interest[start[name] + catalogue.facet[wanted, names.index(name)]] += browsing.ASKED[name]
        if kind == IMAGE_QUERY:
            interest[WORDS:] += np.array(browsing.ASKED_TRAIT) * catalogue.trait[wanted]
    clicks = purchases = revenue = 0.0
    for place, item_id in enumerate(slate[:10]):
        if item_id < 0:
            continue
        row = row_of[int(item_id)]
        liking = sum(interest[start[name] + catalogue.facet[row, n]] for n, name in enumerate(names))
        liking += interest[WORDS:] @ catalogue.trait[row] + catalogue.quality[row] + slates.intercept
        liking -= browsing.SEARCH_RESTRAINT if asking is not None else 0
        click = 1 / (1 + np.exp(-liking)) * (1 + place) ** -0.35
        bought = click / (1 + np.exp(-(0.7 * liking - 0.8))) / (1 + np.exp(-(0.7 * liking + 0.2)))
        clicks, purchases = clicks + click, purchases + bought
        revenue += bought * catalogue.price[row]
    return clicks, purchases, revenue


def test_any_list_for_any_user_time_and_query_is_judged_as_by_hand(judge):
    rng, world = np.random.default_rng(0), judge.world
    asking = np.flatnonzero(judge.query_of_request != NO_QUERY)
    kinds = set()
    for number in range(60):
        near = rng.integers(len(world.requests.user))  # soon after a request, when recent clicks count
        user_id = int(world.requests.user[near]) + 1
        time_us = int(world.requests.time_us[near] + rng.integers(1, 4 * HOUR_US))
        request = int(rng.choice(asking)) if number % 2 else None
        query_id = NO_QUERY if request is None else int(judge.query_of_request[request])
        kinds.add(None if request is None else int(world.requests.query_kind[request]))
        slate = rng.permutation(judge.items)[:12]
        slate[rng.random(12) < 0.1] = -1
        found = judge.judge(Moments(*(np.array([one]) for one in (user_id, time_us, query_id))), slate[None])
        expected = by_hand(judge, user_id, time_us, request, slate)
        assert (found.clicks[0], found.purchases[0], found.revenue[0]) == pytest.approx(expected, rel=1e-4)
    assert kinds == {None, TEXT_QUERY, IMAGE_QUERY}


def test_an_empty_slate_brings_nothing_and_the_eleventh_place_is_not_shown(judge):
    asked = Moments(*(np.array([one]) for one in (3, judge.world.requests.time_us.max(), NO_QUERY)))
    assert judge.judge(asked, np.full((1, 10), -1)).clicks[0] == 0
    ten = judge.items[None, :10]
    assert judge.judge(asked, judge.items[None, :30]).clicks == judge.judge(asked, ten).clicks


def test_nobody_beats_the_oracle(judge):
    rng, users = np.random.default_rng(1), np.arange(1, 31)
    asked = Moments(users, np.full(30, judge.world.requests.time_us.max()), np.full(30, NO_QUERY))
    items = np.sort(judge.items)
    odds = judge.log_odds(asked, np.broadcast_to(items, (30, len(items))))
    best = judge.judge(asked, top_k(odds.astype(np.float32), items, 10)).clicks
    for _ in range(50):
        others = np.stack([rng.permutation(items)[:10] for _ in users])
        assert (judge.judge(asked, others).clicks < best).all()
    top = top_k(odds.astype(np.float32), items, 10)
    assert (judge.judge(asked, top[:, ::-1]).clicks < best).all()


def test_the_shops_own_policy_brings_what_its_logged_slates_brought(judge):
    asked, slates = logged(judge)
    log, redrawn = judge.judge(asked, slates), judge.shop(asked, seed=3)
    for name in ("clicks", "purchases"):
        ours, theirs = getattr(redrawn, name), getattr(log, name)
        assert ours.mean() == pytest.approx(theirs.mean(), abs=4 * theirs.std() / np.sqrt(len(theirs)))


def test_what_is_not_of_this_world_is_refused(judge):
    def ask(user=1, query=NO_QUERY, item=None):
        moment = Moments(np.array([user]), np.array([judge.world.requests.time_us[0]]), np.array([query]))
        judge.judge(moment, np.array([[judge.items[0] if item is None else item]]))

    ask()
    for wrong in ({"user": 0}, {"user": 10**6}, {"query": 10**9}, {"item": 1}):
        with pytest.raises(KeyError, match=str([*wrong.values()][0])):
            ask(**wrong)


def test_a_dataset_of_another_world_is_refused(dataset, tmp_path):
    tables, config = simulate(EVENTS, SEED)
    other = write_dataset(tmp_path / "a", tables, {**config, "seed": SEED + 1})
    with pytest.raises(
        DataError, match="found another: its truth is not known here. Run 'moon dataset' again"
    ):
        Judge.of(Dataset.open(other))
    chance = pc.add(tables.truth["click_probability"], pa.scalar(0.001, pa.float32()))
    changed = replace(tables, truth=tables.truth.set_column(1, "click_probability", chance))
    with pytest.raises(DataError, match="found another"):
        Judge.of(Dataset.open(write_dataset(tmp_path / "b", changed, config)))
    with pytest.raises(DataError, match="expected a simulated dataset, whose truth is known"):
        Judge.of(Dataset.open(write_dataset(tmp_path / "c", replace(tables, truth=None), config)))


def test_intervals_draw_users_not_requests_and_the_same_ones_for_every_method():
    rng = np.random.default_rng(2)
    of_user = rng.normal(size=400)
    user_id = np.repeat(np.arange(400), 5)
    values = np.stack([of_user[user_id], of_user[user_id] + 1], axis=1)
    means = resampled_means(values, user_id, seed=0)
    assert means.mean(axis=0) == pytest.approx(values.mean(axis=0), abs=0.01)
    assert means.std(axis=0) == pytest.approx(
        of_user.std() / np.sqrt(400), rel=0.1
    )  # five times as many rows
    assert means[:, 1] - means[:, 0] == pytest.approx(1)  # paired: a constant lead is certain


def test_lists_are_named_as_methods():
    lists = {
        name: np.zeros((1, 10)) for name in ("moon", "ranker_id_only", "without_popular", "source_popular")
    }
    assert set(methods_of(lists)) == {"served", "served_id_only", "source_popular"}
