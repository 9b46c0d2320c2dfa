"""Measure a run, with baselines and controls; write metrics.json, example.json and report.html."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.auc import auc
from dataset.extra import gone_before
from dataset.jagged import owners
from dataset.marketplace.browsing import EXAMINATION
from dataset.split import Split, measured_items
from dataset.tables import Dataset
from evaluation.baselines import Lists
from evaluation.candidate_quality import candidate_quality
from evaluation.ctr_quality import ctr_quality, probabilities
from evaluation.drift import pooled
from evaluation.encoder_measures import encoder_measures, facet_measures
from evaluation.measurements import write_measurements
from evaluation.metrics import Measurement
from evaluation.observer import Observer
from evaluation.off_policy import RandomSlates, off_policy_measures
from evaluation.plain import PlainMethods
from evaluation.plain_controls import Examples
from evaluation.replay import (
    EXPLORED,
    Impressions,
    open_rankers,
    rank_requests,
    score_impressions,
)
from evaluation.retrieval_quality import item_slices, retrieval_quality
from evaluation.search import search_measures
from evaluation.sheets import Evidence, write_report
from evaluation.shop_baselines import positive_events, relevant_of
from evaluation.truth import Judge
from evaluation.truth_table import truth_measures
from evaluation.unmeasured import RECORD, unmeasured
from feature_repo.services import RELEVANCE
from feature_repo.signature import open_signature
from feature_repo.store import open_store
from moonstore.files import write_json
from ranker.judgements import items_as_stored, judged_pairs
from ranker.relevance import Relevance
from ranker.score import Ranker
from retrieval.proposals import Proposed, proposed
from retrieval.retriever import Retriever, open_retrieval
from run.artifacts import open_artifact
from run.sizes import Size

DEPTH = 50
RELEVANT = 0.5
SLICED = ("moon", "item_knn", "mix", "ranker_plain_content", "ranker_id_only", "ranker_shuffled", *EXPLORED)


def evaluate_run(
    folder: Path, dataset: Dataset, split: Split, size: Size, seed: int, timings_s: Mapping[str, float]
) -> None:
    """Write ``metrics.json``, ``not_measured.json``, ``example.json`` and ``report.html`` of a run.

    Args:
        folder: folder of the run.
        dataset, split, size: those of the run.
        seed: for the shuffled control and the random baseline.
        timings_s: stage -> duration in seconds, for the report.
    """
    methods = Methods.open(folder, dataset, split, size, seed)
    evidence = Evidence(folder, dataset, split, methods.retriever.vectors, timings_s, seed)
    measured = list(
        chain(
            _lists(methods, evidence),
            _ctr(methods, evidence),
            *(measure(evidence) for measure in MEASURES),
        )
    )
    write_measurements(folder / "metrics.json", measured)
    missing = unmeasured(dataset, split, measured)
    write_json(folder / RECORD, missing)
    example = evidence.served_example()
    write_json(folder / "example.json", example)
    write_report(folder / "report.html", evidence, measured, example, missing)


@dataclass(frozen=True)
class Methods:
    """Everything that answers requests: ours, its parts and controls, and the plain methods.

    Attributes:
        folder: of the run.
        size: of the run.
        candidates: int64 item ids that may be listed, ascending.
        plain: the plain methods.
        retriever: the sources, over the candidates.
        rankers: ``full`` and its controls; none where the log has nothing that a ranker could learn from.
    """

    folder: Path
    size: Size
    candidates: np.ndarray
    plain: PlainMethods
    retriever: Retriever
    rankers: Mapping[str, Ranker]

    @classmethod
    def open(cls, folder: Path, dataset: Dataset, split: Split, size: Size, seed: int) -> Methods:
        """Open what the run trained, and train the plain methods."""
        candidates = answerable(dataset, split)
        retriever = Retriever.open(open_retrieval(folder), only=candidates)
        rankers = open_rankers(folder, retriever.vectors, seed) if split.ranks else {}
        plain = PlainMethods.fit(dataset, split, candidates, seed)
        return cls(folder, size, candidates, plain, retriever, rankers)

    def proposed(self, requests: pa.Table) -> Proposed:
        """What our sources propose to RETRIEVAL rows."""
        return proposed(self.folder, requests, self.size, self.retriever)

    def lists(self, requests: pa.Table, found: Proposed) -> Iterator[tuple[str, np.ndarray]]:
        """Name and our answers to RETRIEVAL rows, int64 item ids (R, DEPTH); ``moon`` is what the service answers."""
        answers = rank_requests(self.folder, requests, self.size, self.retriever, self.rankers, found, DEPTH)
        served = "ranker_full" if self.rankers else "candidates"
        for name, ranked in answers:
            yield "moon" if name == "ranker_full" else name, ranked
            if name == served == "candidates":
                yield "moon", ranked


def answerable(dataset: Dataset, split: Split) -> np.ndarray:
    """Candidates of the measurement, int64 item ids, ascending: all that are measured (full ranking).

    Protocol "time": of these, the items first seen before ``test_from`` and not gone by then.
    """
    measured, items = measured_items(dataset), dataset.items
    if split.by != "time":
        return measured
    known = pc.less(items["first_seen"], pa.scalar(split.test_from, items["first_seen"].type))
    there = np.intersect1d(measured, items.filter(known)["item_id"].to_numpy())
    return np.setdiff1d(there, gone_before(dataset.artifact, split.test_from))


def _lists(methods: Methods, evidence: Evidence) -> Iterator[Measurement]:
    """Measure every method's lists for the same requests and candidates: by the truth if it is known, by the log."""
    dataset, split, seed = evidence.dataset, evidence.split, evidence.seed
    test = split.retrieval.filter(pc.equal(split.retrieval["part"], "test"))
    if not len(test):
        return
    slates = RandomSlates.of(dataset, split)
    asked = test if slates is None else pa.concat_tables([test, slates.requests]).combine_chunks()
    plain = dict(methods.plain.lists(asked, DEPTH))
    found = methods.proposed(asked)
    answers = {name: one.answers(split.repeats) for name, one in plain.items()}
    answers |= dict(methods.lists(asked, found))
    named = {name: ranked[: len(test)] for name, ranked in answers.items()}
    if dataset.truth is not None:
        judge = Judge.of(dataset)
        first = {name: Lists(one.new[: len(test)], one.any[: len(test)]) for name, one in plain.items()}
        acted_on = positive_events(split.test_log)["item_id"].to_numpy()
        untouched = np.setdiff1d(methods.candidates, acted_on)
        yield from truth_measures(judge, test, named, first, methods.plain, untouched, seed)
        if slates is not None:
            late = {name: ranked[len(test) :] for name, ranked in answers.items()}
            yield from off_policy_measures(judge, slates, late, seed)
    relevant = relevant_of(test).only(methods.candidates)
    slices = item_slices_of(dataset, split, split.test_log)
    for name, ranked in named.items():
        shown = slices if name in SLICED else None
        yield from retrieval_quality(
            ranked, relevant, len(methods.candidates), shown, split="test", prefix=f"retrieval/{name}"
        )
    yield from candidate_quality(
        {name: one.first(len(test)) for name, one in found.alone.items()},
        found.candidates.first(len(test)),
        relevant,
    )
    evidence.retrieval(test, relevant, named)


