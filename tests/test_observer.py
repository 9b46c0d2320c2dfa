"""The ideal observer knows what histories say of tastes, as much and no more.

Run: pytest tests/test_observer.py
"""

from dataclasses import replace

import numpy as np
import pytest

from dataset.auc import auc
from dataset.marketplace.browsing import EXAMINATION, sigmoid
from dataset.marketplace.catalogue import WORDS, make_catalogue
from dataset.marketplace.rules import FIRST
from dataset.marketplace.shoppers import make_shoppers
from dataset.marketplace.simulate import play
from evaluation.earlier import NO_QUERY, Moments
from evaluation.observer import Observer, posterior, prior_root
from evaluation.truth import Judge


def test_the_prior_is_the_spread_of_tastes():
    interest = make_shoppers(40_000, np.random.default_rng(0)).interest
    root = prior_root(FIRST)
    assert root @ root.T == pytest.approx(np.cov(interest.T), abs=0.04)


def test_a_posterior_is_that_of_a_fine_grid():
    rng = np.random.default_rng(1)
    x = rng.normal(0, 0.6, size=(40, 1)).astype(np.float32)
    offset = rng.normal(-1, 0.5, size=40).astype(np.float32)
    examined = rng.choice(EXAMINATION, size=40).astype(np.float32)
    clicked = rng.random(40) < examined * sigmoid(offset + 1.2 * x[:, 0])
    grid = np.linspace(-6, 6, 4001)
    chance = examined[:, None] * sigmoid(offset[:, None] + x * grid)
    weight = np.exp(np.log(np.where(clicked[:, None], chance, 1 - chance)).sum(axis=0) - grid**2 / 2)
    weight /= weight.sum()
    mean, covariance = posterior(x, offset, examined, clicked)
    exact = weight @ grid
    assert mean[0] == pytest.approx(exact, abs=0.1)
    assert np.sqrt(covariance[0, 0]) == pytest.approx(np.sqrt(weight @ (grid - exact) ** 2), rel=0.15)


def test_much_behaviour_tells_the_taste():
    rng, catalogue = np.random.default_rng(2), make_catalogue(300, np.random.default_rng(2))
    root, properties = prior_root(FIRST), catalogue.properties()
    taste = make_shoppers(1, rng).interest[0]
    shown = rng.integers(0, len(catalogue), size=40_000)
    offset, examined = np.full(len(shown), -2.0, np.float32), np.ones(len(shown), np.float32)
    clicked = rng.random(len(shown)) < sigmoid(offset + properties[shown] @ taste)
    mean, _ = posterior(properties[shown] @ root, offset, examined, clicked)
    assert np.corrcoef(properties @ root @ mean, properties @ taste)[0, 1] > 0.99


@pytest.fixture(scope="module")
def judge():
    world = play(20_000, seed=4, rules=FIRST)
    return Judge(world, np.full(len(world.requests.user), NO_QUERY))


def test_without_history_it_expects_what_all_users_like(judge):
    requests = judge.world.requests
    items = judge.items[:40]
    asked = Moments(np.array([1]), np.array([requests.time_us.min()]), np.array([NO_QUERY]))
    found = Observer(judge).probabilities(asked, items)[0]
    catalogue = judge.world.catalogue
    rng = np.random.default_rng(5)
    tastes = rng.normal(size=(20_000, prior_root(FIRST).shape[1])) @ prior_root(FIRST).T
    logit = tastes @ catalogue.properties()[judge.rows(items)].T + judge.levels(
        asked, judge.rows(items)[None]
    )
    assert found == pytest.approx(sigmoid(logit).mean(axis=0), abs=0.015)


def test_it_is_between_chance_and_the_oracle_and_better_with_more_history(judge):
    world = judge.world
    rows = np.flatnonzero((world.requests.query_kind == 0) & (world.slates.item >= 0).all(axis=1))
    rows = rows[np.argsort(world.requests.time_us[rows])][-400:]
    asked = Moments(world.requests.user[rows] + 1, world.requests.time_us[rows], np.full(len(rows), NO_QUERY))
    slates = judge.items[world.slates.item[rows]]
    clicked = world.slates.clicked[rows].ravel().astype(float)
    late = Observer(judge).probabilities(asked, slates).ravel()
    first = replace(asked, time_us=np.full(len(rows), world.requests.time_us.min()))
    early = Observer(judge).probabilities(first, slates).ravel()
    true = sigmoid(judge.log_odds(asked, slates)).ravel()
    assert 0.5 < auc(clicked, early) < auc(clicked, late) - 0.03 < auc(clicked, true) - 0.08


def test_it_does_not_know_what_comes_later(judge):
    world = judge.world
    moment = int(np.median(world.requests.time_us))
    later = world.requests.time_us >= moment
    clicked = world.slates.clicked ^ (later[:, None] & (world.slates.item >= 0))
    other = Judge(replace(world, slates=replace(world.slates, clicked=clicked)), judge.query_of_request)
    users = np.unique(world.requests.user[later])[:20] + 1
    asked = Moments(users, np.full(len(users), moment), np.full(len(users), NO_QUERY))
    one, two = (Observer(each).probabilities(asked, judge.items[:50]) for each in (judge, other))
    assert np.array_equal(one, two)
    assert WORDS > 0 and not np.array_equal(one[0], one[1])
