"""The ideal observer: tastes inferred from the same history, by one who knows the catalogue and the shop's rules.

It knows every item's true properties and quality, how users look at slates, how clicks shift their interest, and how
tastes are distributed, but no user's taste. Nobody who knows histories only can pass it, up to its one approximation:
beliefs about a taste are normal (Laplace), while the likes of a facet are a few among many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset.marketplace.browsing import EXAMINATION, sigmoid
from dataset.marketplace.catalogue import FACETS
from dataset.marketplace.rules import Rules
from dataset.marketplace.shoppers import LIKED_SPREAD, TASTE, TRAIT_TASTE, strengths
from evaluation.earlier import Moments
from evaluation.truth import Judge

STEPS = 8  # of Fisher scoring; the ninth moves no probability by a thousandth


@dataclass(frozen=True)
class Observer:
    """Beliefs about the tastes of a simulated world's users.

    Attributes:
        judge: knows the world; the observer asks it for everything but tastes.
    """

    judge: Judge

    def probabilities(self, moments: Moments, item_id: np.ndarray) -> np.ndarray:
        """Probability of a click on items that the user looks at, float32 (R, P), by the history before each moment.

        Args:
            moments: R requests.
            item_id: int64 (R, P), or (P) for the same items at every request.
        """
        judge, root = self.judge, prior_root(self.judge.world.rules)
        properties = judge.world.catalogue.properties()
        rows = np.broadcast_to(judge.rows(item_id), (len(moments), item_id.shape[-1]))
        passing, levels = judge.passing(moments), judge.levels(moments, rows)
        out = np.empty(rows.shape, dtype=np.float32)
        for number, (shown, offset, examined, clicked) in enumerate(self._histories(moments)):
            mean, covariance = posterior(properties[shown] @ root, offset, examined, clicked)
            seen = properties[rows[number]]
            known = seen @ passing[number] + levels[number]
            x = seen @ root
            spread = np.einsum("pd,de,pe->p", x, covariance, x, optimize=True)
            # The mean of a sigmoid under a normal (MacKay 1992).
            out[number] = sigmoid((known + x @ mean) / np.sqrt(1 + np.pi / 8 * spread))
        return out

    def _histories(self, moments: Moments) -> list[tuple[np.ndarray, ...]]:
        """What each moment's user was shown before: catalogue rows, known log-odds, examination, clicks."""
        world, judge = self.judge.world, self.judge
        requests, slates = world.requests, world.slates
        asked = Moments(requests.user + 1, requests.time_us, judge.query_of_request)
        there = slates.item >= 0
        rows = np.where(there, slates.item, 0)
        interest = judge.passing(asked)
        offset = np.einsum("rpd,rd->rp", world.catalogue.properties()[rows], interest) + judge.levels(
            asked, rows
        )
        examined = np.broadcast_to(EXAMINATION, rows.shape)
        user = judge.user_rows(moments)
        start, stop = judge.requests_before(user, moments.time_us)
        found = []
        for first, last in zip(start, stop, strict=True):
            kept = there[first:last]
            found.append(tuple(one[first:last][kept] for one in (rows, offset, examined, slates.clicked)))
        return found


def prior_root(rules: Rules) -> np.ndarray:
    """A root L of the covariance of tastes, L @ L.T, float32 (WIDTH, D): a taste is L @ z with standard normal z.

    The likes of a facet are a random few of its values; only their covariance is kept, and their mean, which is the
    same for all values and cancels.
    """
    blocks = []
    for name, values in FACETS.items():
        liked, strength, spread = TASTE[name]
        n, fraction = len(values), liked / len(values)
        own = (
            fraction * (strength**2 + LIKED_SPREAD**2)
            + (1 - fraction) * spread**2
            - (fraction * strength) ** 2
        )
        together = strength**2 * (fraction * (liked - 1) / (n - 1) - fraction**2)
        centre = np.eye(n) - 1 / n
        blocks.append(centre @ (np.full((n, n), together) + np.eye(n) * (own - together)) @ centre)
    blocks += [np.full((1, 1), spread**2) for spread in TRAIT_TASTE]
    width = sum(map(len, blocks))
    root, start = np.zeros((width, width)), 0
    for block in blocks:
        value, vector = np.linalg.eigh(block)
        stop = start + len(block)
        root[start:stop, start:stop] = vector * np.sqrt(np.maximum(value, 0))
        start = stop
    root = root * strengths(rules)[:, None]
    return root[:, root.any(axis=0)].astype(np.float32)


def posterior(
    x: np.ndarray, offset: np.ndarray, examined: np.ndarray, clicked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of z ~ N(0, I) after clicks with probability examined * sigmoid(offset + x @ z).

    Args:
        x: float32 (I, D), one row per item that was shown.
        offset, examined: float32 (I).
        clicked: bool (I).

    Returns:
        the mode, float64 (D), and the inverse of the expected curvature there, (D, D).
    """
    z, identity = np.zeros(x.shape[1]), np.eye(x.shape[1])
    covariance = identity
    for _ in range(STEPS):
        liked = sigmoid(offset + x @ z)
        chance = examined * liked
        steep = chance * (1 - liked)  # of the probability over the log-odds
        doubt = np.maximum(chance * (1 - chance), 1e-9)
        weighted = x * (steep**2 / doubt)[:, None]
        covariance = np.linalg.inv(identity + x.T @ weighted)
        z = z + covariance @ (x.T @ ((clicked - chance) * steep / doubt) - z)
    return z, covariance
