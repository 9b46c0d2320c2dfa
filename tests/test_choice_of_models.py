"""A model that was tried second is kept only if held-out users prefer it by more than chance explains."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from ranker import choice
from ranker.choice import clearly_better, preferred
from ranker.losses import LOSSES, each_request


def losses(users, of_each, lead, between, seed=0):
    """(first, second, counted, user_id): the second has smaller losses, by ``lead`` and a deviation of users."""
    draw = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), of_each)
    first = draw.exponential(size=len(user))
    gain = lead + between * draw.normal(size=users)[user]
    return first, first - gain, np.ones(len(user), np.int64), user


def test_the_error_is_that_of_users_not_of_their_requests():
    """Thirty users of whom one, with most of the requests, decides the mean."""
    first, second, counted, user = losses(30, 100, lead=0.0, between=0.1)
    gain = (first - second).reshape(30, 100)[:, 0]
    by_hand = gain.mean() > np.sqrt(np.var(gain, ddof=1) / 30)
    assert clearly_better(first, second, counted, user) == by_hand
    among_requests = (first - second).mean() > np.std(first - second, ddof=1) / np.sqrt(len(user))
    assert among_requests != by_hand, "the planted losses tell users from requests"


@pytest.mark.parametrize(("lead", "better"), [(0.1, True), (0.0, False), (-0.1, False)])
def test_a_lead_of_many_errors_is_found_and_one_of_none_is_not(lead, better):
    found = [clearly_better(*losses(200, 5, lead, between=0.2, seed=seed)) for seed in range(20)]
    assert np.mean(found) >= 0.95 if better else np.mean(found) <= 0.3


def test_users_with_more_losses_count_more():
    """The error of a ratio, as the delta method gives it: users of one and of three losses."""
    gain, counted = np.array([3.0, 1.0, 2.0, 6.0]), np.array([3, 1, 1, 3])
    mean = 12 / 8
    error = np.sqrt(4 / 3 * np.square(gain - mean * counted).sum()) / 8
    assert clearly_better(gain, np.zeros(4), counted, np.arange(4)) == (mean > error)
    worse = gain - (mean - 0.99 * error) * counted  # the mean falls below its error
    assert not clearly_better(worse, np.zeros(4), counted, np.arange(4))
    assert clearly_better(gain - (mean - 1.01 * error) * counted, np.zeros(4), counted, np.arange(4))


def test_of_a_single_user_only_the_mean_can_be_asked():
    one = np.ones(3, np.int64)
    assert clearly_better(np.array([2.0, 2, 2]), np.array([1.0, 1, 1]), one, np.zeros(3, np.int64))
    assert not clearly_better(np.array([1.0, 1, 1]), np.array([1.0, 1, 1]), one, np.zeros(3, np.int64))


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_losses_of_requests_have_the_mean_that_training_minimises(loss):
    draw = torch.Generator().manual_seed(3)
    logit, filled = torch.randn(6, 5, generator=draw), torch.rand(6, 5, generator=draw) < 0.8
    label = ((torch.rand(6, 5, generator=draw) < 0.3) & filled).float()
    label[2] = 0  # a request of which nothing was taken
    each, counted = each_request(loss, logit, label, filled)
    mean = LOSSES[loss](logit, label, filled)
    assert float(each.sum() / counted.sum()) == pytest.approx(float(mean), abs=1e-6)
    alone = LOSSES[loss](logit[:1], label[:1], filled[:1])
    assert float(each[0]) == pytest.approx(float(alone * counted[0]), abs=1e-6)
    undefined = logit.masked_fill(~filled, torch.nan).requires_grad_()
    again = LOSSES[loss](undefined, label, filled)
    again.backward()
    assert float(again) == pytest.approx(float(mean), abs=1e-6)
    assert undefined.grad[filled].any() and not undefined.grad[~filled].any()


def test_the_first_is_kept_until_one_is_clearly_better_than_what_is_kept(monkeypatch):
    """Twenty users of two requests: every user prefers the third model, half of them the second by as much."""
    users = np.repeat(np.arange(20), 2)
    monkeypatch.setattr(
        choice, "chunks", lambda valid: [SimpleNamespace(requests=pa.table({"user_id": users}))]
    )
    counted, draw = np.ones(40, np.int64), np.random.default_rng(1).normal(size=40)

    def model(gain):
        return SimpleNamespace(losses=lambda valid: (3 + 0.01 * draw - gain, counted))

    first, torn, better = model(0.0), model(np.where(users % 2, 0.4, -0.38)), model(0.2)
    assert preferred([first, torn], "valid") is first
    assert preferred([first, torn, better], "valid") is better
    assert preferred([better, torn, first], "valid") is better


def test_a_model_alone_is_kept_without_asking():
    assert preferred(["alone"], None) == "alone"
