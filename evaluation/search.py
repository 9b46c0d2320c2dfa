"""How well searches are answered: by one word, a title, several values, a photo, and as judges said.

Every search is answered by the service's own code, and by plain methods beside it. At most ASKED searches of a kind
are drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc

from dataset.identity import stable_hash
from dataset.marketplace.catalogue import FACETS
from dataset.ndcg import ndcg
from dataset.pictures import decoded
from dataset.tables import Dataset
from encoder.encode import Encoder, query_encoder
from evaluation.metrics import Measurement
from evaluation.plain_search import Scores, plain_methods
from evaluation.sheets import Evidence
from evaluation.truth import Judge
from retrieval.index import ItemIndex
from retrieval.search.choose import judged_queries, nonsense, title_words
from retrieval.search.judge import open_judge
from retrieval.search.open import open_search
from retrieval.search.search import Asked
from retrieval.search.spelling import folded, words_of
from run.artifacts import open_artifact

ASKED = 100
DEPTH = 10
FIRST = 5  # answers to a word that count
VALUES = 3  # values in a search for several: a colour, a pattern and a kind
SMALLER, QUALITY = 0.75, 40  # a photo as somebody may have kept it: its side, and its JPEG quality

CANDIDATES = 100  # as in the service
PARTS = {
    "encoder": "encoder", "index": "index", "search": "search", "picture_index": "index", "relevance": "relevance",
}  # fmt: skip
T = TypeVar("T")
Answer = Callable[
    [str | None, bytes | None], np.ndarray | None
]  # the first DEPTH ids, int64; None: it cannot


@dataclass(frozen=True)
class Search:
    """A search and what answers it.

    Attributes:
        text, image: what is asked; one is None.
        grades: item -> how well it answers, above 0 to 1; other items do not.
        true: the same by what items truly are, where the shop is simulated, not by what the catalogue says of them;
            empty: not known.
    """

    text: str | None
    image: bytes | None
    grades: Mapping[int, float]
    true: Mapping[int, float] = field(default_factory=dict)


def search_measures(evidence: Evidence) -> Iterator[Measurement]:
    """``search/<method>/<kind>/<metric>`` of ours, ``moon``, and of plain methods; n = searches.

    Kinds: ``one_word``, a word of a category or an attribute (precision@5); ``title`` and ``photo``, an item's own,
    and ``photo_smaller``, shrunk and compressed again; ``values``, three values of an item (the fraction of searches
    whose first answer is right); ``judged_text`` and ``judged_picture`` (NDCG@10); ``nonsense`` (the fraction that
    ours answers with nothing). Of ``one_word`` and ``values`` in a simulated shop, ``true_...`` counts as right what
    truly has the values, listed or not.
    """
    dataset, rng = evidence.dataset, np.random.default_rng(evidence.seed)
    methods = dict(_methods(evidence))
    for kind, asked in searches(dataset, rng).items():
        metric, judge = METRICS.get(kind, RIGHT)
        for name, answer in methods.items() if asked else ():
            answers = [answer(one.text, one.image) for one in asked]
            answered = [(ids, one) for ids, one in zip(answers, asked, strict=True) if ids is not None]
            values = [judge(ids, one.grades) for ids, one in answered]
            true = [judge(ids, one.true) for ids, one in answered if one.true]
            split = "test judgements" if kind.startswith("judged") else "the catalogue"
            for prefix, found in (("", values), ("true_", true)):
                if found:
                    what = f"search/{name}/{kind}/{prefix}{metric}"
                    yield Measurement(what, float(np.mean(found)), len(found), split)
    words = title_words(dataset.items)
    if words:
        answers = [methods["moon"](text, None) for text in nonsense(words, ASKED, rng)]
        empty = float(np.mean([not len(ids) for ids in answers if ids is not None]))
        yield Measurement("search/moon/nonsense/empty", empty, ASKED, "words with shuffled letters")


def _precision(ids: np.ndarray, grades: Mapping[int, float]) -> float:
    return sum(item in grades for item in ids[:FIRST].tolist()) / FIRST


def _first(ids: np.ndarray, grades: Mapping[int, float]) -> float:
    return float(len(ids) > 0 and int(ids[0]) in grades)


def _graded(ids: np.ndarray, grades: Mapping[int, float]) -> float:
    return ndcg(ids, grades, DEPTH)


RIGHT = ("first", _first)
METRICS = {
    "one_word": (f"precision@{FIRST}", _precision),
    "judged_text": (f"ndcg@{DEPTH}", _graded),
    "judged_picture": (f"ndcg@{DEPTH}", _graded),
}


def _methods(evidence: Evidence) -> Iterator[tuple[str, Answer]]:
    """Ours, as the service answers, and the plain methods."""
    folder, dataset = evidence.folder, evidence.dataset
    artifacts = {
        name: open_artifact(folder / name, kind) for name, kind in PARTS.items() if (folder / name).exists()
    }
    encode = query_encoder(Encoder.open(artifacts["encoder"], dataset))
    index = ItemIndex.open(artifacts["index"])
    ours, judge = open_search(artifacts, dataset.items, index), None
    if "relevance" in artifacts:
        judge = open_judge(artifacts["relevance"], folder / "store", evidence.split.end)
    yield "moon", lambda text, image: ours.find(Asked.of(encode, text, image), CANDIDATES, judge).ids[:DEPTH]
    for name, (ids, scores) in plain_methods(dataset, index, encode).items():
        yield name, partial(_best, ids, stable_hash(ids), scores)


def _best(
    ids: np.ndarray, tie: np.ndarray, scores: Scores, text: str | None, image: bytes | None
) -> np.ndarray | None:
    """The first DEPTH items of a plain method that score at all; ties are ordered by a hash."""
    score = scores(text, image)
    if score is None:
        return None
    worth = np.flatnonzero(score > 0)
    if len(worth) > DEPTH:
        least = np.partition(score[worth], -DEPTH)[-DEPTH]
        worth = worth[score[worth] >= least]
    return ids[worth[np.lexsort((tie[worth], -score[worth]))][:DEPTH]]


def searches(dataset: Dataset, rng: np.random.Generator) -> dict[str, list[Search]]:
    """Kind -> searches, at most ASKED of each; empty where the data has nothing to ask so."""
    items = dataset.items.select(["item_id", "title", "category", "attributes", "image_id"]).to_pylist()
    photos = [
        (row["item_id"], dataset.image_bytes(row["image_id"]), row["image_id"])
        for row in _some([row for row in items if row["image_id"] is not None], rng)
    ]
    of_image = _items_by([(row["image_id"], row["item_id"]) for row in items if row["image_id"] is not None])
    true = true_values(dataset)
    return {
        "one_word": _one_word(items, true, rng),
        "title": _titles(items, rng),
        "values": _values(items, true, rng),
        "photo": [Search(None, picture, of_image[image]) for _, picture, image in photos if picture],
        "photo_smaller": [
            Search(None, kept_smaller(picture), of_image[image]) for _, picture, image in photos if picture
        ],
        **{
            f"judged_{kind}": [
                Search(*one) for one in _some(list(judged_queries(dataset, _tested(dataset), column)), rng)
            ]
            for kind, column in (("text", "text"), ("picture", "image_id"))
        },
    }


def true_values(dataset: Dataset) -> list[tuple[str, int]]:
    """(value, item) of all that items of a simulated shop truly are; empty for others."""
    if dataset.truth is None:
        return []
    catalogue = Judge.of(dataset).world.catalogue
    return [
        (folded(values[number]), int(item))
        for column, values in enumerate(FACETS.values())
        for item, number in zip(catalogue.item_id, catalogue.facet[:, column], strict=True)
    ]


def _one_word(
    items: Sequence[dict], true: Sequence[tuple[str, int]], rng: np.random.Generator
) -> list[Search]:
    """Words of categories and attributes, of titles where there are neither, that FIRST items have or more."""
    said = [(word, row["item_id"]) for row in items for value in _values_of(row) for word in words_of(value)]
    if not said:
        said = [(word, row["item_id"]) for row in items for word in words_of(row["title"])]
    having = {word: found for word, found in _items_by(said).items() if len(found) >= FIRST}
    truly = _items_by([(word, item) for value, item in true for word in words_of(value)])
    return [Search(word, None, having[word], truly.get(word, {})) for word in _some(sorted(having), rng)]


def _titles(items: Sequence[dict], rng: np.random.Generator) -> list[Search]:
    titled = [(" ".join(words_of(row["title"])), row) for row in items if words_of(row["title"])]
    having = _items_by([(title, row["item_id"]) for title, row in titled])
    return [Search(row["title"], None, having[title]) for title, row in _some(titled, rng)]


def _values(items: Sequence[dict], true: Sequence[tuple[str, int]], rng: np.random.Generator) -> list[Search]:
    """Searches for what an item is and two more of its values: right are the items that have all of them."""
    values = {row["item_id"]: [folded(value) for value in dict.fromkeys(_values_of(row))] for row in items}
    having = _items_by([(value, item) for item, some in values.items() for value in some])
    truly, asked = _items_by(true), []
    for item in _some([item for item, some in values.items() if len(some) >= VALUES], rng):
        *others, kind = values[item]
        chosen = [*(others[place] for place in rng.permutation(len(others))[: VALUES - 1]), kind]
        right, is_so = (
            set.intersection(*(set(found.get(value, ())) for value in chosen)) for found in (having, truly)
        )
        asked.append(Search(" ".join(chosen), None, *(dict.fromkeys(some, 1.0) for some in (right, is_so))))
    return asked


def _values_of(row: dict) -> list[str]:
    """The values of an item's attributes, then what it is: the last part of its category."""
    attributes = [value for _, value in row["attributes"] or () if value]
    return [*attributes, *row["category"][-1:]]


def _items_by(pairs: Sequence[tuple[str, int]]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for key, item in pairs:
        found.setdefault(key, {})[item] = 1.0
    return found


def _some(rows: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [rows[row] for row in np.sort(rng.permutation(len(rows))[:ASKED]).tolist()]


def _tested(dataset: Dataset) -> np.ndarray:
    judged = dataset.judgements
    return np.unique(judged.filter(pc.equal(judged["part"], "test"))["query_id"].to_numpy())


def kept_smaller(picture: bytes) -> bytes:
    """The picture as somebody may have kept it: smaller, and compressed again."""
    image = decoded(picture)
    width, height = (max(1, round(SMALLER * side)) for side in image.size)
    out = io.BytesIO()
    image.resize((width, height)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
