"""All plain methods of a data set together: baselines that need no training, their tuned mix, and two classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import BEHAVIOUR_CODES
from dataset.split import Split
from dataset.tables import Dataset
from evaluation.baselines import Baseline, Lists, Mix, lists, tune_mix
from evaluation.content import PlainContent
from evaluation.earlier import Moments
from evaluation.plain_controls import PlainControls
from evaluation.shop_baselines import relevant_of, requests_of, shop_baselines

TUNING_REQUESTS = 2_000
MIXED = ("item_knn", "tf_idf", "colour", "repeats")


@dataclass(frozen=True)
class PlainMethods:
    """What the learned system must beat.

    Attributes:
        baselines: over the candidates, with the mix.
        controls: None where nothing can train them.
        candidates: int64 item ids, ascending.
        log: EVENTS rows that histories are read from, whatever may be counted of them.
        repeats: whether they list what a user took before (``Split.repeats``).
    """

    baselines: dict[str, Baseline]
    controls: PlainControls | None
    candidates: np.ndarray
    log: pa.Table
    repeats: bool

    @classmethod
    def fit(cls, dataset: Dataset, split: Split, candidates: np.ndarray, seed: int) -> PlainMethods:
        """Tune the mix and train the controls on the training part, and count the log before the test.

        Args:
            dataset, split: of the run.
            candidates: int64 item ids that may be listed, ascending.
            seed: of what is drawn.
        """
        content = PlainContent.of(dataset.items, dataset.images)
        baselines = with_mix(content, split, candidates, seed)
        controls = PlainControls.fit(dataset, split, content, candidates, seed)
        return cls(baselines, controls, candidates, split.log, split.repeats)

    def lists(self, requests: pa.Table, k: int) -> Iterator[tuple[str, Lists]]:
        """The k best candidates by every method.

        Args:
            requests: R rows with user_id and time.
            k: length of the lists.
        """
        history = requests_of(self.log, requests)
        acted_on = requests_of(self.log, requests, BEHAVIOUR_CODES.values())  # what was disliked, too
        for name, baseline in self.baselines.items():
            yield name, lists(baseline, history, k, acted_on)
        if self.controls is not None:
            asked = Moments.of(requests)
            yield from self.controls.lists(asked, history, acted_on, self.candidates, self.baselines, k)


def with_mix(content: PlainContent, split: Split, candidates: np.ndarray, seed: int) -> dict[str, Baseline]:
    """Every baseline on the log before the test, and a mix tuned on train requests with the earlier log."""
    tuning = split.retrieval.filter(pc.equal(split.retrieval["part"], "train")).slice(0, TUNING_REQUESTS)
    wanted = relevant_of(tuning).only(candidates)
    earlier = shop_baselines(content, split.fit_log, candidates, split.repeats, seed)
    tuned = tune_mix(
        {name: earlier[name] for name in MIXED if name in earlier},
        requests_of(split.log, tuning),
        wanted.offsets,
        wanted.item_id,
        repeats=split.repeats,
    )
    baselines = shop_baselines(content, split.test_log, candidates, split.repeats, seed)
    baselines["mix"] = Mix({name: baselines[name] for name in tuned.parts}, tuned.weights)
    return baselines
