"""The ranker's losses are the textbook's, computed request by request with the padding cut away."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ranker import attempt
from ranker.losses import LOSSES
from ranker.ranks import Share
from ranker.two_tower import train as two_tower

LOGIT = [[2.0, -1.0, 0.5], [0.0, 3.0, 50.0], [1.0, 1.0, -40.0], [-2.0, 9.0, 9.0]]
LABEL = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
COUNT = [3, 2, 2, 1]  # filled slots; what stands in the others must not matter


def batch():
    logit, label = torch.tensor(LOGIT), torch.tensor(LABEL)
    candidate_mask = torch.arange(3) < torch.tensor(COUNT)[:, None]
    return logit, label * candidate_mask, candidate_mask


def test_pointwise_is_the_mean_cross_entropy_of_the_candidates():
    slow = []
    for logits, labels, count in zip(LOGIT, LABEL, COUNT, strict=True):
        for logit, label in zip(logits[:count], labels[:count], strict=True):
            p = 1 / (1 + math.exp(-logit))
            slow.append(-math.log(p) if label else -math.log(1 - p))
    assert float(LOSSES["pointwise"](*batch())) == pytest.approx(np.mean(slow), abs=1e-6)


def test_listwise_is_the_mean_softmax_cross_entropy_of_the_requests_that_have_a_positive():
    slow = []
    for logits, labels, count in zip(LOGIT, LABEL, COUNT, strict=True):
        weights = np.exp(logits[:count]) / np.exp(logits[:count]).sum()
        if sum(labels[:count]):
            slow.append(-np.dot(labels[:count], np.log(weights)) / sum(labels[:count]))
    assert len(slow) == 3, "one request has no positive and does not count"
    assert float(LOSSES["listwise"](*batch())) == pytest.approx(np.mean(slow), abs=1e-6)


def test_requests_without_a_positive_teach_the_listwise_loss_nothing():
    logit, label, candidate_mask = batch()
    assert float(LOSSES["listwise"](logit, torch.zeros_like(label), candidate_mask)) == 0


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_no_loss_reads_an_empty_slot(loss):
    logit, label, candidate_mask = batch()
    logit.requires_grad_()
    LOSSES[loss](logit, label, candidate_mask).backward()
    assert (logit.grad[~candidate_mask] == 0).all() and (logit.grad[0] != 0).all()


def test_the_loss_that_stops_the_towers_weighs_every_held_out_positive_alike(monkeypatch):
    batches = [
        SimpleNamespace(positive=range(count), loss=loss) for count, loss in ((1, 8.0), (3, 2.0), (4, 1.0))
    ]
    sampler = SimpleNamespace(
        held_out="held out", batches=lambda rows, epoch: batches if rows == "held out" else []
    )
    monkeypatch.setattr(two_tower, "_loss", lambda model, sample: torch.tensor(sample.loss))
    assert two_tower._mean_loss(None, sampler) == pytest.approx((8 + 3 * 2 + 4 * 1) / 8)


@pytest.mark.parametrize(
    "loss, mean", [("pointwise", (2 * 8 + 3 * 2) / 5), ("listwise", (1 * 8 + 2 * 2) / 3)]
)
def test_the_loss_that_stops_the_ranker_weighs_candidates_or_requests_alike(monkeypatch, loss, mean):
    """Two chunks: one request with 2 candidates, then two with 3 in all; the losses are 8 and 2."""
    chunks = {
        0: SimpleNamespace(
            candidate_mask=torch.tensor([[True, True]]), label=torch.tensor([[1.0, 0.0]]), loss=8.0
        ),
        1: SimpleNamespace(
            candidate_mask=torch.tensor([[True, True], [True, False]]),
            label=torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
            loss=2.0,
        ),
    }

    class Chunks(Share):
        def batches(self, stored, encoder, groups):
            for number, rows in enumerate(groups):
                assert rows.tolist() == [number], "every request once"
                yield chunks.get(number, EMPTY)

    monkeypatch.setattr(attempt, "VALID_REQUESTS", 1)
    monkeypatch.setattr(attempt, "training_loss", lambda model, batch, loss: torch.tensor(batch.loss))
    assert attempt._validate(None, range(3), None, loss, Chunks()) == pytest.approx(mean)


EMPTY = SimpleNamespace(candidate_mask=torch.zeros(1, 1, dtype=torch.bool), label=torch.zeros(1, 1), loss=0.0)
