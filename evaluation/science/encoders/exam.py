"""The encoder benchmark: one exam for all encoders, and a run of all its tasks.

An encoder is any function from contents to vectors. Each view of an item is encoded once for all tasks, so a run
costs about as much as encoding 10,000 contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.tables import Dataset
from encoder.content import Content, item_content, query_content
from evaluation.encoder_quality import effective_rank
from evaluation.encoder_tasks import (
    Encode,
    Truth,
    classification,
    pool_retrieval,
    query_retrieval,
    together,
    variants,
)
from evaluation.facets import Facets, remembered
from evaluation.metrics import Measurement
from evaluation.science.encoders.held_out import USERS, BenchmarkSplit, purchases, whole_items
from evaluation.science.encoders.model_free import unit
from feature_repo.embedding_check import anisotropy

PROBE_ITEMS = 4_000  # training items of the classifiers
RELEVANT = 0.5  # judgements above this are positives
BLANK: dict[str, Any] = {"title": None, "description": None, "category": [], "attributes": []}
VIEWS = ("item", "image", "text", "title", "shown")


@dataclass(frozen=True)
class Exam:
    """Contents to encode and the ground truth, the same for every encoder.

    Attributes:
        pool: view -> contents of the pool items.
        same_product, bought: ground truths among the pool items.
        learn: pictures with titles of the classifiers' training items.
        learn_whole: the same items with all of their text.
        facets: labels to predict: categories, attributes and prices.
        queries, kind: held-out searches, and the modalities of each.
        candidates: complete items, the candidates of the searches.
        found: ground truth of the searches.
    """

    pool: dict[str, list[Content]]
    same_product: Truth
    bought: Truth
    learn: list[Content]
    learn_whole: list[Content]
    facets: Facets
    queries: list[Content]
    kind: list[str]
    candidates: list[Content]
    found: Truth

    @classmethod
    def of(cls, dataset: Dataset, bench: BenchmarkSplit) -> Exam:
        """Read the benchmark's contents and ground truths."""
        items = dataset.items
        item_id, spu = items["item_id"].to_numpy(), items["spu"].to_numpy()
        pool_rows = _records(dataset, bench.pool_items)
        place = np.flatnonzero(np.isin(item_id, bench.pool_items))
        ids, product = item_id[place], spu[place]
        pairs, users = together(*purchases(dataset.events, ids, np.arange(len(ids))))
        across = pairs[(users >= USERS) & (product[pairs[:, 0]] != product[pairs[:, 1]])]
        rng = np.random.default_rng(bench.split.artifact.config["seed"])
        whole = np.intersect1d(bench.train_items, whole_items(items))
        learn_rows = _records(dataset, np.sort(rng.permutation(whole)[:PROBE_ITEMS]))
        queries, kind, candidates, found = _searches(dataset)
        return cls(
            pool={name: [_view(dataset, row, name) for row in pool_rows] for name in VIEWS},
            same_product=variants(product),
            bought=Truth.of(
                np.concatenate([across[:, 0], across[:, 1]]),
                np.concatenate([across[:, 1], across[:, 0]]),
                len(ids),
            ),
            learn=[_view(dataset, row, "shown") for row in learn_rows],
            learn_whole=[_view(dataset, row, "item") for row in learn_rows],
            facets=Facets.of(learn_rows, pool_rows),
            queries=queries,
            kind=kind,
            candidates=candidates,
            found=found,
        )


def _records(dataset: Dataset, item_ids: np.ndarray) -> list[dict[str, Any]]:
    """Rows of the items as Python values, in the dataset's order."""
    return dataset.items.filter(pc.is_in(dataset.items["item_id"], pa.array(item_ids))).to_pylist()


def _view(dataset: Dataset, row: Mapping[str, Any], name: str) -> Content:
    """A view of an item; "shown" is picture and title, the input of the classifiers."""
    picture = None if name in ("text", "title") else dataset.image_bytes(row["image_id"])
    known = {
        "item": row,
        "text": row,
        "image": {**row, **BLANK},
        "title": {**row, **BLANK, "title": row["title"]},
        "shown": {**row, **BLANK, "title": row["title"]},
    }
    return item_content(known[name], picture)


def _searches(dataset: Dataset) -> tuple[list[Content], list[str], list[Content], Truth]:
    """Queries with a relevant item in part "test", and every item judged in that part as a candidate."""
    test = dataset.judgements.filter(pc.equal(dataset.judgements["part"], "test"))
    rows = _records(dataset, test["item_id"].to_numpy())
    candidate = {row["item_id"]: place for place, row in enumerate(rows)}
    positive = test.filter(pc.greater(test["relevance"], RELEVANT))
    asked = dataset.queries.filter(pc.is_in(dataset.queries["query_id"], positive["query_id"])).to_pylist()
    place = {row["query_id"]: number for number, row in enumerate(asked)}
    pairs = [
        (place[query], candidate[item])
        for query, item in zip(positive["query_id"].to_pylist(), positive["item_id"].to_pylist(), strict=True)
    ]
    query, item = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    contents = [query_content(row, dataset.image_bytes(row["image_id"])) for row in asked]
    kind = [
        "text_and_image" if one.image and one.words else "image" if one.image else "text" for one in contents
    ]
    return (
        contents,
        kind,
        [_view(dataset, row, "item") for row in rows],
        Truth.of(query, item, len(asked)),
    )


