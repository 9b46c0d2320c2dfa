"""What a longer history costs the ranker, in training and in scoring, beside the same model on padded samples.

The histories are gathered by pointers from a store's event log. On padded samples each candidate is a request of its
own and brings its own copy of the history, as it does in libraries that store sequences in the samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from dataset.contracts import TIME
from dataset.jagged import owners
from evaluation.bench.batches import RATE, built, drawn_vectors
from evaluation.bench.frame import Shop, simulated
from evaluation.bench.lines import Line, cpu_seconds, line, line_below, ratio, worst
from feature_repo.create import create_store
from feature_repo.frame import Frame, StoredRequests
from feature_repo.frames.join import training_frame
from feature_repo.vectors import Vectors
from ranker.inputs.batch import Batch
from ranker.inputs.frame_encoder import FrameEncoder, select_requests
from ranker.inputs.id_tables import is_table
from ranker.learner import Learner
from ranker.losses import training_loss
from ranker.model import ClickModel
from ranker.ranks import ALL, AT_ONCE
from ranker.recipes import cube, recipe
from ranker.score import Ranker
from run.sizes import SIMULATED, size

CLICKS, USERS, CATEGORIES = 600_000, 50, 50
SHOWN, BATCHES, TURNS, ROUNDS = 10, 4, 5, 12
LENGTHS, LONG = (50, 200, 1000), (50, 200, 1000, 10_000)
SEARCHING = ("sim_hard", "sim_soft", "twin", "muse")
SCORED, AT = 500, 200  # candidates of the request that is scored, and its behaviours
TRAINING_GOAL, SCORING_GOAL, SCORING_MS, EXACT = 5.0, 9.0, 8.0, 1e-5


@dataclass(frozen=True)
class Timed:
    """CPU-seconds of a batch, of each round."""

    make: list[float]
    step: list[float]

    @property
    def both(self) -> list[float]:
        """Making a batch and training on it."""
        return [one + other for one, other in zip(self.make, self.step, strict=True)]


def bench_lengths(lengths: tuple[int, ...] = LENGTHS, long: tuple[int, ...] = LONG) -> Iterator[Line]:
    """Train and score with histories of some lengths.

    Args:
        lengths: with which the default recipe is trained.
        long: with which the recipes that search a history are trained and score a request.
    """
    with tempfile.TemporaryDirectory(prefix="moon_bench_") as name:
        shop, store = long_shop(), Path(name) / "store"
        create_store(store, shop, shop)  # type: ignore[arg-type]
        vectors = drawn_vectors(shop)
        for length in lengths:
            yield from _training(training_frame(store, slates(shop, SHOWN), length), vectors, length)
        few = slates(shop, SCORED, requests=3)
        yield from _scoring(training_frame(store, few, AT), vectors)
        for length in long:
            many = training_frame(store, slates(shop, SHOWN), length)
            yield from _searching(training_frame(store, few, length), many, vectors, length)


def long_shop() -> Shop:
    """Clicks of few users, as many of each, on items of a few categories."""
    shop = simulated(CLICKS)
    items = _with(shop.items, "category", [f"c{one % CATEGORIES}" for one in range(len(shop.items))])
    log = _with(shop.log, "user_id", np.arange(len(shop.log)) % USERS)
    return Shop(items, shop.users, shop.queries, log)


def _with(table: pa.Table, name: str, values: Sequence[str] | np.ndarray) -> pa.Table:
    """The table with other values in a column."""
    place = table.column_names.index(name)
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(values, field.type))


def slates(shop: Shop, shown: int, requests: int | None = None) -> pa.Table:
    """Requests after the last click, each of another user or of all in turn, for items drawn from the clicks."""
    count = requests or BATCHES * (size(SIMULATED).ranker_slots // shown)
    draw, each = np.random.default_rng(1), np.repeat(np.arange(count), shown)
    last_us = int(shop.log["available_time"].cast(pa.int64()).to_numpy()[-1])
    items = shop.log["item_id"].to_numpy()[draw.integers(0, len(shop.log), len(each))]
    return pa.table(
        {
            "request_id": each,
            "user_id": each % USERS,
            "time": pa.array(last_us + 60_000_000 + each).cast(TIME),
            "query_id": pa.nulls(len(each), pa.int64()),
            "item_id": items,
            "label": (draw.random(len(each)) < 1 / 8).astype(np.float32),
        }
    )


def apart(frame: Frame) -> Frame:
    """Each candidate as a request of its own, with a copy of the history."""
    each = owners(frame.offsets)
    copied = select_requests(frame, each)
    return replace(copied, candidates=frame.candidates, offsets=np.arange(len(each) + 1))


def _training(frame: StoredRequests, vectors: Vectors, length: int) -> Iterator[Line]:
    model, encoder = built(frame, vectors, length, cube())
    asked = size(SIMULATED).ranker_slots // SHOWN
    some = frame.take(0, asked)
    difference = _logits(model, encoder, some) - _logits(model, encoder, apart(some))
    ours = _timed(len(frame), model, asked, partial(ALL.batches, frame, encoder))
    padded = _timed(len(frame), model, asked, partial(_padded, frame, encoder))
    title, count = f"default recipe, {length:,} behaviours", asked * SHOWN
    yield line(f"{title}: training impressions per CPU-second", [count / one for one in ours.both])
    yield ratio(f"{title}: times padded samples", padded.both, ours.both, TRAINING_GOAL)
    yield worst(
        f"{title}: largest difference of a logit to padded samples", [float(abs(difference).max())], EXACT
    )
    yield ratio(f"{title}: the loader, times the training", ours.both, ours.make, 5.0)


def _timed(
    requests: int,
    model: ClickModel,
    asked: int,
    make: Callable[[Iterable[np.ndarray]], Iterator[Batch]],
) -> Timed:
    """Train on rounds of as many batches as a training encodes together; the first one warms up."""
    learner, timed = Learner(model, RATE), Timed([], [])
    order = np.random.default_rng(0).permutation(requests)
    for number in range(0, (TURNS + 1) * AT_ONCE, AT_ONCE):
        firsts = range(number * asked, (number + AT_ONCE) * asked, asked)
        batches = make([np.take(order, np.arange(first, first + asked), mode="wrap") for first in firsts])
        spent = np.zeros(2)
        for _ in firsts:
            made: list[Batch] = []
            spent[0] += cpu_seconds(partial(_make, batches, made))
            spent[1] += cpu_seconds(partial(_step, learner, model, made[0]))
        if number:
            timed.make.append(spent[0] / AT_ONCE)
            timed.step.append(spent[1] / AT_ONCE)
    return timed


def _padded(frame: StoredRequests, encoder: FrameEncoder, groups: Iterable[np.ndarray]) -> Iterator[Batch]:
    for rows in groups:
        yield encoder.batch(apart(frame.select(rows)))


def _make(batches: Iterator[Batch], out: list[Batch]) -> None:
    out.append(next(batches))


def _step(learner: Learner, model: ClickModel, batch: Batch) -> None:
    learner.step(training_loss(model, batch, "pointwise"), "the benchmark")


def _scoring(frame: StoredRequests, vectors: Vectors) -> Iterator[Line]:
    model, encoder = built(frame, vectors, AT, cube())
    ranker, one = Ranker(model.eval(), encoder), frame.take(0, 1)
    naive = apart(one)
    scored = ranker.score(one)
    trained = _logits(model.train(), encoder, frame.take(0, 3))[: len(scored)]
    model.eval()
    ours = _repeated(lambda: ranker.score(one))
    slow = _repeated(lambda: _logits(model, encoder, naive))
    title = f"default recipe, scoring 1 x {SCORED} candidates at {AT} behaviours"
    yield line_below(f"{title}: CPU-ms", ours, SCORING_MS)
    yield ratio(f"{title}: times a batch of padded samples", slow, ours, SCORING_GOAL)
    yield worst(f"{title}: largest difference to training", [float(abs(scored - trained).max())], EXACT)


def _searching(few: StoredRequests, many: StoredRequests, vectors: Vectors, length: int) -> Iterator[Line]:
    gathered = _repeated(lambda: few.take(0, 1))
    yield line(f"{length:,} behaviours: CPU-ms to gather a request from the event log", gathered)
    asked = size(SIMULATED).ranker_slots // SHOWN
    for name in SEARCHING:
        model, encoder = built(few, vectors, length, recipe(name))
        for table in (one for part, one in model.named_parameters() if is_table(part)):
            nn.init.normal_(table)  # to an untrained model all behaviours are nearly alike
        ranker, one = Ranker(model.eval(), encoder), few.take(0, 1)
        spent = _repeated(partial(ranker.score, one))
        yield line(f"{length:,} behaviours: CPU-ms to score {SCORED} candidates, {name}", spent)
        timed = _timed(len(many), model.train(), asked, partial(ALL.batches, many, encoder))
        speed = [asked * SHOWN / one for one in timed.both]
        yield line(f"{length:,} behaviours: training impressions per CPU-second, {name}", speed)


def _repeated(call: Callable[[], object]) -> list[float]:
    """CPU-ms of a call, often, after a first one."""
    call()
    return [1000 * cpu_seconds(call) for _ in range(ROUNDS)]


def _logits(model: ClickModel, encoder: FrameEncoder, frame: Frame) -> np.ndarray:
    batch = encoder.batch(frame)
    with torch.no_grad():
        found: np.ndarray = model(batch)[batch.candidate_mask].numpy()
    return found