def item_slices_of(dataset: Dataset, split: Split, log: pa.Table) -> dict[str, np.ndarray]:
    """Ids of the items of each slice, see ``item_slices``; ``log`` holds the events that make items warm."""
    items = dataset.items
    return item_slices(
        items["item_id"].to_numpy(),
        positive_events(log)["item_id"].to_numpy(),
        items["first_seen"].cast(pa.int64()).to_numpy(),
        int(split.fit_until.timestamp() * 1e6),
        items["image_id"].is_valid().to_numpy(),
    )


def _ctr(methods: Methods, evidence: Evidence) -> Iterator[Measurement]:
    """Click prediction of the ranker and its controls on logged test impressions, if there are any."""
    dataset, split = evidence.dataset, evidence.split
    rows = split.ranking.filter(pc.equal(split.ranking["part"], "test"))
    if not (split.shows and methods.rankers and len(rows)):
        return
    scored = score_impressions(methods.folder, split, methods.size, methods.retriever, methods.rankers)
    slices = {
        name: np.isin(scored.item_id, ids)
        for name, ids in item_slices_of(dataset, split, split.test_log).items()
    }
    slices["new_user"] = ~scored.known_user
    chances = {name: probabilities(logits) for name, logits in scored.logits.items()}
    if methods.plain.controls is not None:
        shown = Examples.of(rows)
        chances |= methods.plain.controls.probabilities(shown.asked, shown.offsets, shown.item_id)
    for name, chance in chances.items():
        yield from ctr_quality(scored.label, chance, scored.user_id, slices, prefix=f"ctr/{name}")
    for name, chance in _bounds(dataset, rows, scored):
        for one in ctr_quality(scored.label, chance, scored.user_id, prefix=f"ctr/{name}"):
            if name == "truth" or one.name.endswith("auc"):
                yield one
    evidence.clicks(scored)


