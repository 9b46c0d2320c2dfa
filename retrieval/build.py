"""Build the retrieval artifacts of a run: co-occurrence, words, the item index, the two-tower model and its index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import TIME
from dataset.extra import gone_since
from dataset.log import Log
from dataset.split import Split
from dataset.tables import Dataset
from feature_repo.frames.join import TrainingFrame, training_frame
from feature_repo.frames.logged import of_part
from feature_repo.services import RETRIEVAL
from feature_repo.vectors import Vectors, rows_of
from ranker.two_tower.train import TwoTower, train_two_tower
from retrieval.asked import Queries
from retrieval.cooccurrence import build_cooccurrence
from retrieval.counting import fit_counting
from retrieval.examples import answers_of, placeholders
from retrieval.fusion import EQUAL
from retrieval.fusion_weights import Known, learn_weights
from retrieval.index import ItemIndex, category_path
from retrieval.lifts import Lifts
from retrieval.properties import Properties
from retrieval.repeats import fit_repeats
from retrieval.retriever import Retriever, open_retrieval
from retrieval.shown import Rates, Shown
from retrieval.taken import Taken
from retrieval.taste import Taste
from retrieval.taste_files import Tastes, save_taste
from retrieval.trend import fit_half_life
from retrieval.word_vectors import WordVectors
from retrieval.words import Words
from run.artifacts import Artifact, discard, open_artifact
from run.sizes import Size

NO_USER = -1
REQUEST = ["request_id", "user_id", "time", "query_id", "item_id"]
TUNING_REQUESTS = 2_000
MOST_TAKEN = 200_000  # positives of the two-tower model: a bound on its time


def build_retrieval(folder: Path, dataset: Dataset, split: Split, size: Size, seed: int) -> None:
    """Write ``index``, ``words``, ``word_vectors``, ``taken``, ``taste``, ``fusion``, and what learns from the log.

    The index holds every item of the catalogue, with or without a vector. Where nothing says what was not liked,
    ``lifts`` takes the place of ``taste``. The two-tower models are left out where nobody took a second item.

    ``cooccurrence`` and ``two_tower`` learn from the split's ``test_log`` and answer test requests; ``..._fit`` learn
    from its ``fit_log`` and answer the ranker's training requests: nothing is learned that a request asks for.
    """
    embedding = open_artifact(folder / "embedding", "embedding")
    vectors = Vectors.open(embedding)
    parents = {"split": split.artifact}
    counting, counted = fit_counting(split.fit_log, seed)
    # By another protocol requests lie all over the log, and no one moment is their now.
    half_life, found = fit_half_life(split.fit_log, seed) if split.by == "time" else (None, {})
    reached = {"counting": counted, "trend": found}
    for name, log in (("cooccurrence", split.test_log), ("cooccurrence_fit", split.fit_log)):
        out = folder / name
        build_cooccurrence(log, out, parents, counting=counting, half_life_us=half_life, reached=reached)

    items = np.sort(dataset.items["item_id"].to_numpy())
    paths = _category_paths(dataset, items)
    ItemIndex.build(items, vectors.gather(items)[0], paths).save(folder / "index", {"embedding": embedding})
    words = Words.of(dataset.items)
    said = words.save(folder / "words", parents)
    made = WordVectors.of(words).save(folder / "word_vectors", {"words": said})
    if split.shows:
        build_taste(dataset, split, embedding, folder / "taste")
        discard(folder / "lifts")
    else:
        build_lifts(dataset, split, folder / "lifts")
        discard(folder / "taste")
    again, tried = fit_repeats(split.fit_log, seed) if split.repeats else (None, {})
    gone, since_us = gone_since(dataset.artifact)
    taken = replace(Taken.of(split.log, again), gone_item_id=gone, gone_us=since_us)
    taken.save(folder / "taken", parents, tried)

    content = WordVectors.open(made).vectors(words)
    catalogue = catalogue_frame(folder, split, items, size).take(0, 1).candidates
    for name, log in (("two_tower", split.test_log), ("two_tower_fit", split.fit_log)):
        index = name.replace("two_tower", "two_tower_index")
        positives = taken_next(log)
        if not len(positives):  # nothing to learn from: there is no two-tower source
            discard(folder / name)
            discard(folder / index)
            continue
        towers = train_two_tower(
            training_frame(folder / "store", positives, size.history, RETRIEVAL),
            content,
            catalogue,
            size,
            folder / name,
            parents={"split": split.artifact, "word_vectors": made},
            seed=seed,
        )
        matrix = TwoTower.open(towers, content).item_vectors(catalogue)
        ItemIndex.build(items, matrix, paths).save(folder / index, {"two_tower": towers})
    weigh_sources(folder, split, size, seed)


def weigh_sources(folder: Path, split: Split, size: Size, seed: int) -> None:
    """Write ``fusion``: the weights of the sources in the order of the candidates.

    They are learned from at most TUNING_REQUESTS of the training requests, answered by sources that learned from the
    log before them: from what was taken or, where the log says what was shown, from what of it was liked; what was
    rated is what users chose, and counts as taken. Split by ``last``, what validates is in nothing that answers tests
    either: there the very sources that answer tests are weighed by it, which have learned from more.
    """
    passed_over = split.shows and not split.rated
    weighs_served = split.by == "last" and not split.shows
    artifacts = open_retrieval(folder, fitted=not weighs_served)
    artifacts.pop("fusion", None)
    asked, known = (_shown if passed_over else _validating if weighs_served else _taken)(split, seed)
    weights, figures = EQUAL, dict[str, float]()
    if len(asked):
        retriever = Retriever.open(artifacts)
        frames = training_frame(folder / "store", asked, size.history, RETRIEVAL)
        answers = {source.name: answers_of(frames, source, retriever) for source in retriever.recommending}
        weights, figures = learn_weights(answers, known, seed)
    measure = "likes over expected" if passed_over else "ndcg"
    config = {"measure": measure, "reached": figures, "rated": split.rated}
    weights.save(folder / "fusion", {"split": split.artifact}, config)


def _taken(split: Split, seed: int) -> tuple[pa.Table, Known]:
    """Some training requests, one row each, and what was taken in them."""
    asked = split.retrieval.filter(pc.equal(split.retrieval["part"], "train"))
    asked = asked.take(_drawn(len(asked), seed)).combine_chunks()
    relevant = asked["relevant"].combine_chunks()
    request = pc.list_parent_indices(relevant).to_numpy()
    item_id = relevant.flatten().to_numpy()
    return placeholders(asked), Known(request, item_id, np.ones(len(item_id), dtype=bool))


def _validating(split: Split, seed: int) -> tuple[pa.Table, Known]:
    """Some validation requests, and what was taken in each."""
    asked = of_part(split.ranking, "valid")
    asked = asked.take(_drawn(len(asked), seed)).combine_chunks().select(REQUEST)
    item_id = asked["item_id"].to_numpy()
    return asked, Known(np.arange(len(asked)), item_id, np.ones(len(asked), dtype=bool))


def _shown(split: Split, seed: int) -> tuple[pa.Table, Known]:
    """Some training requests that asked for nothing, one row each, and what was made of what they were shown."""
    rows = of_part(split.ranking, "train")
    rows = rows.filter(rows["query_id"].is_null()).combine_chunks()
    _, first, request = np.unique(rows["request_id"].to_numpy(), return_index=True, return_inverse=True)
    drawn = _drawn(len(first), seed)
    place = rows_of(drawn, request)
    rows, place = rows.filter(pa.array(place >= 0)), place[place >= 0]
    rates = Rates.of(split.fit_log)
    whatever = replace(rates, items=np.zeros_like(rates.items))  # the chance at a place, not of an item
    liked = rows["label"].to_numpy() > 0
    known = Known(place, rows["item_id"].to_numpy(), liked, whatever.expected(rows))
    _, first = np.unique(place, return_index=True)
    return rows.take(first).select(REQUEST), known


def _drawn(count: int, seed: int) -> np.ndarray:
    """At most TUNING_REQUESTS of so many, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:TUNING_REQUESTS])


