"""What the place of an impression does to its chance of a click, and the score that needs no place.

The position tower says the chance that a user looks at a place of a slate (PAL, Guo et al., RecSys 2019).

    P(click | place, request, item) = P(looked at | place, request) P(click | looked at, request, item)

Both factors are learned together from the clicks of the log; without the tower each place has a number, added to the
log-odds of the click. A score is for an average place: there the impressions of the log would be clicked as often as
they are at their own places (``unplaced``).

Legend: R requests, N candidates, P places, C width of what the tower reads of a request.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HIDDEN = 8, 16
FAST = 10.0  # places learn so many times faster than other weights: one epoch must reach a logit of 2


class PositionTower(nn.Module):
    """What a request adds to the log-odds that each place is looked at; zero before training.

    Args:
        places: P.
        context: C.
    """

    def __init__(self, places: int, context: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(places, WIDTH))
        self.place_input = nn.Linear(WIDTH, HIDDEN)
        self.request_input = nn.Linear(context, HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, request_RC: Tensor) -> Tensor:
        """The addition to the log-odds of every place, float32 [R, P]."""
        hidden = self.place_input(self.place) + self.request_input(request_RC)[:, None]
        added: Tensor = FAST * self.out(functional.silu(hidden))[..., 0]
        return added


def looked_at(log_odds_RP: Tensor, share_P: Tensor, position_RN: Tensor | None = None) -> Tensor:
    """Log-odds that the user looks at each candidate, float32 [R, N]; [R, 1] of an average place.

    Args:
        log_odds_RP: float32, of every place.
        share_P: float32, fraction of the training candidates at each place.
        position_RN: int64, the places of the candidates, -1 where none was logged: an average one; None: of all.
    """
    average = torch.logit((log_odds_RP.sigmoid() * share_P).sum(1, keepdim=True), eps=1e-6)
    if position_RN is None:
        return average
    at_place = log_odds_RP.gather(1, position_RN.clamp(0, log_odds_RP.shape[1] - 1))
    return torch.where(position_RN >= 0, at_place, average)


def unplaced(placed: np.ndarray, free: np.ndarray) -> float:
    """The constant c by which impressions have the same mean chance without their places as at them.

    Sum of sigmoid(free + c) = sum of sigmoid(placed). With c = 0, the mean of the places' log-odds, chances are too
    low: a sigmoid is convex where clicks are rare, and a shop puts at the top what is clicked anyway. One constant
    for all leaves every order as it is (docs/log/ranker.md#an-average-place).

    Args:
        placed: float [N], log-odds of impressions at their own places.
        free: float [N], log-odds of the same without an effect of the place.

    Returns:
        c; 0 where there are no impressions.
    """
    apart = np.asarray(placed, np.float64) - free
    least, most = float(apart.min(initial=0.0)), float(apart.max(initial=0.0))
    if least == most:
        return least
    return level(free, float(expit(placed).sum()), least, most)


def level(log_odds: np.ndarray, clicks: float, least: float, most: float) -> float:
    """The constant, between ``least`` and ``most``, with which log-odds float [N] expect so many clicks."""
    return float(brentq(lambda c: expit(log_odds + c).sum() - clicks, least, most))
