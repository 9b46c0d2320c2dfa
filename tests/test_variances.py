"""The variances of tastes: planted ones, and those that an optimizer finds for the likelihood written out.

Run: pytest tests/test_variances.py
"""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from retrieval import variances
from retrieval.evidence import Evidence
from retrieval.variances import WIDEST, likeliest

ITEMS, USERS, SHOWN = 60, 150, 60
HOUR_US = 3_600_000_000


class Told(Evidence):
    """Evidence whose surprises are drawn from the model itself."""

    @property
    def surprise(self):
        return self.told


@pytest.fixture(scope="module")
def world():
    """Items with a brand and a colour, and users whose tastes in brands last and in colours fade."""
    rng = np.random.default_rng(0)
    brand, colour = rng.integers(0, 6, ITEMS), rng.integers(0, 4, ITEMS)

    def alike(left, right):
        one = np.zeros(
            (3, len(left), len(right)), np.float32
        )  # nobody has a taste in the third, which no items share
        for number, codes in enumerate((brand, colour)):
            one[number] = codes[left][:, None] == codes[right]
        return one

    users = []
    for _ in range(USERS):
        item, time_us = rng.integers(0, ITEMS, SHOWN), np.sort(rng.integers(0, 20, SHOWN)) * 6 * HOUR_US
        past = Told(item, time_us, np.zeros(SHOWN, bool), rng.uniform(0.4, 0.6, SHOWN).astype(np.float32))
        terms = alike(item, item)
        prior = 0.7 * (0.8 * terms[0] + 0.9 * terms[1] * past.faded + np.diag(1 / past.weight))
        drawn = rng.multivariate_normal(np.zeros(SHOWN), prior).astype(np.float32)
        object.__setattr__(past, "told", drawn)
        users.append(past)
    return users, alike


def test_planted_variances_are_found_and_none_where_there_are_none(world, monkeypatch):
    users, alike = world
    monkeypatch.setattr(variances, "STEPS", 80)
    (lasting, fading), noise = likeliest(users, alike, 3)
    assert noise == pytest.approx(0.7, rel=0.05)
    np.testing.assert_allclose(lasting[0], 0.8, rtol=0.25)
    np.testing.assert_allclose(fading[1], 0.9, rtol=0.35)
    assert fading[0] < 0.2 and lasting[1] < 0.2 and lasting[2] == fading[2] == 0
    monkeypatch.setattr(variances, "LEAST", 0.3)
    (lasting, fading), _ = likeliest(users, alike, 3)
    assert fading[0] == lasting[1] == 0 and lasting[0] > 0.3 < fading[1], "smaller ones are none"


def test_they_are_those_of_the_likelihood_written_out(world, monkeypatch):
    users, alike = world
    users = users[:12]
    monkeypatch.setattr(variances, "STEPS", 400)
    found, noise = likeliest(users, alike, 3)

    def loss(logarithm):
        *variance, error = np.exp(logarithm)
        total = sum(variance) / WIDEST  # a priori a variance is exponential
        for past in users:
            terms = alike(past.item, past.item)[:2]
            prior = np.tensordot(variance[:2], terms, 1) + np.tensordot(variance[2:], terms, 1) * past.faded
            prior = prior + error * np.diag(1 / past.weight)
            total -= multivariate_normal(np.zeros(SHOWN), prior).logpdf(past.surprise)
        return total

    *best, error = np.exp(minimize(loss, np.log([0.3] * 4 + [1.0]), method="L-BFGS-B").x)
    assert noise == pytest.approx(error, rel=0.01)
    np.testing.assert_allclose(found[:, :2].ravel(), np.array(best) / error, atol=0.01, rtol=0.02)


def test_nothing_is_known_without_users(world):
    assert not likeliest([], world[1], 3)[0].any()
