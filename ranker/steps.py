"""What follows a click: carts and purchases, learned over every impression (ESMM, Ma, SIGIR 2018).

    P(step t) = P(click) P(step 1 | click) ... P(step t | step t - 1)

A tower says each conditional chance, on the inputs that the click's tower reads, so tables and modules are shared.
The loss compares the product with what happened to every impression; a tower that learned from clicked ones only
would be asked at scoring about items unlike any that it had seen.

Legend: R requests, N candidates, T steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CLICK = "click"


def log_chances(logit_RNT: Tensor) -> Tensor:
    """Of the click and of every step after it, log P, float32 [R, N, 1 + T].

    Args:
        logit_RNT: float32 [R, N, 1 + T], of the click, and of each step given the one before.
    """
    return functional.logsigmoid(logit_RNT).cumsum(dim=-1)


def log_odds(logit_RNT: Tensor, step: int) -> Tensor:
    """Log-odds of P(step), float32 [R, N]; step 0 is the click. Arguments as of ``log_chances``."""
    if step == 0:
        return logit_RNT[..., 0]
    chance = log_chances(logit_RNT)[..., step]
    return chance - _log_of_not(chance)


def entire_space_loss(logit_RNT: Tensor, happened_RNT: Tensor, filled_RN: Tensor) -> Tensor:
    """Binary cross-entropy of every P(step) after the click, mean over candidates, sum over steps.

    Args:
        logit_RNT: as of ``log_chances``.
        happened_RNT: float32 [R, N, T], 1 where the step was taken.
        filled_RN: bool, slots that hold a candidate.
    """
    chance = log_chances(logit_RNT)[..., 1:]
    each = -(happened_RNT * chance + (1 - happened_RNT) * _log_of_not(chance))
    return each[filled_RN].sum() / filled_RN.sum().clamp(min=1)


def _log_of_not(log_chance: Tensor) -> Tensor:
    """log(1 - P) of log P, without cancellation: a chance near one is expm1's, the others log1p's."""
    tiny = torch.finfo(log_chance.dtype).tiny
    below = log_chance.clamp(max=-1e-7)
    near = torch.log((-torch.expm1(below)).clamp(min=tiny))
    return torch.where(below > -0.6931, near, torch.log1p(-torch.exp(below)))
