"""By how much users' tastes in each property differ: the likeliest variances, given what they were shown and liked.

Legend: U users, H shown items of one, S properties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from retrieval.evidence import Evidence

STEPS, BEGIN = 12, 0.03
WIDEST = 1.0  # the variance, in squared log-odds, that is expected of a property of which nothing is known
LEAST = 1e-3  # smaller ones are none


def likeliest(
    users: Sequence[Evidence], alike: Callable[[np.ndarray, np.ndarray], np.ndarray], count: int
) -> np.ndarray:
    """Variances of lasting tastes in each property and of those that fade, float32 (2, S).

    What a user makes of what they are shown is noise and tastes, all of them normal. Each step multiplies every
    variance by what was seen of it over what was expected; where both are equal the likelihood has no slope. Unlike
    moments (products of surprises), this also holds where the shop shows more of what was liked before.

    Args:
        users: of U.
        alike: of rows of properties int64 (H) and (H), how alike they are in each property, float32 (S, H, H).
        count: S.
    """
    variance = np.full(2 * count, BEGIN, np.float32)
    for _ in range(STEPS):
        seen, expected = np.zeros(2 * count), np.full(2 * count, 2 / WIDEST)
        for past in users:
            shown, left = len(past.item), past.faded
            terms = alike(past.item, past.item).reshape(count, -1)
            both = (variance[:count] @ terms).reshape(shown, shown)
            both += (variance[count:] @ terms).reshape(shown, shown) * left
            both[np.diag_indices(shown)] += 1 / past.weight
            inverse = np.linalg.inv(both)
            held = inverse @ past.surprise
            twice = np.stack([np.outer(held, held).ravel(), inverse.ravel()], axis=1)
            seen[:count] += (found := terms @ twice)[:, 0]
            expected[:count] += found[:, 1]
            found = terms @ (twice * left.reshape(-1, 1))
            seen[count:] += found[:, 0]
            expected[count:] += found[:, 1]
        variance = (variance * (seen.clip(min=0) / expected)).astype(np.float32)
    variance[variance < LEAST] = 0
    return variance.reshape(2, count)
