"""The ranker's speed in one run: beside other libraries' DIN, beside padded samples, and scoring a request."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

from dataset.auc import auc
from evaluation.bench.impressions import Impressions, generate, read_impressions, write_impressions
from evaluation.bench.lengths import bench_lengths
from evaluation.bench.lines import Line, cpu_seconds, line, ratio
from evaluation.bench.peers import INSTALL, Contestant, Fuxi, Ours, Rechub, missing

REQUESTS, SHOWN = 13_000, 10
SIZES = {"users": 20_000, "items": 50_000, "categories": 500, "longest": 50}
SEEDS = 3
PEERS: dict[str, type[Rechub | Fuxi]] = {"torch-rechub": Rechub, "FuxiCTR": Fuxi}
# By the AUC of seed 0 on the validation part, where FuxiCTR's and ours fall from the second pass on
# (docs/log/ranker.md#beside-other-libraries).
PEER_RATE, OUR_RATES = 5e-3, (1e-3, 0.05)
SPEED_GOAL, LOADER_GOAL = 6.0, 5.0


@dataclass
class Trained:
    """What a contestant cost and reached, a number per seed: impressions per CPU-second, AUC on the test part."""

    speed: list[float]
    reached: list[float]


def left_out() -> str:
    """Which libraries are not installed, and how to install them; empty if all are."""
    absent = {name: why for name, peer in PEERS.items() if (why := missing(peer))}
    if not absent:
        return ""
    said = "; ".join(f"{name} ({why})" for name, why in absent.items())
    return f"not measured: {said}. Install them with: {INSTALL}"


def bench_ranker() -> Iterator[Line]:
    """Compare with the other libraries that are installed, then with padded samples; one thread, as they share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from bench_peers()
        yield from bench_lengths()
    finally:
        torch.set_num_threads(threads)


def bench_peers(seeds: int = SEEDS) -> Iterator[Line]:
    """Train DIN of equal shape on one parquet file, in turns, one pass each.

    Args:
        seeds: how often, each time with other initial weights and another order.
    """
    made, probability = generate(REQUESTS, SHOWN, **SIZES)
    with tempfile.TemporaryDirectory(prefix="moon_bench_") as folder:
        path = Path(folder) / "impressions.parquet"
        write_impressions(path, made)
        given = read_impressions(path, probability, SHOWN, **SIZES)
    yield line("DIN: AUC of the probabilities that the clicks were drawn with", [given.best])
    ours: dict[str, Callable[[int], Contestant]] = {
        "ours": partial(Ours, given, rates=OUR_RATES, grouped=True),
        "ours, an impression at a time": partial(Ours, given, rates=OUR_RATES, grouped=False),
    }
    others: dict[str, Callable[[int], Contestant]] = {
        name: partial(peer, given, learning_rate=PEER_RATE)
        for name, peer in PEERS.items()
        if not missing(peer)
    }
    found = {name: Trained([], []) for name in (*others, *ours)}
    for seed in range(seeds):
        for name, build in (others | ours).items():
            speed, reached = trained(build(seed), given, seed)
            found[name].speed.append(speed)
            found[name].reached.append(reached)
    for name, one in found.items():
        yield line(f"DIN, {name}: training impressions per CPU-second", one.speed)
        yield line(f"DIN, {name}: AUC on {len(given.test):,} impressions", one.reached)
    if others:
        best = max(others, key=lambda name: median(found[name].speed))
        yield ratio(
            f"DIN: ours, times {best}, the faster one", found["ours"].speed, found[best].speed, SPEED_GOAL
        )
        highest = max(median(found[name].reached) for name in others)
        lead = [one - highest for one in found["ours"].reached]
        yield line("DIN: AUC of ours less the highest of the others", lead, 0.0)
    loader = Ours(given, 0, OUR_RATES, grouped=True)
    loads = [len(given.train) / cpu_seconds(partial(loader.load, seed)) for seed in range(seeds)]
    yield line("DIN, ours: impressions per CPU-second that the loader makes", loads)
    yield ratio("DIN, ours: the loader, times the training with it", loads, found["ours"].speed, LOADER_GOAL)


def trained(contestant: Contestant, given: Impressions, seed: int) -> tuple[float, float]:
    """Impressions per CPU-second of one pass, and the AUC on the test part after it."""
    spent = cpu_seconds(partial(contestant.epoch, seed))
    return len(given.train) / spent, auc(given.test["label"].to_numpy(), contestant.scores(given.test))
