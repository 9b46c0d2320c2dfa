"""Which of several trained models is kept: the first one tried, unless held-out users clearly prefer another.

The smaller mean loss says little where few users validate: their losses differ by chance more than the models do, and
the requests of a user err together. So the rule of one standard error holds (Breiman et al., Classification and
Regression Trees, 1984, section 3.4.3), with users as the unit.

Shapes: R validation requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feature_repo.frame import StoredRequests
from ranker.attempt import Trained
from ranker.inputs.columns import chunks


def preferred(trained: Sequence[Trained], valid: StoredRequests) -> Trained:
    """The first of the trained models, or a later one that is clearly better than what is kept so far.

    Args:
        trained: at least one; only of several are ``valid`` read.
        valid: requests that none of them learned from.
    """
    if len(trained) == 1:
        return trained[0]
    user_id = np.concatenate([frame.requests["user_id"].to_numpy() for frame in chunks(valid)])
    kept, (losses, counted) = trained[0], trained[0].losses(valid)
    for one in trained[1:]:
        own, _ = one.losses(valid)
        if clearly_better(losses, own, counted, user_id):
            kept, losses = one, own
    return kept


def clearly_better(first: np.ndarray, second: np.ndarray, counted: np.ndarray, user_id: np.ndarray) -> bool:
    """Whether the second model's mean loss is smaller by more than the standard error of the difference over users.

    Args:
        first, second: float64 (R), the sum of each model's losses of every request.
        counted: int64 (R), of how many losses.
        user_id: int64 (R).
    """
    gain = np.asarray(first, np.float64) - second
    _, user = np.unique(user_id, return_inverse=True)
    users, losses = int(user.max(initial=-1)) + 1, int(counted.sum())
    if users < 2 or not losses:
        return bool(gain.sum() > 0)
    mean = gain.sum() / losses
    # The error of a ratio: users differ in how many losses they have.
    rest = np.bincount(user, gain - mean * counted)
    error = np.sqrt(users / (users - 1) * np.square(rest).sum()) / losses
    return bool(mean > error)
