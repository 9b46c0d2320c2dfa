"""What a log with random slates says of other lists: inverse propensity scores (IPS), and self-normalised (SNIPS).

A random slate shows every item with the same known probability, so its clicks say without bias what any list would
have got (Horvitz and Thompson 1952; Swaminathan and Joachims 2015). The price is noise: few of its items are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.marketplace.browsing import EXAMINATION
from dataset.marketplace.policy import SLATE
from dataset.split import RETRIEVAL, Split
from dataset.tables import Dataset
from evaluation.earlier import Moments
from evaluation.metrics import Measurement
from evaluation.truth import INTERVAL, Judge, methods_of, resampled_means

SPLIT = "random slates of the test"
FEWEST = 5


@dataclass(frozen=True)
class RandomSlates:
    """R logged requests that were answered at random; arrays of shape (R, SLATE).

    Attributes:
        requests: R rows of RETRIEVAL; ``relevant`` is what was shown.
        item_id: int64, -1 where nothing was shown.
        clicked: bool.
        propensity: float32, the probability that the item was anywhere on the slate; 1 where nothing was shown.
    """

    requests: pa.Table
    item_id: np.ndarray
    clicked: np.ndarray
    propensity: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, split: Split) -> RandomSlates | None:
        """Those of the test part; None where the log has none."""
        if dataset.propensities is None:
            return None
        test = split.ranking.filter(pc.equal(split.ranking["part"], "test"))
        logged = test.join(dataset.propensities, "event_id", join_type="inner").sort_by(
            [("time", "ascending"), ("request_id", "ascending"), ("position", "ascending")]
        )
        if not len(logged):
            return None
        request = logged["request_id"].to_numpy()
        first = np.flatnonzero(np.append(True, request[1:] != request[:-1]))
        row = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(request))))
        at = row, logged["position"].to_numpy()
        shape = len(first), SLATE
        item_id, clicked = np.full(shape, -1), np.zeros(shape, dtype=bool)
        propensity = np.ones(shape, dtype=np.float32)
        item_id[at], clicked[at] = logged["item_id"].to_numpy(), logged["label"].to_numpy() > 0
        propensity[at] = logged["propensity"].to_numpy()
        asked = logged.take(pa.array(first))
        shown = pa.array([[item for item in items if item >= 0] for items in item_id.tolist()])
        number = pc.negate(asked["request_id"])  # retrieval requests have positive numbers of their own
        columns = [number, *(asked[name] for name in ("user_id", "time", "part")), shown]
        return cls(pa.table(columns, schema=RETRIEVAL), item_id, clicked, propensity)

    def __len__(self) -> int:
        return len(self.item_id)


def estimates(lists: np.ndarray, slates: RandomSlates) -> tuple[np.ndarray, np.ndarray, float]:
    """The parts of both estimates of clicks per slate.

    A click at a place that is examined with probability e counts 1 / e, and an item on place j of the list is
    examined with probability e_j; both are the shop's own and known here.

    Args:
        lists: int64 item ids (R, at least SLATE), for the same requests.
        slates: what was shown at random.

    Returns:
        ``gain`` and ``weight``, float64 (R), and ``whole``: IPS is the mean gain; SNIPS is the mean gain over the
        mean weight, times ``whole``, what the weight is on average.
    """
    listed = lists[:, :SLATE]
    same = (slates.item_id[:, :, None] == listed[:, None, :]) & (slates.item_id >= 0)[:, :, None]
    weight = (same * EXAMINATION[: listed.shape[1]]).sum(axis=2) / slates.propensity
    gain = weight * slates.clicked / EXAMINATION
    return gain.sum(axis=1), weight.sum(axis=1), float(EXAMINATION[: listed.shape[1]].sum())


def off_policy_measures(
    judge: Judge, slates: RandomSlates, lists: Mapping[str, np.ndarray], seed: int
) -> Iterator[Measurement]:
    """Estimates beside the truth on the same requests.

    Args:
        judge: knows the tastes.
        slates: R random slates.
        lists: method -> int64 item ids (R, at least SLATE).
        seed: of the bootstrap.

    Yields:
        ``off_policy/<method>/truth``, and ``ips`` and ``snips`` unless no random slate shows a listed item: clicks
        per slate, n = random slates. With 95 % intervals over users, unless fewer than FEWEST slates have a click on
        a listed item: an interval would mean nothing.
    """
    asked = Moments.of(slates.requests)
    for name, ranked in methods_of(lists).items():
        gain, weight, whole = estimates(ranked, slates)
        truth = judge.judge(asked, ranked).clicks
        drawn = resampled_means(np.stack([gain, weight, truth], axis=1), asked.user_id, seed)
        found = {"truth": (truth.mean(), drawn[:, 2])}
        if weight.any():
            seen = drawn[:, 1] > 0
            found["ips"] = (gain.mean(), drawn[:, 0])
            found["snips"] = (whole * gain.mean() / weight.mean(), whole * drawn[seen, 0] / drawn[seen, 1])
        for kind, (value, samples) in found.items():
            if kind != "truth" and np.count_nonzero(gain) < FEWEST:
                yield Measurement(f"off_policy/{name}/{kind}", float(value), len(slates), SPLIT)
                continue
            low, high = np.percentile(samples, INTERVAL)
            yield Measurement(f"off_policy/{name}/{kind}", float(value), len(slates), SPLIT, low, high)
