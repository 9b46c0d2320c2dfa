"""By how much users' tastes in each property differ: the likeliest variances, given what they were shown and liked.

Legend: U users, H shown items of one, S properties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from retrieval.evidence import Evidence

STEPS, BEGIN = 16, 0.03
WIDEST = 1.0  # the variance, in squared log-odds, that is expected of a property of which nothing is known
LEAST = 1e-3  # smaller ones are none


def likeliest(
    users: Sequence[Evidence], alike: Callable[[np.ndarray, np.ndarray], np.ndarray], count: int
) -> tuple[np.ndarray, float]:
    """Variances of lasting tastes in each property and of those that fade, float32 (2, S), and of the noise.

    They are relative to the noise, as tastes are inferred as if its own were 1. It is that of surprises over what
    chance alone would give: less than 1 where users agree with the expected chances more often than by chance.

    What a user makes of what they are shown is noise and tastes, all of them normal. Each step multiplies every
    variance by what was seen of it over what was expected; where both are equal the likelihood has no slope. Unlike
    moments (products of surprises), this also holds where the shop shows more of what was liked before.

    Args:
        users: of U.
        alike: of rows of properties int64 (H) and (H), how alike they are in each property, float32 (S, H, H).
        count: S.
    """
    variance, noise = np.full(2 * count, BEGIN, np.float32), 1.0
    for _ in range(STEPS):
        seen, expected = np.zeros(2 * count), np.full(2 * count, 2 / WIDEST)
        noisy, usual = 1.0, 1.0
        for past in users:
            shown, left = len(past.item), past.faded
            terms = alike(past.item, past.item).reshape(count, -1)
            both = (variance[:count] @ terms).reshape(shown, shown)
            both += (variance[count:] @ terms).reshape(shown, shown) * left
            both[np.diag_indices(shown)] += noise / past.weight
            inverse = np.linalg.inv(both)
            held = inverse @ past.surprise
            noisy += float((held**2 / past.weight).sum())
            usual += float((np.diag(inverse) / past.weight).sum())
            twice = np.stack([np.outer(held, held).ravel(), inverse.ravel()], axis=1)
            seen[:count] += (found := terms @ twice)[:, 0]
            expected[:count] += found[:, 1]
            found = terms @ (twice * left.reshape(-1, 1))
            seen[count:] += found[:, 0]
            expected[count:] += found[:, 1]
        variance = (variance * (seen.clip(min=0) / expected)).astype(np.float32)
        noise *= noisy / usual
    variance /= np.float32(noise)
    variance[variance < LEAST] = 0
    return variance.reshape(2, count), noise
