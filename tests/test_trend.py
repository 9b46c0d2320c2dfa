"""What is popular now: a like counts the less the older it is, as fast as the log itself says."""

import numpy as np
import pytest
from conftest import START
from test_cooccurrence import log_of

from retrieval.cooccurrence import Cooccurrence, build_cooccurrence
from retrieval.counting import LEAST
from retrieval.index import ItemIndex
from retrieval.likes import FLOOR, Likes
from retrieval.requests import Request, Requests, history_of
from retrieval.sources import PopularSource
from retrieval.trend import fit_half_life

HOUR = 3_600
SECOND_US = 10**6


def world(users, now_share, seed=0):
    """Users take three items each in a hundred days; a share of them one of the ten that come every twenty days."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(users):
        for moment in np.sort(rng.uniform(0, 100 * 24 * HOUR, 3)).astype(int):
            recent = 100 + 10 * int(moment // (20 * 24 * HOUR)) + int(rng.integers(10))
            item = recent if rng.random() < now_share else int(rng.zipf(1.5)) % 100
            rows.append((user, item, "click", int(moment)))
    return rows


def test_a_like_is_halved_with_every_half_life():
    likes = Likes.of(
        log_of([(1, 7, "click", 0), (2, 7, "click", 50), (3, 8, "click", 100), (1, 9, "click", 100)])
    )
    assert likes.trend(None).tolist() == [2, 1, 1]
    expected = [2.0**-2 + 2.0**-1 + 2 * FLOOR, 1 + FLOOR, 1 + FLOOR]
    np.testing.assert_allclose(likes.trend(50 * SECOND_US), expected)
    assert likes.trend(0.01 * SECOND_US)[0] == 2 * FLOOR  # of long ago, and still in an order
    assert not len(Likes.of(log_of([])).trend(50.0))


def test_where_other_items_are_popular_every_month_a_like_ages_in_days():
    half_life, reached = fit_half_life(log_of(world(4_000, now_share=0.6)), seed=0)
    assert half_life is not None and half_life < 20 * 24 * HOUR * SECOND_US
    assert reached["fitted"] > reached["plain"]


def test_what_is_always_popular_does_not_age():
    half_life, reached = fit_half_life(log_of(world(4_000, now_share=0.0)), seed=0)
    assert half_life is None and reached["fitted"] == reached["plain"] > 0


@pytest.mark.parametrize("rows", [[], world(LEAST // 4, 0.6), [(u, u % 9, "click", 5) for u in range(200)]])
def test_a_log_that_is_too_small_or_of_one_moment_says_nothing(rows):
    assert fit_half_life(log_of(rows), seed=0) == (None, {})


def test_what_a_user_liked_before_is_left_out_of_the_measure():
    """Those who liked 1 to 9 take 0, which the list has in tenth place, and which is the first of the new to them."""
    rows = [(u, i, "click", i) for u in range(60) for i in range(1, 10)]
    rows += [(u, 0, "click", 10) for u in range(60, 75)] + [(u, 0, "click", 100) for u in range(60)]
    late = [(u, 0, "click", 100) for u in range(100, 300)]
    _, reached = fit_half_life(log_of(rows + late), seed=0)
    strangers = 1 / np.log2(2 + 9)
    assert reached["plain"] == pytest.approx((60 * 1 + 200 * strangers) / 260)


def test_the_source_orders_by_what_is_popular_now_and_is_rare_by_all_users(tmp_path):
    rows = [(u, 1, "click", u) for u in range(8)] + [(20, 2, "click", 1_000), (21, 2, "click", 1_001)]
    log = log_of([*rows, (30, 3, "click", 0)])
    graph = Cooccurrence.open(build_cooccurrence(log, tmp_path / "c", {}, half_life_us=10.0 * SECOND_US))
    assert (
        graph.popularity.tolist() == [8, 2, 1] and graph.artifact.config["half_life_us"] == 10.0 * SECOND_US
    )
    index = ItemIndex.build(np.array([1, 2, 3]), np.eye(3, dtype=np.float32))
    source = PopularSource(graph.item_ids, graph.popularity, index, graph.trend)
    request = Request(1, history_of([]), START)
    assert source.retrieve(request, 5)[0].tolist() == [2, 1, 3]
    scores = source.score(Requests.of([request]), np.array([2, 9]), np.array([0, 2]))
    np.testing.assert_allclose(scores, [np.log1p(graph.trend[1]), 0], rtol=1e-6)
    assert source.rare(np.array([1, 2, 3, 9])).tolist() == [False, False, True, True]