def build_taste(dataset: Dataset, split: Split, embedding: Artifact, out: Path) -> None:
    """Write the artifact ``taste``: its variances, directions and rates are learned from ``fit_log`` only."""
    properties = Properties.of(dataset.items, dataset.image_bytes)
    shown, learned = (Shown.of(log, split.fit_log) for log in (split.log, split.fit_log))
    queries = Queries.of(dataset.queries, properties, dataset.image_bytes)
    plain, blind = (Taste.fit(one, shown, learned) for one in (properties, properties.without_content()))
    vectors = Vectors.open(embedding).gather(properties.item_ids)[0]
    apart = embedding.config["width"] - max(embedding.config["widths"])  # after what prefixes are taken of
    whole = plain.with_vectors(properties.with_vectors(vectors), learned, apart)
    save_taste(Tastes(whole, plain, blind), queries, out, {"split": split.artifact, "embedding": embedding})


def build_lifts(dataset: Dataset, split: Split, out: Path) -> None:
    """Write the artifact ``lifts``, learned from ``fit_log`` only."""
    properties = Properties.of(dataset.items, lambda image_id: None)  # lifts read no pictures
    Lifts.fit(properties, split.fit_log).save(out, {"split": split.artifact})


def catalogue_frame(folder: Path, split: Split, item_ids: np.ndarray, size: Size) -> TrainingFrame:
    """One request without a user for every item, at the end of the log: the items' features as in serving."""
    count = len(item_ids)
    rows = pa.table(
        {
            "request_id": pa.array(np.zeros(count, np.int64)),
            "user_id": pa.array(np.full(count, NO_USER)),
            "time": pa.array([split.end] * count, TIME),
            "query_id": pa.nulls(count, pa.int64()),
            "item_id": pa.array(item_ids),
        }
    )
    return training_frame(folder / "store", rows, size.history, RETRIEVAL)


def taken_next(events: pa.Table, most: int = MOST_TAKEN) -> pa.Table:
    """What the two-tower model learns from: every item that a user newly liked after another, one request each.

    The request is made when the item was liked, so that its history ends before it.

    Args:
        events: EVENTS, no newer than what the model may know.
        most: of them at most, the newest.

    Returns:
        rows of ``feature_repo.frames.join.training_frame``, label 1, ordered by time.
    """
    log = Log.of(events)
    liked, first = log.likes
    row = np.sort(liked[first])
    _, opening = np.unique(log.user[row], return_index=True)
    row = np.delete(row, opening)[-most:]
    return pa.table(
        {
            "request_id": pa.array(np.arange(len(row))),
            "user_id": pa.array(log.user[row]),
            "time": pa.array(log.available_us[row]).cast(TIME),
            "query_id": pa.nulls(len(row), pa.int64()),
            "item_id": pa.array(log.item[row]),
            "label": pa.array(np.ones(len(row), np.float32)),
        }
    )


def _category_paths(dataset: Dataset, item_ids: np.ndarray) -> list[str]:
    path = dict(
        zip(
            dataset.items["item_id"].to_pylist(),
            (category_path(parts) for parts in dataset.items["category"].to_pylist()),
            strict=True,
        )
    )
    return [path[item_id] for item_id in item_ids.tolist()]
