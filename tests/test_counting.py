"""How pairs are counted is fitted to the log: the order where it says something, and else the usual way."""

from dataclasses import asdict

import numpy as np
import pytest
from conftest import START
from test_cooccurrence import log_of

from retrieval.cooccurrence import PLAIN, Cooccurrence, Counting, build_cooccurrence
from retrieval.counting import LEAST, TRIED, _some, _Withheld, fit_counting
from retrieval.likes import Likes
from retrieval.requests import Request, Requests, history_of
from retrieval.sources import CANDIDATES

ITEMS = 200


def chains(users, seed=0):
    """Users who take an item, the next one, and so on, with items of chance in between."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(users):
        first, length = int(rng.integers(ITEMS)), int(rng.integers(3, 9))
        for step in range(length):
            item = (first + step) % ITEMS if rng.random() < 0.7 else int(rng.integers(ITEMS))
            rows.append((user, item, "purchase", len(rows)))
    return rows


def groups(users, seed=0):
    """Users who take items of one of twenty groups, in an order that means nothing."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(users):
        own = 10 * int(rng.integers(20)) + rng.permutation(10)[: rng.integers(3, 7)]
        rows += [(user, int(item), "purchase", len(rows) + place) for place, item in enumerate(own)]
    return rows


def test_a_log_whose_order_says_what_is_next_is_counted_in_its_order():
    counting, reached = fit_counting(log_of(chains(1_500)), seed=0)
    assert counting.backward < 1 and counting.recency < 0.9
    assert reached["fitted"] > 1.2 * reached["plain"]


def test_a_log_whose_order_means_nothing_is_counted_both_ways():
    counting, reached = fit_counting(log_of(groups(1_500)), seed=0)
    assert (counting.backward, counting.distance) == (PLAIN.backward, PLAIN.distance)
    assert reached["fitted"] >= reached["plain"]


def test_a_few_users_change_nothing():
    assert fit_counting(log_of(chains(LEAST - 1)), seed=0) == (PLAIN, {})
    assert fit_counting(log_of([]), seed=0) == (PLAIN, {})
    once = [(user, user % 7, "purchase", user) for user in range(100)]
    assert fit_counting(log_of(once), seed=0) == (PLAIN, {})


def test_equal_seeds_fit_equally():
    log = log_of(chains(300))
    assert fit_counting(log, seed=3) == fit_counting(log, seed=3)


@pytest.mark.parametrize("counting", [PLAIN, Counting(0.7, 0.3, 0.5, 0.25, 0.6)])
def test_what_is_withheld_is_found_as_the_source_finds_it(tmp_path, counting):
    """The measure that chooses is the source's own list, from a log without what is withheld."""
    rows = chains(80)
    likes = Likes.of(log_of(rows))
    withheld = _Withheld.of(likes, seed=0)
    assert len(withheld.user) == 80
    order = {
        user: list(dict.fromkeys(i for u, i, *_ in reversed(rows) if u == user))[::-1] for user in range(80)
    }
    last = [order[user][-1] for user in range(80)]
    assert likes.items[withheld.last].tolist() == last
    kept = [(user, item, "purchase", n) for user, own in order.items() for n, item in enumerate(own[:-1])]
    graph = Cooccurrence.open(build_cooccurrence(log_of(kept), tmp_path / "c", {}, counting=counting))
    histories = Requests.of([Request(0, history_of(order[user][:-1]), START) for user in range(80)]).history
    expected = []
    for user, (ids, scores) in enumerate(graph.retrieve_batch(histories, ITEMS)):
        new = ~np.isin(ids, order[user][:-1])
        own = scores[new][ids[new] == last[user]]
        place = int((scores[new] > own[0] * (1 + 1e-5)).sum()) if len(own) else CANDIDATES
        expected.append(1 / np.log2(2 + place) if place < CANDIDATES else 0)
    assert sum(expected) > 1
    np.testing.assert_allclose(withheld.gains(counting), expected)


def test_every_number_of_a_counting_is_fitted_and_may_stay():
    assert set(TRIED) == set(asdict(PLAIN))
    assert all(asdict(PLAIN)[name] in values for name, values in TRIED.items())


def test_a_large_log_is_fitted_to_whole_users(monkeypatch):
    likes = Likes.of(log_of(chains(300)))
    monkeypatch.setattr("retrieval.counting.PAIRS", 2_000)
    some = _some(likes, seed=0)
    count, whole = np.diff(some.offsets), np.diff(likes.offsets)
    assert 1_500 < (count**2).sum() <= 2_000
    assert ((count == whole) | (count == 0)).all()
