"""What it costs to make the ranker's training batches from a frame, beside the training steps on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from evaluation.bench.frame import HISTORY, Shop, simulated
from evaluation.bench.lines import Line, cpu_seconds, line, ratio
from feature_repo.create import create_store
from feature_repo.frame import StoredRequests
from feature_repo.frames.join import training_frame
from feature_repo.vectors import Vectors, VectorTable
from ranker.inputs.batch import Batch
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.inputs.rules.side_by_side import one_by_one
from ranker.losses import training_loss
from ranker.model import ClickModel
from ranker.recipes import Recipe, cube
from ranker.score import CtrConfig
from run.sizes import SIMULATED, size

CLICKS, REQUESTS, SHOWN, WIDTH = 100_000, 2_000, 10, 64
ROUNDS, OFTEN = 40, 20
RATE = 1e-3  # of the dense weights and of the tables


def bench_batches(folder: Path, clicks: int = CLICKS, rounds: int = ROUNDS) -> Iterator[Line]:
    """Make batches of 512 candidates with histories of a simulated log, and train on them, in turns.

    Args:
        folder: an empty folder, for the store.
        clicks: number of clicks in the log.
        rounds: batches measured.
    """
    nano, shop = size(SIMULATED), simulated(clicks)
    create_store(folder / "store", shop, shop)  # type: ignore[arg-type]
    frame = training_frame(folder / "store", _requests(shop), min(nano.history, HISTORY))
    model, encoder = built(frame, drawn_vectors(shop), nano.history, cube())
    draw = np.random.default_rng(0)
    costs: dict[str, list[float]] = {"select": [], "make": [], "step": [], "stacked": [], "one": []}
    asked = nano.ranker_slots // SHOWN
    for number in range(rounds + 2):  # the first two warm up
        rows = draw.permutation(len(frame))[:asked]
        taken = frame.select(rows)
        batch = encoder.batch(taken)
        table, time_us = taken.candidates, np.zeros(len(taken.candidates), np.int64)
        calls: dict[str, Callable[[], object]] = {
            "select": partial(frame.select, rows),
            "make": partial(encoder.batch, taken),
            "step": partial(_step, model, batch),
            "stacked": partial(_often, partial(encoder.numbers, "candidate", table, time_us)),
            "one": partial(_often, partial(one_by_one, encoder.inputs.numbers("candidate"), table, time_us)),
        }
        spent = {name: cpu_seconds(call) for name, call in calls.items()}
        if number >= 2:
            for name, seconds in spent.items():
                costs[name].append(1000 * seconds)
    title = f"training batch of {asked * SHOWN} candidates"
    yield line(f"{title}: CPU-ms to take its rows", costs["select"])
    yield line(f"{title}: CPU-ms to make it from them", costs["make"])
    yield line(f"{title}: CPU-ms of the training step on it", costs["step"])
    yield ratio(
        f"{title}: numbers one after the other, times all at once", costs["one"], costs["stacked"], None
    )


def built(
    frame: StoredRequests, vectors: Vectors, length: int, chosen: Recipe
) -> tuple[ClickModel, FrameEncoder]:
    """An untrained model of the simulated shop's size, always with the same weights, and its encoder."""
    inputs, _ = learn_inputs(frame, length)
    torch.manual_seed(0)
    config = CtrConfig(
        recipe=chosen,
        inputs=inputs,
        id_width=size(SIMULATED).id_width,
        content_width=WIDTH,
        embedding_id=vectors.id,
        loss="pointwise",
        learning_rate=RATE,
        table_learning_rate=RATE,
    )
    return config.build(), FrameEncoder(inputs, vectors, chosen.search)


def _often(call: Callable[[], object]) -> None:
    """So often that what was in the processor's caches before does not count."""
    for _ in range(OFTEN):
        call()


def _step(model: ClickModel, batch: Batch) -> None:
    training_loss(model, batch, "pointwise").backward()


def _requests(shop: Shop) -> pa.Table:
    """Slates of items drawn from the log's clicks, at the times of clicks, one item in eight clicked."""
    draw = np.random.default_rng(1)
    asked = shop.log.take(np.sort(draw.choice(len(shop.log), min(REQUESTS, len(shop.log)), replace=False)))
    each = np.repeat(np.arange(len(asked)), SHOWN)
    items = shop.log["item_id"].to_numpy()[draw.integers(0, len(shop.log), len(each))]
    return pa.table(
        {
            "request_id": each,
            "user_id": asked["user_id"].take(each),
            "time": asked["event_time"].take(each),
            "query_id": pa.nulls(len(each), pa.int64()),
            "item_id": items,
            "label": (draw.random(len(each)) < 1 / 8).astype(np.float32),
        }
    )


def drawn_vectors(shop: Shop) -> Vectors:
    """A random unit vector of each item."""
    ids = np.sort(shop.items["item_id"].to_numpy())
    matrix = np.random.default_rng(2).normal(size=(len(ids), WIDTH)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    nobody = VectorTable(ids[:0], matrix[:0])
    return Vectors(ids, matrix, queries=nobody, id="drawn")
