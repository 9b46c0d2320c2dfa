"""The directions of a space in which users differ: planted tastes, and the likelihood written out.

Run: pytest tests/test_directions.py
"""

import warnings

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from retrieval import directions as module
from retrieval.directions import MOST, Slopes, directions

ITEMS, WIDTH, USERS, SHOWN = 300, 10, 120, 60


def world(covariance, seed=0):
    """Items in WIDTH numbers, and what users made of SHOWN of them: this covariance, and a taste in brands."""
    rng = np.random.default_rng(seed)
    width = len(covariance)
    rows = rng.normal(size=(ITEMS, width)).astype(np.float32)
    brand, users = rng.integers(0, 5, ITEMS), []
    for taste in rng.multivariate_normal(np.zeros(width), covariance, USERS):
        item = rng.integers(0, ITEMS, SHOWN)
        weight = rng.uniform(0.05, 0.2, SHOWN)
        prior = np.diag(1 / weight) + 2.0 * (brand[item][:, None] == brand[item])
        users.append((item, prior, rows[item] @ taste + rng.multivariate_normal(np.zeros(SHOWN), prior)))
    return rows, users


def slopes_of(covariance, seed=0):
    rows, users = world(covariance, seed)
    return Slopes.of(rows, ((item, prior.copy(), surprise) for item, prior, surprise in users))


@pytest.fixture(scope="module")
def plane():
    """The two directions that tastes are about, orthonormal, (WIDTH, 2)."""
    return np.linalg.qr(np.random.default_rng(7).normal(size=(WIDTH, 2)))[0]


def test_the_planted_directions_are_found_with_their_variances(plane):
    found = directions(slopes_of(plane @ np.diag([1.0, 0.3]) @ plane.T))
    assert found is not None and found.gain.mean() > 0.5 and len(found.gain) == USERS
    kernel = found.root @ found.root.T
    assert np.trace(plane.T @ kernel @ plane) / np.trace(kernel) > 0.85, "a fifth by chance"
    length, turn = np.linalg.eigh(kernel)
    assert abs(turn[:, -1] @ plane[:, 0]) > 0.9, "the direction in which users differ most"
    assert 0.5 < length[-1] < 1.3 and 0.08 < length[-2] < 0.5, "1 and .3, shrunken"
    assert found.root.shape[1] < MOST, "others are left out"


def test_held_out_users_say_how_many_numbers_are_looked_at(plane, monkeypatch):
    covariance = np.zeros((60, 60))
    covariance[:8, :8] = 0.15 * plane[:8] @ plane[:8].T
    slopes = slopes_of(covariance)
    found = directions(slopes)
    assert found is not None and not found.root[8:].any() and len(found.root) == 60
    monkeypatch.setattr(module, "WIDTHS", (60,))
    widest = directions(slopes)
    assert widest is None or widest.gain.mean() < found.gain.mean() - 0.01


def test_nothing_is_learned_where_nobody_has_a_taste_or_nobody_was_asked():
    assert directions(slopes_of(np.zeros((WIDTH, WIDTH)))) is None
    rows, users = world(np.eye(WIDTH))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert directions(Slopes.of(rows, users[:1])) is None and directions(Slopes.of(rows, [])) is None


def test_the_likelihood_is_that_of_the_surprises_written_out(plane):
    covariance = plane @ np.diag([1.0, 0.3]) @ plane.T
    rows, users = world(covariance)
    written = []
    for item, prior, surprise in users[:5]:
        nobody, somebody = (
            multivariate_normal(np.zeros(SHOWN), prior + own).logpdf(surprise)
            for own in (0, rows[item] @ covariance @ rows[item].T)
        )
        written.append(somebody - nobody)
    slopes = slopes_of(covariance).only(np.arange(USERS) < 5)
    root = plane * np.sqrt([1.0, 0.3])
    np.testing.assert_allclose(slopes.likelihood(root), written, rtol=1e-6)
    assert not slopes.likelihood(np.empty((WIDTH, 0))).any()


def test_the_likeliest_root_has_no_slope_and_a_penalty_takes_from_it(plane):
    slopes = slopes_of(plane @ plane.T)
    free, bound = (slopes.likeliest(penalty) for penalty in (1e-3, 100.0))
    assert slopes.likelihood(free).sum() > slopes.likelihood(bound).sum() > 0
    assert (bound**2).sum() < 0.9 * (free**2).sum()
    best, *others = (
        slopes.likelihood(scale * bound).sum() - 100 * (scale * bound**2 * scale).sum() / 2
        for scale in (1, 0.8, 0.95, 1.05, 1.2)
    )
    assert best > max(others), "of the likelihood less the penalty it is the largest"
    rng = np.random.default_rng(1)
    for _ in range(20):
        other = free + 0.05 * rng.normal(size=free.shape)
        assert slopes.likelihood(other).sum() < slopes.likelihood(free).sum() + 1e-2
    first = slopes.of_numbers(slice(4))
    np.testing.assert_array_equal(first.information, slopes.information[:, :4, :4])
