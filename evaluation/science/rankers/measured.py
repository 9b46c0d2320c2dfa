"""Rankers measured on the test part of a run, all alike, beside what a ranker must beat.

Where impressions were logged, by the chances of a click; where only what was taken is known, by the lists that they
make of the same candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.jagged import offsets_of
from dataset.split import Split
from dataset.tables import Dataset
from evaluation.baselines import rank
from evaluation.content import PlainContent
from evaluation.ctr_quality import ctr_quality, probabilities
from evaluation.earlier import Moments
from evaluation.metrics import Measurement
from evaluation.plain import with_mix
from evaluation.plain_controls import Examples, PlainControls
from evaluation.replay import lists, score_impressions, scores_of
from evaluation.retrieval_quality import Relevant, retrieval_quality
from evaluation.run import DEPTH, answerable, item_slices_of
from evaluation.shop_baselines import relevant_of, requests_of
from feature_repo.frames.join import training_frame
from ranker.score import Ranker
from retrieval.examples import candidates, example_rows, requests_frame
from retrieval.jagged import Retrieved
from retrieval.retriever import Retriever, open_retrieval
from run.sizes import Size

ASKED = 1_000  # test requests, whose candidates every ranker orders: fifty rankers take a few minutes
PLAIN = ("logistic", "boosting", "mix", "fused")
Measured = Iterator[tuple[str, list[Measurement]]]


def by_clicks(
    folder: Path, dataset: Dataset, split: Split, size: Size, rankers: Mapping[str, Ranker], plain: bool
) -> Measured:
    """Click prediction of all test impressions, of cold and of warm items, and of users without a history.

    Args:
        folder, dataset, split, size: of the run.
        rankers: by name.
        plain: measure logistic regression and boosting on plain features, too.
    """
    rows = split.ranking.filter(pc.equal(split.ranking["part"], "test"))
    scored = score_impressions(folder, split, size, Retriever.open(open_retrieval(folder)), rankers)
    cold = np.isin(scored.item_id, item_slices_of(dataset, split, split.test_log)["cold"])
    chances = {name: probabilities(logits) for name, logits in scored.logits.items()}
    if plain:
        content = PlainContent.of(dataset.items, dataset.images)
        controls = PlainControls.fit(dataset, split, content, answerable(dataset, split), 0)
        shown = Examples.of(rows)
        if controls is not None:
            chances |= controls.probabilities(shown.asked, shown.offsets, shown.item_id)
    for name, chance in chances.items():
        slices = {"cold": cold, "warm": ~cold, "new_user": ~scored.known_user}
        yield name, list(ctr_quality(scored.label, chance, scored.user_id, slices, prefix="ctr"))


def by_lists(
    folder: Path, dataset: Dataset, split: Split, size: Size, rankers: Mapping[str, Ranker], plain: bool
) -> Measured:
    """Recall and NDCG of ``ASKED`` test requests drawn at random, and of every one that took a cold item.

    All order the same candidates, fused from all sources; only requests of which one is the answer are scored, since
    no order of the others finds it.

    Args:
        folder, dataset, split, size: of the run.
        rankers: by name.
        plain: measure the order of the fused candidates, the two controls on plain features that order them as well,
            and the mix of baselines over the whole catalogue.
    """
    listed = answerable(dataset, split)
    cold = item_slices_of(dataset, split, split.test_log)["cold"]
    test, drawn = _asked(split, listed, cold)
    relevant = relevant_of(test).only(listed)
    retriever = Retriever.open(open_retrieval(folder), only=listed)
    found = candidates(requests_frame(folder, test, size), retriever)
    rows = example_rows(test, found)
    answered = _answered(test, rows)
    rows = rows.filter(
        pc.is_in(rows["request_id"], test["request_id"].take(pa.array(answered)).combine_chunks())
    )
    item_id, offsets = rows["item_id"].to_numpy(), offsets_of(np.diff(found.offsets)[answered])
    stored = training_frame(folder / "store", rows, size.history)
    orders = dict(scores_of(stored, retriever, rankers))
    answers: dict[str, np.ndarray] = {}
    if plain:
        content = PlainContent.of(dataset.items, dataset.images)
        controls = PlainControls.fit(dataset, split, content, listed, 0)
        if controls is not None:
            asked = Moments.of(test.take(pa.array(answered)))
            orders |= controls.probabilities(asked, offsets, item_id)
        mix = with_mix(content, split, listed, seed=0)["mix"]
        answers = {
            "mix": rank(mix, requests_of(split.log, test), DEPTH, repeats=split.repeats),
            "fused": lists(found, DEPTH),
        }
    for name, scores in orders.items():
        answers[name] = np.full((len(test), DEPTH), -1)
        answers[name][answered] = lists(Retrieved(offsets, item_id, scores), DEPTH)
    warm, some = np.setdiff1d(listed, cold), relevant_of(test.take(pa.array(drawn))).only(listed)
    for name, ranked in answers.items():
        yield (
            name,
            [
                *_qualities(ranked[drawn], some, listed, "warm", warm, whole=True),
                *_qualities(ranked, relevant, listed, "cold", cold, whole=False),
            ],
        )


def _qualities(
    ranked: np.ndarray, relevant: Relevant, listed: np.ndarray, name: str, items: np.ndarray, whole: bool
) -> Iterator[Measurement]:
    """Of a slice of items, and of all where that is asked for."""
    for one in retrieval_quality(ranked, relevant, len(listed), {name: items}):
        if whole or f"/{name}/" in one.name:
            yield one


def _asked(split: Split, listed: np.ndarray, cold: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """The test requests that are asked, and which of them were drawn whatever they took, int64."""
    test = split.retrieval.filter(pc.equal(split.retrieval["part"], "test"))
    drawn = np.random.default_rng(0).permutation(len(test))[:ASKED]
    relevant = relevant_of(test).only(np.intersect1d(listed, cold))
    rows = np.union1d(drawn, np.flatnonzero(np.diff(relevant.offsets)))
    return test.take(pa.array(rows)), np.flatnonzero(np.isin(rows, drawn))


def _answered(test: pa.Table, rows: pa.Table) -> np.ndarray:
    """Which of the test requests have a candidate that was taken, int64."""
    taken = rows.filter(pc.greater(rows["label"], 0))["request_id"].combine_chunks()
    return np.flatnonzero(pc.is_in(test["request_id"], taken).to_numpy())
