"""How long /recommend takes while Redis refuses connections, hangs and recovers: the whole service on its own store.

The shop is simulated, its vectors are random and its ranker counts positive events; Feast, Redis, the readers,
retrieval and HTTP are real. Requests are passed to the application directly, as the HTTP server would.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from fastapi import FastAPI

from encoder.encode import Content
from evaluation.bench.frame import DAY_US, DAYS, START_US, simulated
from evaluation.bench.lines import Line, line, worst
from evaluation.bench.local_redis import RedisServer
from feature_repo.create import create_store
from feature_repo.frame import Frame
from feature_repo.online import OnlineReader
from feature_repo.store import materialize
from feature_repo.vectors import Vectors
from retrieval.index import ItemIndex
from retrieval.retriever import Retriever
from retrieval.search.search import Search
from retrieval.sources import PopularSource, SimilarSource, profile_source, query_source
from serving.app import create_app
from serving.catalogue import Catalogue
from serving.recommend import Recommender
from serving.settings import Settings

CLICKS, WIDTH, HISTORY = 6000, 16, 50
USER = 0  # the busiest
ROUNDS, ASKED, AT_ONCE = 5, 20, 20
REFUSED_GOAL, HUNG_GOAL, AT_ONCE_GOAL = 20.0, 150.0, 300.0  # milliseconds
END = datetime.fromtimestamp((START_US + (DAYS + 1) * DAY_US) / 1e6, UTC)


def bench_faults(folder: Path, clicks: int = CLICKS, rounds: int = ROUNDS) -> Iterator[Line]:
    """Measure the service while its Redis server refuses connections, hangs and recovers.

    Args:
        folder: an empty folder, for the store.
        clicks: number of clicks in the shop's log.
        rounds: repetitions of every fault; the slowest request is reported.

    Raises:
        AssertionError: a request fails, or has an unexpected answer.
    """
    with _quiet(logging.getLogger("moon.serving")), RedisServer("--dir", str(folder)) as server:
        app = service(folder / "store", server, clicks)
        faiss.omp_set_num_threads(1)  # as in ``moon serve``
        with _frozen_garbage_collector():
            yield line("/recommend: ms", _ms(whole(ask(app)) for _ in range(ASKED)))
            yield from _hanging(app, server, rounds)
            refused, again = [], []
            for _ in range(rounds):
                server.client().save()
                server.kill()
                refused += [fallen(ask(app)) for _ in range(ASKED)]
                server.restart()
                again.append(whole(ask(app)))
        yield worst("/recommend, Redis refuses: slowest request, ms", _ms(refused), REFUSED_GOAL)
        yield worst("/recommend, Redis restarted: slowest first request, in full, ms", _ms(again), HUNG_GOAL)


@contextmanager
def _quiet(log: logging.Logger) -> Iterator[None]:
    """Hide the warnings about Redis, which are expected here."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _frozen_garbage_collector() -> Iterator[None]:
    """As in ``moon serve``: the garbage collector leaves alone what is loaded, or it would delay some request."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _hanging(app: FastAPI, server: RedisServer, rounds: int) -> Iterator[Line]:
    first, later, back, crowd = [], [], [], []
    for _ in range(rounds):
        server.hang()
        first.append(fallen(ask(app)))
        later += [fallen(ask(app)) for _ in range(ASKED)]
        server.wake()
        back.append(whole(ask(app)))
        server.hang()
        crowd.append(fallen(ask(app, AT_ONCE)))
        server.wake()
        whole(ask(app))
    yield worst("/recommend, Redis hangs: slowest first request, ms", _ms(first), HUNG_GOAL)
    yield worst("/recommend, Redis hangs: slowest later request, ms", _ms(later), HUNG_GOAL)
    yield line("/recommend, Redis hangs: later request, ms", _ms(later))
    yield worst(f"/recommend, Redis hangs: slowest of {AT_ONCE} at once, ms", _ms(crowd), AT_ONCE_GOAL)
    yield worst("/recommend, Redis woke: slowest first request, in full, ms", _ms(back), HUNG_GOAL)


@dataclass(frozen=True)
class Answered:
    """One answer of the service: its latency in milliseconds and its body."""

    ms: float
    body: dict[str, Any]


def service(store_dir: Path, server: RedisServer, clicks: int = CLICKS) -> FastAPI:
    """The application over a simulated shop whose online store is this Redis server."""
    shop = simulated(clicks)
    create_store(store_dir, shop, shop, "redis", server.url())  # type: ignore[arg-type]
    materialize(store_dir, END)
    item_ids = shop.items.column("item_id").to_numpy()
    vectors = np.random.default_rng(0).normal(size=(len(item_ids), WIDTH)).astype(np.float32)
    index = ItemIndex.build(item_ids, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    clicked, users = np.unique(shop.log.column("item_id").to_numpy(), return_counts=True)
    retriever = Retriever(
        index=index,
        vectors=index,  # type: ignore[arg-type]
        personal=(SimilarSource(index, index), profile_source(index, index)),
        popular=PopularSource(clicked, users.astype(np.float32), index),
        query=query_source(index),
        artifacts={},
    )
    model = _Model()
    recommender = Recommender(
        retriever=retriever,
        reader=OnlineReader(store_dir, HISTORY),
        ranker=model,
        encoder=model,
        finder=Search.by_meaning(index),
        relevance=None,
        catalogue=Catalogue(shop.items, lambda _: None),
        artifacts={},
        now=lambda: END,
        behaviours=HISTORY,
    )
    return create_app(Settings(run=store_dir, profile="redis"), recommender)


def ask(app: FastAPI, at_once: int = 1) -> list[Answered]:
    """Ask for recommendations ``at_once`` times in parallel; latencies start with the first request.

    Raises:
        AssertionError: the service failed.
    """

    async def all_of_them() -> list[Answered]:
        began = time.perf_counter()
        return list(await asyncio.gather(*(_get(app, f"user_id={USER}&k=10", began) for _ in range(at_once))))

    return asyncio.run(all_of_them())


def whole(answers: Sequence[Answered]) -> Sequence[Answered]:
    """Assert that no answer has a fallback, and return them."""
    assert all(one.body["order"] == "ranker" and not one.body["fallbacks"] for one in answers), answers
    return answers


def fallen(answers: Sequence[Answered]) -> Sequence[Answered]:
    """Assert that all answers are popular items because the store is unavailable, and return them."""
    assert all(one.body["fallbacks"] == ["store_unavailable"] and one.body["hits"] for one in answers), (
        answers
    )
    return answers


class _Model:
    """Takes the place of ranker and encoder: ranks by positive events, and encodes everything as zeros."""

    history, order = HISTORY, None

    def score(self, frame: Frame, query_vectors: np.ndarray | None = None) -> np.ndarray:
        return frame.candidates.column("positive_all").to_numpy().astype(np.float32)

    def with_vectors(self, vectors: Vectors) -> _Model:
        return self

    def encode(self, contents: Sequence[Content]) -> np.ndarray:
        return np.zeros((len(contents), WIDTH), np.float32)


async def _get(app: FastAPI, query: str, began: float) -> Answered:
    status, body = 0, b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/recommend",
        "raw_path": b"/recommend",
        "root_path": "",
        "scheme": "http",
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost")],
        "server": ("shop", 80),
        "client": ("user", 1),
    }
    await app(scope, receive, send)
    ms = (time.perf_counter() - began) * 1e3
    assert status == 200, body
    return Answered(ms, json.loads(body))


def _ms(answers: Iterable[Sequence[Answered]]) -> list[float]:
    return [one.ms for some in answers for one in some]
