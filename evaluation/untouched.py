"""Items that nobody had acted on, by the truth: are they found and, once shown, are they the right ones?

Two ratios, because each can be bought with the other: places given away to such items raise the first and lower the
second. The bounds belong beside them: items that nobody has liked yet are a little worse than others, by as much as
the oracle's first ratio says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from dataset.marketplace.browsing import EXAMINATION
from evaluation.earlier import Moments
from evaluation.metrics import Measurement
from evaluation.truth import INTERVAL, Judge, resampled_means


def untouched_measures(
    judge: Judge,
    asked: Moments,
    lists: Mapping[str, np.ndarray],
    candidates: np.ndarray,
    untouched: np.ndarray,
    split: str,
    seed: int,
) -> Iterator[Measurement]:
    """Compare what untouched items and all others bring in the same slates.

    Args:
        judge: knows the tastes.
        asked: R requests.
        lists: method -> int64 item ids (R, at least 10), best first, -1 after the end.
        candidates: int64 ids of all items that could be listed.
        untouched: int64 ids of those of them that nobody had acted on.
        split: the part of the data that the requests are from.
        seed: of the bootstrap.

    Yields:
        ``truth/<method>/untouched_by_item``: true clicks that an untouched item gets over those that another gets;
        ``truth/<method>/untouched_by_place``: true clicks at a place that shows one, were it looked at, over those at
        a place that shows another; n = requests, with the 95 % interval of a paired bootstrap over users. The second
        only where both kinds are shown, nothing where all or none of the candidates are untouched.
    """
    few, others = len(untouched), len(candidates) - len(untouched)
    if not few or not others:
        return
    for name, ranked in lists.items():
        chance = judge.click_chances(asked, ranked)
        shown = ranked[:, : chance.shape[1]]
        seen = np.where(shown >= 0, EXAMINATION[: chance.shape[1]], 0)
        own = np.isin(shown, untouched)
        sums = [np.where(rows, values, 0).sum(axis=1) for values in (chance, seen) for rows in (own, ~own)]
        parts = np.stack(sums, axis=1).astype(np.float64)  # clicks of each kind, then looks at each
        drawn = np.concatenate(
            [parts.mean(axis=0, keepdims=True), resampled_means(parts, asked.user_id, seed)]
        )
        for what, divisors in (("item", np.array([few, others])), ("place", drawn[:, 2:])):
            weighed = np.where(divisors > 0, drawn[:, :2] / np.maximum(divisors, 1e-12), np.nan)
            ratio = weighed[:, 0] / np.where(weighed[:, 1] > 0, weighed[:, 1], np.nan)
            if np.isfinite(ratio[0]):
                low, high = np.nanpercentile(ratio[1:], INTERVAL)
                yield Measurement(
                    f"truth/{name}/untouched_by_{what}",
                    float(ratio[0]),
                    len(asked),
                    split,
                    float(low),
                    float(high),
                )
