"""Measure a run, with baselines and controls; write metrics.json, example.json and report.html."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.auc import auc
from dataset.marketplace.browsing import EXAMINATION
from dataset.split import Split
from dataset.tables import Dataset
from encoder.encode import Content, Encoder, item_content
from evaluation.baselines import Mix, rank, tune_mix
from evaluation.content import PlainContent, colours, item_text, tf_idf
from evaluation.ctr_quality import ctr_quality, probabilities
from evaluation.encoder_quality import Pool, encoder_quality
from evaluation.measurements import write_measurements
from evaluation.metrics import Measurement
from evaluation.replay import Impressions, open_rankers, rank_requests, score_impressions
from evaluation.retrieval_quality import item_slices, retrieval_quality
from evaluation.sheets import Evidence, write_report
from evaluation.shop_baselines import positive_events, relevant_of, requests_of, shop_baselines
from ranker.relevance import Relevance, judged_pairs
from retrieval.retriever import Retriever, open_retrieval
from run.artifacts import open_artifact, write_json
from run.sizes import Size

DEPTH = 50
TUNING_REQUESTS = 2_000
RELEVANT = 0.5
MIXED = ("item_knn", "tf_idf", "colour")


def evaluate_run(
    folder: Path, dataset: Dataset, split: Split, size: Size, seed: int, timings_s: Mapping[str, float]
) -> None:
    """Write ``metrics.json``, ``example.json`` and ``report.html`` of a run.

    Args:
        folder: folder of the run.
        dataset, split, size: those of the run.
        seed: for the shuffled control and the random baseline.
        timings_s: stage -> duration in seconds, for the report.
    """
    candidates = answerable(dataset, split)
    retriever = Retriever.open(open_retrieval(folder), only=candidates)
    vectors = retriever.vectors
    rankers = open_rankers(folder, vectors, seed)
    evidence = Evidence(folder, dataset, split, vectors, timings_s, seed)
    measured = list(
        chain(
            _retrieval(folder, dataset, split, size, seed, candidates, retriever, rankers, evidence),
            _ctr(folder, dataset, split, size, retriever, rankers, evidence),
            *(measure(evidence) for measure in MEASURES),
        )
    )
    write_measurements(folder / "metrics.json", measured)
    example = evidence.served_example()
    write_json(folder / "example.json", example)
    write_report(folder / "report.html", evidence, measured, example)


def answerable(dataset: Dataset, split: Split) -> np.ndarray:
    """Candidates of the measurement, int64 item ids, ascending.

    Protocol "time": those first seen before ``test_from``. Protocol "holdout": those with a picture that were
    sold at all, the 12,044 candidates of the H&M pack.
    """
    items = dataset.items
    if split.protocol == "time":
        known = pc.less(items["first_seen"], pa.scalar(split.test_from, items["first_seen"].type))
        return np.sort(items.filter(known)["item_id"].to_numpy())
    sold = np.unique(dataset.events["item_id"].to_numpy())
    pictured = items.filter(items["image_id"].is_valid())["item_id"].to_numpy()
    return np.intersect1d(sold, pictured)


def encoder_measures(evidence: Evidence) -> Iterator[Measurement]:
    """Cross-modal and same-product recall on the split's pool, whose items the encoder was not trained on."""
    folder, dataset, split = evidence.folder, evidence.dataset, evidence.split
    chosen = dataset.items.filter(pc.is_in(dataset.items["item_id"], pa.array(split.pool))).to_pylist()
    if len(chosen) < 2:
        return
    encoder = Encoder.open(open_artifact(folder / "encoder", "encoder"))
    pictures = [dataset.image_bytes(row["image_id"]) for row in chosen]
    contents = [item_content(row, picture) for row, picture in zip(chosen, pictures, strict=True)]
    spu = np.array([row["spu"] for row in chosen])
    moon = Pool(
        spu=spu,
        item=encoder.encode(contents),
        image=encoder.encode([Content(image=one.image) for one in contents]),
        text=encoder.encode([replace(one, image=None) for one in contents]),
    )
    texts = [item_text(row["title"], row["description"], row["attributes"]) for row in chosen]
    words = tf_idf(texts)
    dense = np.zeros((len(chosen), words.width), dtype=np.float32)
    dense[np.repeat(np.arange(len(chosen)), np.diff(words.offsets)), words.column] = words.value
    colour = colours(pictures)
    pools = {
        "moon": moon,
        "tf_idf": Pool(spu=spu, item=dense, text=dense),
        "colour": Pool(spu=spu, item=colour, image=colour),
    }
    split_name = f"pool of {len(chosen)} unseen items"
    for name, pool in pools.items():
        for one in encoder_quality(pool, split=split_name, prefix=f"encoder/{name}"):
            if "/chance/" not in one.name:
                yield one
            elif name == "moon":
                yield Measurement(one.name.replace("moon/chance", "random"), one.value, one.n, one.split)


