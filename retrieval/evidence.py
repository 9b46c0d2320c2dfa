"""What a user was shown and what they made of it: what tastes are inferred from, and learned from.

Legend: H shown items of one user.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dataset.log import distinct
from retrieval.properties import Properties
from retrieval.shown import NEVER, Shown
from retrieval.similarities import FADE_US

LEARNED_USERS = 1_000  # that variances and directions of tastes are learned from


@dataclass(frozen=True)
class Evidence:
    """What one user was shown before a moment, H rows.

    Attributes:
        item: int64 (H), rows of the properties.
        time_us: int64 (H).
        liked: bool (H), as known at the moment.
        expected: float32 (H).
    """

    item: np.ndarray
    time_us: np.ndarray
    liked: np.ndarray
    expected: np.ndarray

    def latest(self, count: int) -> Evidence:
        """The last rows."""
        return Evidence(*(one[-count:] for one in vars(self).values()))

    @property
    def weight(self) -> np.ndarray:
        """By how much a log-odd more would raise the expected chance, float32 (H)."""
        return self.expected * (1 - self.expected)

    @property
    def surprise(self) -> np.ndarray:
        """What was made of it against what was expected, in log-odds, float32 (H)."""
        return (self.liked - self.expected) / self.weight

    @property
    def faded(self) -> np.ndarray:
        """How much of a fading taste is left from one row to another, float32 (H, H)."""
        return faded(self.time_us[:, None] - self.time_us)


def faded(age_us: np.ndarray) -> np.ndarray:
    """How much is left of a fading taste after this time, float32."""
    age = np.abs(age_us).astype(np.float32)  # exp is half of the cost in double precision
    left: np.ndarray = np.exp(age * np.float32(-1 / FADE_US))
    return left


def drawn(properties: Properties, learned: Shown) -> Iterator[Evidence]:
    """All that users drawn at random were shown, in order of time."""
    users = distinct(learned.user_id)
    for user in np.sort(np.random.default_rng(0).permutation(users)[:LEARNED_USERS]):
        own = learned.of_user(int(user))
        row = properties.rows(learned.item_id[own])
        past = Evidence(row, learned.available_us[own], learned.liked_us[own] < NEVER, learned.expected[own])
        yield Evidence(*(one[row >= 0] for one in vars(past).values()))
