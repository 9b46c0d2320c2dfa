"""The losses of a click model: of logged impressions, of one positive among others, and of what follows a click.

Legend: R requests, N candidates of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ranker.inputs.batch import Batch
from ranker.ranks import ALL, Share
from ranker.steps import entire_space_loss

Logits = Callable[[Batch], Tensor]


def training_loss(logits: Logits, batch: Batch, loss: str, other: float = 0.0, share: Share = ALL) -> Tensor:
    """Loss of a rank's part of a batch, of logits with the effect of the logged position.

    Args:
        logits: of the model.
        batch: its part.
        loss: the data's own, of weight ``1 - other``.
        other: weight of the other one.
        share: its mean over the ranks is the mean over the whole batch.
    """
    every = logits(batch)
    logit = of_click(every)
    weights = {name: 1 - other if name == loss else other for name in LOSSES}
    parts = [
        weight * share.weigh(LOSSES[name](logit, batch.label, batch.candidate_mask), counted(batch, name))
        for name, weight in weights.items() if weight
    ]  # fmt: skip
    if every.dim() == 3:
        later = entire_space_loss(every, batch.later, batch.candidate_mask)
        parts.append(share.weigh(later, counted(batch, "pointwise")))
    return torch.stack(parts).sum()


def of_click(every: Tensor) -> Tensor:
    """The click's logits, float32 [R, N], among all that a model says: [R, N], or [R, N, 1 + T] with steps."""
    return every if every.dim() == 2 else every[..., 0]


def counted(batch: Batch, loss: str) -> int:
    """How many things the loss of a batch is a mean over: candidates, or requests that have a positive."""
    return int(batch.candidate_mask.sum()) if loss == "pointwise" else int((batch.label.sum(1) > 0).sum())


def each_request(loss: str, logit_RN: Tensor, label_RN: Tensor, filled_RN: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of a request added up, float (R), and how many they are, int64 (R): what the mean is over."""
    return EACH[loss](logit_RN, label_RN, filled_RN)


def _pointwise(logit_RN: Tensor, label_RN: Tensor, filled_RN: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of every candidate."""
    logit_RN = logit_RN.masked_fill(~filled_RN, 0)  # what is undefined shall have no gradient
    loss_RN = functional.binary_cross_entropy_with_logits(logit_RN, label_RN, reduction="none")
    return (loss_RN * filled_RN).sum(1), filled_RN.sum(1)


def _listwise(logit_RN: Tensor, label_RN: Tensor, filled_RN: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy over the candidates of every request that has a positive."""
    log_fraction = torch.log_softmax(logit_RN.masked_fill(~filled_RN, -1e9), dim=1)
    total = label_RN.sum(1)
    return -(log_fraction * label_RN).sum(1) / total.clamp(min=1e-9), total > 0


def _mean(loss: str, logit_RN: Tensor, label_RN: Tensor, filled_RN: Tensor) -> Tensor:
    loss_R, counted_R = each_request(loss, logit_RN, label_RN, filled_RN)
    return loss_R.sum() / counted_R.sum().clamp(min=1)


EACH = {"pointwise": _pointwise, "listwise": _listwise}
# The mean of each over what it counts: candidates, or requests that have a positive.
LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    name: partial(_mean, name) for name in EACH
}