@dataclass(frozen=True)
class Vectors:
    """An encoder's vectors for an exam; zeros where a content is empty.

    Attributes:
        pool: view -> float32 (N, D).
        learn, learn_whole: float32 (T, D).
        names: question -> float32 (C, D), vectors of its classes' names; categories only.
        queries, candidates: float32 (Q, D), (M, D).
    """

    pool: dict[str, np.ndarray]
    learn: np.ndarray
    learn_whole: np.ndarray
    names: dict[str, np.ndarray]
    queries: np.ndarray
    candidates: np.ndarray

    @classmethod
    def of(cls, encode: Encode, exam: Exam) -> Vectors:
        """Encode every content of the exam once."""
        names = {
            question.name: _encoded(encode, [query_content({"text": name}) for name in question.classes])
            for question in exam.facets.labels
            if question.name.startswith("category_")
        }
        return cls(
            pool={name: _encoded(encode, contents) for name, contents in exam.pool.items()},
            learn=_encoded(encode, exam.learn),
            learn_whole=_encoded(encode, exam.learn_whole),
            names=names,
            queries=_encoded(encode, exam.queries),
            candidates=_encoded(encode, exam.candidates),
        )

    def prefix(self, width: int) -> Vectors:
        """The first ``width`` numbers of every vector, normalised (Matryoshka)."""

        def cut(vectors: np.ndarray) -> np.ndarray:
            return unit(vectors[:, :width])

        return Vectors(
            pool={name: cut(vectors) for name, vectors in self.pool.items()},
            learn=cut(self.learn),
            learn_whole=cut(self.learn_whole),
            names={name: cut(vectors) for name, vectors in self.names.items()},
            queries=cut(self.queries),
            candidates=cut(self.candidates),
        )


def _encoded(encode: Encode, contents: Sequence[Content]) -> np.ndarray:
    """Encode contents, float32 (n, D); those without picture and text get zeros without calling the encoder."""
    full = [place for place, content in enumerate(contents) if not content.is_empty]
    made = encode([contents[place] for place in full])
    out = np.zeros((len(contents), made.shape[1]), dtype=np.float32)
    out[full] = made
    return out


def measure(exam: Exam, vectors: Vectors, prefix: str = "encoder") -> Iterator[Measurement]:
    """Every task of ``evaluation.encoder_tasks``, then anisotropy and effective rank of the pool."""
    split = f"{len(exam.pool['item'])} held-out items"
    if exam.pool["item"]:
        yield from pool_retrieval(vectors.pool, exam.same_product, exam.bought, split, prefix)
    if exam.queries:
        searched = f"test queries among {len(exam.candidates)} items"
        yield from query_retrieval(
            exam.kind, vectors.queries, vectors.candidates, exam.found, searched, prefix
        )
    found: list[Measurement] = []
    for question in exam.facets.labels:
        found += classification(
            question,
            vectors.learn,
            vectors.pool["shown"],
            vectors.names.get(question.name),
            split,
            prefix,
        )
    yield from found
    yield from _attribute_means(found, split, prefix)
    yield from remembered(exam.facets, vectors.learn_whole, vectors.pool["item"], split, prefix)
    present = vectors.pool["item"][vectors.pool["item"].any(axis=1)]
    if len(present) > 1:
        yield Measurement(f"{prefix}/anisotropy", anisotropy(present), len(present), split)
        yield Measurement(f"{prefix}/effective_rank", effective_rank(present), len(present), split)


def _attribute_means(found: Sequence[Measurement], split: str, prefix: str) -> Iterator[Measurement]:
    """MBE's single figure for attributes: the mean over attributes; n = total number of predictions."""
    for base in (prefix, f"{prefix}/chance"):
        for metric in ("accuracy", "macro_precision", "macro_recall", "macro_f1"):
            ours = [
                one
                for one in found
                if one.name.startswith(f"{base}/attribute_") and one.name.endswith(f"/probe/{metric}")
            ]
            if ours:
                value = float(np.mean([one.value for one in ours]))
                yield Measurement(
                    f"{base}/attributes/probe/{metric}", value, sum(one.n for one in ours), split
                )


def run_benchmark(encode: Encode, exam: Exam, widths: Sequence[int] = ()) -> list[Measurement]:
    """Measure one encoder.

    Args:
        encode: contents (never empty ones) -> float32 (n, D), unit rows; zeros for contents it cannot encode.
        exam: ``Exam.of(dataset, bench)``, the same for all encoders.
        widths: Matryoshka prefixes to measure as well, as ``encoder/width_<w>/...``.
    """
    vectors = Vectors.of(encode, exam)
    found = list(measure(exam, vectors, "encoder"))
    for width in widths:
        found += measure(exam, vectors.prefix(width), f"encoder/width_{width}")
    return found
