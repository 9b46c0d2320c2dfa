"""The directions of a space in which users differ: what of an item's content tastes are about.

A taste with one variance for a whole space is spread over all its numbers, most of which nobody cares for. Here a
few directions, each with a variance of its own, are learned from all users: the likeliest covariance of random slopes
(Laird and Ware, 1982), of low rank and with a penalty on its trace, so that directions of which the log says nothing
vanish.

Legend: U users, H items shown to one, D numbers of a space, K directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

MOST = 6  # directions
WIDTHS = (8, 16, 32)  # leading numbers of a space that are looked at
PENALTIES = (30.0, 100.0, 400.0, 1600.0)  # on the trace; held-out users choose it, and the width
BEGIN = 0.1  # variance of each direction
STEPS = 60
LEAST_GAIN = 1e-3  # of a user, in log-likelihood, that is not nothing
LEAST = 0.02  # share of the largest variance below which a direction is left out


@dataclass(frozen=True)
class Slopes:
    """What the log says of every user's taste in a space.

    Attributes:
        information: float64 (U, D, D).
        score: float64 (U, D); information^-1 @ score is the taste that fits best.
    """

    information: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, users: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Slopes:
        """Of U users.

        Args:
            rows: float32 (M, D), the items.
            users: of each int64 (H) rows, float (H, H) the covariance of surprises at them from all else, and
                float32 (H) the surprises.
        """
        width, information, score = rows.shape[1], list[np.ndarray](), list[np.ndarray]()
        for item, covariance, surprise in users:
            own = rows[item].astype(np.float64)
            solved = cho_solve(cho_factor(covariance, overwrite_a=True, check_finite=False), own)
            information.append(own.T @ solved)
            score.append(solved.T @ surprise)
        return cls(np.reshape(information, (-1, width, width)), np.reshape(score, (-1, width)))

    def __len__(self) -> int:
        return len(self.score)

    def only(self, users: np.ndarray) -> Slopes:
        """Of some users, a mask."""
        return Slopes(self.information[users], self.score[users])

    def of_numbers(self, numbers: slice) -> Slopes:
        """In some numbers of the space, as if there were no others."""
        return Slopes(self.information[:, numbers, numbers], self.score[:, numbers])

    def likelihood(self, root: np.ndarray) -> np.ndarray:
        """Log-likelihood of each user if tastes have the covariance root @ root.T, less that of none, float64 (U).

        Args:
            root: float (D, K).
        """
        score = self.score @ root
        doubt = np.eye(root.shape[1]) + root.T @ self.information @ root
        explained = np.einsum("uk,uk->u", score, np.linalg.solve(doubt, score[..., None])[..., 0])
        told: np.ndarray = (explained - np.linalg.slogdet(doubt)[1]) / 2
        return told

    def likeliest(self, penalty: float) -> np.ndarray:
        """A root of the covariance of tastes with at most MOST directions, float64 (D, K)."""
        users, width = self.score.shape
        count = min(MOST, width)
        seen = self.score.T @ self.score - self.information.sum(axis=0)
        begin = np.linalg.eigh(seen)[1][:, ::-1][:, :count] * np.sqrt(BEGIN)
        flat = self.information.reshape(users * width, width)

        def loss(numbers: np.ndarray) -> tuple[float, np.ndarray]:
            root = numbers.reshape(width, count)
            turned = (flat @ root).reshape(users, width, count)
            doubt = np.eye(count) + root.T @ turned
            left, score = np.linalg.inv(doubt), self.score @ root
            mean = np.einsum("ukl,ul->uk", left, score)
            value = (np.linalg.slogdet(doubt)[1].sum() - (score * mean).sum() + penalty * (root**2).sum()) / 2
            second = left + mean[:, :, None] * mean[:, None, :]
            slope = np.tensordot(turned, second, axes=([0, 2], [0, 2])) - self.score.T @ mean + penalty * root
            return float(value), slope.ravel()

        options = {"maxiter": STEPS}
        found = minimize(loss, begin.ravel(), jac=True, method="L-BFGS-B", options=options)
        return np.asarray(found.x).reshape(width, count)


@dataclass(frozen=True)
class Directions:
    """Directions of a space in which users differ.

    Attributes:
        root: float32 (D, K): a taste's variance along a direction is its squared length.
        gain: float64 (U), what such directions add to each user's log-likelihood, learned without the user.
    """

    root: np.ndarray
    gain: np.ndarray


def directions(slopes: Slopes) -> Directions | None:
    """What is learned from all users, as each half of them judges best what was learned from the other half.

    None where nothing that was learned is better than no taste at all, by more than chance.
    """
    if len(slopes) < 2:
        return None
    half = np.random.default_rng(0).permutation(len(slopes)) % 2
    best, chosen = np.zeros(len(slopes)), None
    widest = slopes.score.shape[1]
    for width in sorted({min(one, widest) for one in WIDTHS}):
        halves = [slopes.of_numbers(slice(width)).only(half == side) for side in (0, 1)]
        for penalty in PENALTIES:
            found = [one.likeliest(penalty) for one in halves]
            gain = np.empty(len(slopes))
            for side in (0, 1):
                gain[half == side] = halves[side].likelihood(found[1 - side])
            if gain.mean() > best.mean():
                best, chosen = gain, (width, penalty)
    if chosen is None or not better(best, np.zeros(len(best))):
        return None
    whole = slopes.of_numbers(slice(chosen[0])).likeliest(chosen[1])
    turn, length, _ = np.linalg.svd(whole, full_matrices=False)
    kept = length**2 > LEAST * length[0] ** 2
    root = np.zeros((widest, int(kept.sum())), np.float32)
    root[: chosen[0]] = turn[:, kept] * length[kept]
    return Directions(root, best)


def better(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether the first of two float (U) log-likelihoods is larger by more than two standard errors over users."""
    more = left - right
    return bool(len(more) and more.mean() > max(2 * more.std() / np.sqrt(len(more)), LEAST_GAIN))