def relevance_measures(evidence: Evidence) -> Iterator[Measurement]:
    """AUC of the relevance head, and of the plain cosine, on judged pairs of a query and an item."""
    pairs = judged_pairs(evidence.dataset, evidence.vectors, "test", evidence.seed)
    label = (pairs.relevance > RELEVANT).astype(np.float32)
    folder = evidence.folder
    if not (folder / "relevance").exists() or len(np.unique(label)) < 2:
        return
    store = open_store(folder / "store")
    signature = open_signature(store, RELEVANCE)
    head = Relevance.open(open_artifact(folder / "relevance", "relevance"), signature)
    items = items_as_stored(store, signature, pairs.item_id, evidence.split.end)
    scores = {
        "head": head.score(pairs.query, pairs.item, items),
        "cosine": np.einsum("pd,pd->p", pairs.query, pairs.item),
    }
    for name, values in scores.items():
        yield Measurement(f"relevance/{name}/auc", auc(label, values), len(label), "test judgements")


def daily_measures(evidence: Evidence) -> Iterator[Measurement]:
    """What the ranker that was trained day after day predicted, where that was done."""
    if evidence.days is not None:
        yield from pooled(evidence.days)


def _bounds(dataset: Dataset, rows: pa.Table, scored: Impressions) -> Iterator[tuple[str, np.ndarray]]:
    """The Bayes-optimal predictions: the true click probabilities, where data are simulated.

    Rankers do not know the position of a candidate, so their upper bound is ``truth_unplaced``: the probability of a
    click given that the user looks at the candidate. ``observer`` is the same for who knows the history only.
    """
    if dataset.truth is None:
        return
    event, chance = dataset.truth["event_id"].to_numpy(), dataset.truth["click_probability"].to_numpy()
    order = np.argsort(event)
    true = chance[order[np.searchsorted(event[order], scored.event_id)]]
    yield "truth", true
    yield "truth_unplaced", np.minimum(true / EXAMINATION[scored.position], 1)
    shown = Examples.of(rows)
    row = owners(shown.offsets)
    place = np.arange(len(row)) - shown.offsets[row]
    slates = np.full((len(shown.asked), int(place.max()) + 1), shown.item_id[0])
    slates[row, place] = shown.item_id
    yield "observer", Observer(Judge.of(dataset)).probabilities(shown.asked, slates)[row, place]


# Measurements of a run that need only its evidence. To add one, write a function like these and add a line here.
MEASURES: list[Callable[[Evidence], Iterator[Measurement]]] = [
    encoder_measures,
    facet_measures,
    relevance_measures,
    search_measures,
    daily_measures,
]
