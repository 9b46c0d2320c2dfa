"""A tiny shop for the serving tests: even users like even items, and nothing in it is trained."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
from PIL import Image

from dataset.contracts import ITEMS, TIME
from dataset.pictures import decoded
from feature_repo.frame import Frame, History
from feature_repo.online import StoreUnavailable
from retrieval.index import ItemIndex
from retrieval.requests import history_of
from retrieval.retriever import Retriever
from retrieval.search.search import Search
from retrieval.sources import PopularSource, SimilarSource, profile_source, query_source
from serving.catalogue import Catalogue
from serving.recommend import Recommender

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ITEM_IDS = np.arange(40) * 10**15 + 7  # beyond what a browser's numbers hold, and no row numbers
EVEN, ODD = ITEM_IDS[::2], ITEM_IDS[1::2]
ARTIFACTS = {"encoder": "e" * 16, "index": "i" * 16, "ranker": "r" * 16}
WIDTH = 4
BEHAVIOURS = 6  # most behaviours that a ranker of this shop reads


def picture(kind="PNG", size=(8, 6)):
    """An encoded picture."""
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind)
    return out.getvalue()


def vectors_of(count):
    """Even items around one axis, odd ones around another; unit norm."""
    rng = np.random.default_rng(0)
    matrix = np.zeros((count, WIDTH), np.float32)
    matrix[np.arange(count), np.arange(count) % 2] = 1
    matrix += 0.05 * rng.normal(size=matrix.shape).astype(np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def paths_of(count):
    """Half the shop in each of two departments, one of them divided."""
    return ["Women" if row < 10 else "Women > Shoes" if row < 20 else "Men" for row in range(count)]


def items_table(item_ids, paths):
    """Catalogue rows; every third item has no picture, every fifth no title."""
    rows = [
        {
            "item_id": int(item_id),
            "external_id": str(item_id),
            "title": None if row % 5 == 4 else f"<item> {row}",
            "category": path.split(" > "),
            "attributes": [],
            "price": float("nan") if row == 1 else 1.5,
            "spu": row,
            "image_id": None if row % 3 == 2 else f"{row:016x}",
            "first_seen": NOW,
        }
        for row, (item_id, path) in enumerate(zip(item_ids, paths, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=ITEMS)


class FakeReader:
    """Users 0..9 bought three items of their parity; user 50 is known and has done nothing."""

    def __init__(self):
        self.available = True

    def read_user(self, user_id, time, query_id=None, context=None):
        if not self.available:
            raise StoreUnavailable("refused")
        self.context = context
        liked = (EVEN if user_id % 2 == 0 else ODD)[:3] if user_id < 10 else []
        requests = pa.table(
            {
                "request_id": [0],
                "user_id": pa.array([user_id], pa.int64()),
                "time": pa.array([time], TIME),
                "query_id": pa.array([None], pa.int64()),
                "user_found": [user_id < 10 or user_id == 50],
            }
        )
        nothing = pa.table({"item_id": pa.array([], pa.int64())})
        return Frame(
            requests, nothing, np.zeros(2, np.int64), replace(history_of(liked), code=np.full(len(liked), 3))
        )

    def reading(self, history):
        return self

    def with_candidates(self, user, item_ids):
        if not self.available:
            raise StoreUnavailable("refused")
        offsets = np.array([0, len(item_ids)], dtype=np.int64)
        return Frame(user.requests, pa.table({"item_id": np.asarray(item_ids)}), offsets, user.history)


class FakeRanker:
    """Prefers larger ids, so that its order is not the retrieval order; remembers what it was shown."""

    encoder = SimpleNamespace(inputs=SimpleNamespace(features=lambda side: ()))  # it reads none of the store
    history, order = BEHAVIOURS, None

    def __init__(self):
        self.fails = None
        self.frame = None

    def score(self, frame, query_vectors=None):
        self.frame, self.query_vectors = frame, query_vectors
        if self.fails == "raises":
            raise RuntimeError("boom")
        scores = frame.candidates["item_id"].to_numpy() / 1e15
        return np.full(len(scores), np.nan, np.float32) if self.fails == "nan" else scores.astype(np.float32)


class FakeEncoder:
    """Texts with the word even lie on the even axis; pictures on the odd one."""

    def encode(self, contents):
        for content in contents:
            if content.image is not None:
                decoded(content.image)
        return np.array(
            [[0, 1, 0, 0] if content.image is not None else [1, 0, 0, 0] for content in contents], np.float32
        )


class FakeRelevance:
    """The cosine, as a trained head might learn."""

    features = ()

    def score(self, query_vector, item_vectors, items):
        return item_vectors @ query_vector


def recommender(relevance=None):
    """A Recommender over the shop; its parts can be broken by the test."""
    paths = paths_of(len(ITEM_IDS))
    index = ItemIndex.build(ITEM_IDS, vectors_of(len(ITEM_IDS)), paths)
    retriever = Retriever(
        index=index,
        vectors=index,
        personal=(SimilarSource(index, index), profile_source(index, index)),
        popular=PopularSource(ITEM_IDS[:30], np.arange(30, 0, -1).astype(np.float32), index),
        query=query_source(index),
        artifacts={},
    )
    return Recommender(
        retriever=retriever,
        reader=FakeReader(),
        ranker=FakeRanker(),
        encoder=FakeEncoder(),
        finder=Search.by_meaning(index),
        relevance=relevance,
        catalogue=Catalogue(
            items_table(ITEM_IDS, paths), {f"{row:016x}": picture() for row in range(40)}.get
        ),
        artifacts=ARTIFACTS,
        now=lambda: NOW,
        behaviours=BEHAVIOURS,
        per_source=15,
        example_users=(0, 1),
    )


def namespace(**attributes):
    """An object with these attributes, where a whole dataset would be too much."""
    return SimpleNamespace(**attributes)


def empty_history():
    """The history of one user who has done nothing."""
    return History(np.zeros(2, np.int64), *(np.empty(0, np.int64) for _ in range(3)))