def _retrieval(
    folder: Path,
    dataset: Dataset,
    split: Split,
    size: Size,
    seed: int,
    candidates: np.ndarray,
    retriever: Retriever,
    rankers: Mapping,
    evidence: Evidence,
) -> Iterator[Measurement]:
    """Measure every baseline, every source, their union and every ranker on the same requests and candidates."""
    parts = {
        part: split.retrieval.filter(pc.equal(split.retrieval["part"], part)) for part in ("train", "test")
    }
    test = parts["test"]
    relevant = relevant_of(test).only(candidates)
    log = split.test_log
    slices = _slices(dataset, split, log)
    named = dict(baseline_lists(dataset, split, log, parts, candidates, seed))
    named |= dict(rank_requests(folder, test, size, retriever, rankers, DEPTH))
    named["moon"] = named.pop("ranker_full")
    for name, ranked in named.items():
        shown = slices if name in ("moon", "item_knn", "mix", "ranker_id_only", "ranker_shuffled") else None
        yield from retrieval_quality(
            ranked, relevant, len(candidates), shown, split="test", prefix=f"retrieval/{name}"
        )
    evidence.retrieval(test, relevant, named)


def baseline_lists(
    dataset: Dataset,
    split: Split,
    log: pa.Table,
    parts: Mapping[str, pa.Table],
    candidates: np.ndarray,
    seed: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Answers of every baseline to the test requests; the mix is tuned on train requests with the earlier log."""
    tuning = parts["train"].slice(0, TUNING_REQUESTS)
    wanted = relevant_of(tuning).only(candidates)
    content = PlainContent.of(dataset.items, dataset.images)
    earlier = shop_baselines(content, split.fit_log, candidates, seed)
    tuned = tune_mix(
        {name: earlier[name] for name in MIXED if name in earlier},
        requests_of(log, tuning),
        wanted.offsets,
        wanted.item_id,
        exclude_history=True,
    )
    baselines = shop_baselines(content, log, candidates, seed)
    baselines["mix"] = Mix({name: baselines[name] for name in tuned.parts}, tuned.weights)
    requests = requests_of(log, parts["test"])
    for name, baseline in baselines.items():
        yield name, rank(baseline, requests, DEPTH, exclude_history=True)


def _slices(dataset: Dataset, split: Split, log: pa.Table) -> dict[str, np.ndarray]:
    items = dataset.items
    return item_slices(
        items["item_id"].to_numpy(),
        positive_events(log)["item_id"].to_numpy(),
        items["first_seen"].cast(pa.int64()).to_numpy(),
        int(split.fit_until.timestamp() * 1e6),
        items["image_id"].is_valid().to_numpy(),
    )


def _ctr(
    folder: Path,
    dataset: Dataset,
    split: Split,
    size: Size,
    retriever: Retriever,
    rankers: Mapping,
    evidence: Evidence,
) -> Iterator[Measurement]:
    """Click prediction of the ranker and its controls on logged test impressions, if there are any."""
    if not (pc.equal(split.ranking["part"], "test").to_numpy()).any():
        return
    scored = score_impressions(folder, split, size, retriever, rankers)
    log = split.test_log
    slices = {name: np.isin(scored.item_id, ids) for name, ids in _slices(dataset, split, log).items()}
    slices["new_user"] = ~scored.known_user
    for name, logits in scored.logits.items():
        chance = probabilities(logits)
        yield from ctr_quality(scored.label, chance, scored.user_id, slices, prefix=f"ctr/{name}")
    for name, chance in _truth(dataset, scored):
        for one in ctr_quality(scored.label, chance, scored.user_id, prefix=f"ctr/{name}"):
            if name == "truth" or one.name.endswith("auc"):
                yield one
    evidence.clicks(scored)


def relevance_measures(evidence: Evidence) -> Iterator[Measurement]:
    """AUC of the relevance head, and of the plain cosine, on judged pairs of a query and an item."""
    query, item, judged = judged_pairs(evidence.dataset, evidence.vectors, "test", evidence.seed)
    label = (judged > RELEVANT).astype(np.float32)
    folder = evidence.folder
    if not (folder / "relevance").exists() or len(np.unique(label)) < 2:
        return
    scores = {
        "head": Relevance.open(open_artifact(folder / "relevance", "relevance")).score(query, item),
        "cosine": np.einsum("pd,pd->p", query, item),
    }
    for name, values in scores.items():
        yield Measurement(f"relevance/{name}/auc", auc(label, values), len(label), "test judgements")


def _truth(dataset: Dataset, scored: Impressions) -> Iterator[tuple[str, np.ndarray]]:
    """The Bayes-optimal predictions: the true click probabilities, where data are simulated.

    Rankers do not know the position of a candidate, so their upper bound is ``truth_unplaced``: the probability of a
    click given that the user looks at the candidate.
    """
    if dataset.truth is None:
        return
    event, chance = dataset.truth["event_id"].to_numpy(), dataset.truth["click_probability"].to_numpy()
    order = np.argsort(event)
    true = chance[order[np.searchsorted(event[order], scored.event_id)]]
    yield "truth", true
    yield "truth_unplaced", np.minimum(true / EXAMINATION[scored.position], 1)


# Measurements of a run that need only its evidence. To add one, write a function like these and add a line here.
MEASURES: list[Callable[[Evidence], Iterator[Measurement]]] = [encoder_measures, relevance_measures]
