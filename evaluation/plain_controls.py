"""Two plain rankers that no number of ours is shown without: logistic regression and gradient boosting.

They see ``plain_features`` of the same requests that the ranker trains on, and nothing that Moon learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dataset.jagged import offsets_of, owners
from dataset.log import pairs
from dataset.split import Split
from dataset.tables import Dataset
from evaluation.baselines import PADDING, Baseline, Lists, Requests, blocks, rank
from evaluation.content import PlainContent
from evaluation.earlier import Moments
from evaluation.plain_features import PlainFeatures
from evaluation.shop_baselines import relevant_of, requests_of, shop_baselines
from run.progress import track

MOST_ROWS = 60_000  # that they train on: drawn requests
MOST_REQUESTS = 2_000  # with proposed candidates that they train on
PROPOSED = 100  # items of each baseline, where nothing was shown or the catalogue is too large to rank whole
MOST_PAIRS = (
    2_000_000  # of a request and an item: a larger catalogue is ranked among what the baselines propose
)
BLOCK_PAIRS = 20_000  # whose features are in memory at once
BOOSTING = {  # stops by a tenth of its rows, so nothing has to be tuned for a data set
    "max_iter": 400, "learning_rate": 0.05, "max_leaf_nodes": 15, "min_samples_leaf": 50, "l2_regularization": 1.0,
    "early_stopping": True, "validation_fraction": 0.1, "n_iter_no_change": 20,
}  # fmt: skip
PROPOSING = ("popularity", "item_knn", "tf_idf", "colour", "repeats")


@dataclass(frozen=True)
class Examples:
    """Candidates of R requests, and which were liked.

    Attributes:
        asked: the requests.
        offsets: int64 (R + 1).
        item_id: int64 (C).
        label: float32 (C).
    """

    asked: Moments
    offsets: np.ndarray
    item_id: np.ndarray
    label: np.ndarray

    @classmethod
    def of(cls, shown: pa.Table) -> Examples:
        """Of RANKING rows, grouped by request."""
        request = shown["request_id"].to_numpy()
        first = np.flatnonzero(np.append(True, request[1:] != request[:-1])[: len(request)])
        asked = Moments.of(shown.take(pa.array(first)))
        return cls(
            asked, np.append(first, len(request)), shown["item_id"].to_numpy(), shown["label"].to_numpy()
        )


@dataclass(frozen=True)
class PlainControls:
    """The trained controls.

    Attributes:
        features: of any request, by what is known before the test.
        models: ``logistic`` and ``boosting``, classifiers of scikit-learn.
    """

    features: PlainFeatures
    models: Mapping[str, Any]

    @classmethod
    def fit(
        cls, dataset: Dataset, split: Split, content: PlainContent, candidates: np.ndarray, seed: int
    ) -> PlainControls | None:
        """Train both on the ranker's training part.

        Args:
            dataset, split: of the run.
            content: of its items.
            candidates: int64 item ids that may be proposed where nothing was shown.
            seed: of the drawing of requests, and of boosting.

        Returns:
            None where the training part has likes only, or none.
        """
        examples = training_examples(split, content, candidates, seed)
        if len(np.unique(examples.label)) < 2:
            return None
        earlier = PlainFeatures(dataset, content, split.log, split.fit_log, split.repeats)
        x = features_of(earlier, examples, "train plain controls: features")
        models = {
            "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
            "boosting": HistGradientBoostingClassifier(**BOOSTING, random_state=seed),
        }
        for model in track(models.values(), "train plain controls", unit="models"):
            model.fit(x, examples.label)
        later = PlainFeatures(dataset, content, split.log, split.test_log, split.repeats, earlier.usual)
        return cls(later, models)

    def probabilities(
        self, asked: Moments, offsets: np.ndarray, item_id: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Name -> probability that each candidate is liked, float64 (C); arguments as in ``PlainFeatures.of``."""
        parts: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in self.models}
        for block in track(_blocks(asked, offsets, item_id), "score by plain controls", unit="blocks"):
            x = self.features.of(*block)
            for name, model in self.models.items():
                parts[name].append(model.predict_proba(x)[:, 1])
        return {name: np.concatenate(some) for name, some in parts.items()}

    def lists(
        self,
        asked: Moments,
        history: Requests,
        left_out: Requests,
        candidates: np.ndarray,
        baselines: Mapping[str, Baseline],
        k: int,
    ) -> Iterator[tuple[str, Lists]]:
        """The k best candidates of each request.

        The whole catalogue is ranked up to MOST_PAIRS, else what the baselines propose.

        Args:
            asked, history: the same R requests.
            left_out: what ``Lists.new`` of each is without.
            candidates: int64 item ids, ascending.
            baselines: over these candidates.
            k: length of the lists.
        """
        whole = len(asked) * len(candidates) <= MOST_PAIRS
        found: dict[str, list[Lists]] = {name: [] for name in self.models}
        for start, stop in blocks(len(asked), len(candidates)):
            past = history.take(start, stop)
            offsets, item_id = (
                every(candidates, len(past)) if whole else proposed(baselines, past, self.features.repeats)
            )
            chances = self.probabilities(asked.take(slice(start, stop)), offsets, item_id)
            request = owners(offsets)
            for name, chance in chances.items():
                scores = np.full((len(past), len(candidates)), -np.inf, dtype=np.float32)
                scores[request, np.searchsorted(candidates, item_id)] = chance
                found[name].append(Lists.of(scores, candidates, k, left_out.take(start, stop)))
        yield from ((name, Lists.joined(parts)) for name, parts in found.items())


