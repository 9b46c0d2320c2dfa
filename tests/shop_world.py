"""A shop with a loaded store, on SQLite or Redis, and a recommender over it of which nothing is trained."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import redis
from conftest import DAY, START, TinyWorld, write_embedding

from dataset.shop_ids import ALL_INT64, Kinds
from encoder.pictures.decode import decode_image
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.online import OnlineReader
from feature_repo.shop_ids import shop_ids
from feature_repo.store import materialize, use_profile
from feature_repo.vectors import Vectors
from retrieval.cooccurrence import Cooccurrence, build_cooccurrence
from retrieval.index import ItemIndex, category_path
from retrieval.retriever import Parts, Retriever
from retrieval.search.search import Search, no_pictures
from retrieval.similarities import Categories
from retrieval.words import Words
from run.artifacts import Artifact
from serving.catalogue import Catalogue
from serving.live import Live
from serving.recommend import Recommender
from serving.settings import Settings

WIDTH, LOADED, NOW = 8, START + 58 * DAY, START + 60 * DAY


class Encoder:
    """A vector that depends on the first word of a title; raises, or gives NaN, where the title says so."""

    def __init__(self):
        self.given = []

    def encode(self, contents):
        self.given.extend(contents)
        for one in contents:
            if one.image is not None:
                decode_image(one.image, 8)
            if one.text == "boom":
                raise RuntimeError("the encoder failed")
        vectors = np.stack([vector_of(one.text or "") for one in contents])
        vectors[[one.text == "nan" for one in contents]] = np.nan
        return vectors


def vector_of(text: str) -> np.ndarray:
    """The vector of a text, float32 (WIDTH)."""
    seed = int.from_bytes(text.split(" ")[0].encode()[-4:] or b"0", "big")
    vector = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
    return vector / np.linalg.norm(vector)


class Ranker:
    """Prefers the last candidate."""

    history, order = 50, None

    def with_vectors(self, vectors):
        return self

    def score(self, frame, query_vectors=None):
        return np.arange(len(frame.candidates), dtype=np.float32)


class Towers:
    """Users and items on a circle."""

    def with_vectors(self, vectors):
        return self

    def item_vectors(self, items):
        angle = items["item_id"].to_numpy() % 7
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    def user_vectors(self, frame):
        return np.tile(np.float32([0.6, 0.8]), (len(frame), 1))


@dataclass(frozen=True)
class Shop:
    """A run folder with nothing in it but a loaded store, and what else a recommender is made of."""

    run: Path
    world: TinyWorld
    embedding: Artifact
    graph: Cooccurrence

    @property
    def store(self) -> Path:
        return self.run / "store"

    def copied(self, run: Path, redis_url: str | None = None) -> Shop:
        """A shop of its own, perhaps on another store, which is then empty."""
        shutil.copytree(self.run, run)
        if redis_url is not None:
            redis.Redis.from_url(redis_url).flushdb()
            use_profile(run / "store", "redis", redis_url)
        return replace(self, run=run)

    def opened(self, only: np.ndarray | None = None, embedding: Artifact | None = None) -> Recommender:
        """A recommender as it is opened, before it knows what the store holds; ``only``: of these items."""
        embedding = embedding or self.embedding
        vectors = Vectors.open(embedding)
        paths = [category_path(parts) for parts in self.world.dataset.items["category"].to_pylist()]
        index = ItemIndex.build(vectors.ids, vectors.matrix, paths)
        places = Towers().item_vectors(self.world.dataset.items)
        tower_index = ItemIndex.build(vectors.ids, places, paths)
        words = Words.of(self.world.dataset.items)
        parts = Parts(self.graph, Towers(), tower_index.only(only), Categories.of(index), words)
        ids = shop_ids(self.store)
        return Recommender(
            retriever=Retriever._of(index.only(only), vectors, parts, {}),
            reader=OnlineReader(self.store, 7),
            ranker=Ranker(),
            encoder=Encoder(),
            finder=Search.of(self.world.dataset.items, no_pictures(index), index.only(only)),
            relevance=None,
            catalogue=Catalogue(self.world.dataset.items, {}.get, ids),
            artifacts={"embedding": embedding.id},
            now=lambda: NOW,
            behaviours=7,
            ids=ids,
        )

    def live(self, **changes) -> Live:
        """A service of this shop, as another process would start it."""
        live = Live(self.opened(**changes), Settings(run=self.run))
        live._read_states(self.store)
        live.look()
        return live


def make_shop(
    folder: Path,
    world: TinyWorld,
    redis_url: str | None = None,
    loaded: bool = True,
    id_kinds: Kinds = ALL_INT64,
) -> Shop:
    """A shop in ``folder``."""
    profile = "embedded" if redis_url is None else "redis"
    if redis_url is not None:
        redis.Redis.from_url(redis_url).flushdb()
    create_store(folder / "store", world.dataset, world.split, profile, redis_url, id_kinds)
    artifact = write_embedding(folder / "e", world, WIDTH, START + 10 * DAY)
    publish_embedding(folder / "store", artifact)
    if loaded:
        materialize(folder / "store", LOADED)
    graph = Cooccurrence.open(build_cooccurrence(world.split.log, folder / "c", {}))
    return Shop(folder, world, artifact, graph)


def ids_of(answer) -> list[int]:
    return [hit.card.item_id for hit in answer.hits]


def at(days: float) -> datetime:
    return START + days * DAY