def features_of(features: PlainFeatures, examples: Examples, description: str) -> np.ndarray:
    """What the controls read of every candidate, float64 (C, F), with progress."""
    blocks = _blocks(examples.asked, examples.offsets, examples.item_id)
    return np.concatenate([features.of(*one) for one in track(blocks, description, unit="blocks")])


def training_examples(split: Split, content: PlainContent, candidates: np.ndarray, seed: int) -> Examples:
    """What was shown in the training part, or, where nothing was, proposals: at most MOST_ROWS, drawn at random."""
    rng = np.random.default_rng(seed)
    shown = split.ranking.filter(pc.is_in(split.ranking["part"], pa.array(["train", "valid"])))
    if split.shows and len(shown):
        return _some(Examples.of(shown), MOST_ROWS, rng)
    requests = split.retrieval.filter(pc.equal(split.retrieval["part"], "train"))
    chosen = np.sort(rng.permutation(len(requests))[:MOST_REQUESTS])
    requests = requests.take(pa.array(chosen))
    history = requests_of(split.log, requests)
    earlier = shop_baselines(content, split.fit_log, candidates, split.repeats, seed)
    offsets, item_id = proposed(earlier, history, split.repeats)
    taken = relevant_of(requests)
    owner, wanted = owners(offsets), owners(taken.offsets)
    pair = pairs(np.append(owner, wanted), np.append(item_id, taken.item_id))
    label = np.isin(pair[: len(owner)], pair[len(owner) :])
    drawn = np.lexsort((rng.random(len(owner)), ~label, owner))  # of each request what was taken, then others
    kept = np.sort(drawn[np.arange(len(owner)) - offsets[owner] < MOST_ROWS // MOST_REQUESTS])
    count = np.bincount(owner[kept], minlength=len(requests))
    label = label[kept].astype(np.float32)
    return Examples(Moments.of(requests), offsets_of(count), item_id[kept], label)


def every(candidates: np.ndarray, requests: int) -> tuple[np.ndarray, np.ndarray]:
    """All candidates for each request: offsets, int64 (R + 1), and item ids."""
    return np.arange(requests + 1) * len(candidates), np.tile(candidates, requests)


def proposed(
    baselines: Mapping[str, Baseline], history: Requests, repeats: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What any of the baselines lists for each request: offsets, int64 (R + 1), and item ids, ascending.

    Args:
        baselines: over the same candidates.
        history: of R requests.
        repeats: whether they list what a user took before.
    """
    lists = [
        rank(baselines[name], history, PROPOSED, repeats=repeats) for name in PROPOSING if name in baselines
    ]
    items = np.sort(np.concatenate(lists, axis=1), axis=1)
    kept = items != PADDING
    kept[:, 1:] &= items[:, 1:] != items[:, :-1]
    return offsets_of(kept.sum(axis=1)), items[kept]


def _blocks(
    asked: Moments, offsets: np.ndarray, item_id: np.ndarray
) -> list[tuple[Moments, np.ndarray, np.ndarray]]:
    """The requests and their candidates, about BLOCK_PAIRS at a time; offsets begin at 0 in each block."""
    step, found = max(1, BLOCK_PAIRS * len(asked) // max(len(item_id), 1)), []
    for start in range(0, len(asked), step):
        bounds = offsets[start : start + step + 1]
        some = item_id[bounds[0] : bounds[-1]]
        found.append((asked.take(slice(start, start + step)), bounds - bounds[0], some))
    return found


def _some(examples: Examples, rows: int, rng: np.random.Generator) -> Examples:
    """Whole requests, drawn at random, with about so many rows; all if there are no more."""
    count = np.diff(examples.offsets)
    drawn = rng.permutation(len(count))
    kept = np.sort(drawn[: np.searchsorted(np.cumsum(count[drawn]), rows, side="right")])
    row = np.isin(owners(examples.offsets), kept)
    return Examples(
        examples.asked.take(kept), offsets_of(count[kept]), examples.item_id[row], examples.label[row]
    )
