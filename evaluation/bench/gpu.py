"""One command for a machine with a GPU: fine-tune a checkpoint on a catalogue; measure speed, memory and recall.

    python -m evaluation.bench.gpu RUN/dataset RUN/split CHECKPOINT OUT

It runs on a CPU as well if the checkpoint is small enough. It prints JSON lines: name, value, unit, and n, the number
of tokens or items. Recall is among the held-out items of the split, from an item's picture to its text and back.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from dataset.split import Split
from dataset.tables import Dataset
from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import load_backbone
from encoder.backbone.packing import Sample
from encoder.content import Content, item_content
from encoder.encode import Encoder, device
from encoder.optim import CHECKPOINT_LR_SCALE, Optimizers
from encoder.parts.lora import RANK, add_lora, trainable_parameters
from encoder.pictures.decode import decode_image
from encoder.recipes import ours
from encoder.tokenizer import load_tokenizer, tokenize
from encoder.train import train_encoder
from run.artifacts import open_artifact
from run.sizes import GPU, SIZES, Size

POOL = 1_000  # held-out products, at most
PAIRS = 64  # pictures and as many texts per timed step
TIMED_STEPS = 5  # after one warm-up step
DEPTHS = (1, 5, 10)


class Line(NamedTuple):
    """One measured number, and the number of tokens or items."""

    name: str
    value: float
    unit: str
    n: int


def gpu_run(
    dataset: Dataset, split: Split, checkpoint: Path, out: Path, size: Size, rank: int, budget: float
) -> Iterator[Line]:
    """Measure steps of training and of embedding, train adapters, then measure recall of the trained encoder.

    Args:
        dataset, split: the catalogue, and its held-out items.
        checkpoint: folder of the checkpoint to start from.
        out: folder of the trained encoder.
        size: gives picture side, text length and vector width; the checkpoint has its own depth and width.
        rank: rank of the adapters.
        budget: factor on the number of training steps.

    Raises:
        BackboneError: the checkpoint folder cannot be used.
        ValueError: no held-out item has a picture and words.
    """
    pool = held_out(dataset, split)
    yield from speed(checkpoint, pool, size, rank)
    started = time.perf_counter()
    artifact = train_encoder(
        dataset, split, size, out, recipe=ours(), checkpoint=checkpoint, budget=budget, lora=rank
    )
    steps = sum(artifact.config["steps"].values())
    yield Line("training", time.perf_counter() - started, "s", steps)
    encoder = Encoder.open(artifact)
    pictures = encoder.encode([Content(content.image) for content in pool])
    words = encoder.encode([item_words(content) for content in pool])
    for name, asked, found in (("image to text", pictures, words), ("text to image", words, pictures)):
        for depth in DEPTHS:
            yield Line(f"{name} recall@{depth}", recall(asked, found, depth), "fraction", len(pool))


def held_out(dataset: Dataset, split: Split) -> list[Content]:
    """Contents of the split's pool that have a picture and words, POOL at most."""
    images = dict(
        zip(dataset.images["image_id"].to_pylist(), dataset.images["bytes"].to_pylist(), strict=True)
    )
    wanted = set(split.pool.tolist())
    contents = [
        item_content(row, images.get(row["image_id"]))
        for row in dataset.items.to_pylist()
        if row["item_id"] in wanted
    ]
    whole = [c for c in contents if c.image is not None and not item_words(c).is_empty][:POOL]
    if not whole:
        raise ValueError(f"{split.artifact.path}: none of {len(wanted)} held-out items has picture and words")
    return whole


def item_words(content: Content) -> Content:
    """The same content without its picture."""
    return replace(content, image=None)


def recall(asked_ND: np.ndarray, found_ND: np.ndarray, depth: int) -> float:
    """Fraction of queries whose own row of ``found_ND`` is among the ``depth`` nearest; ties count as misses."""
    score_NN = asked_ND @ found_ND.T
    better_N = (score_NN >= np.diag(score_NN)[:, None]).sum(1) - 1
    return float((better_N < depth).mean())


def speed(checkpoint: Path, pool: Sequence[Content], size: Size, rank: int) -> Iterator[Line]:
    """Tokens per second and peak memory of training steps and of embedding."""
    model = assemble(load_backbone(checkpoint, size.image_px), Parts(), size.item_width, seed=0).to(device())
    add_lora(model.backbone.model, rank, 2 * rank)
    yield Line("parameters", sum(p.numel() for p in model.parameters()), "count", 1)
    yield Line("trained parameters", trainable_parameters(model), "count", 1)
    contents = [pool[n % len(pool)] for n in range(PAIRS)]
    tokens = tokenize(load_tokenizer(checkpoint), [c.text or "item" for c in contents], size.text_tokens)
    texts = [Sample(ids) for ids in tokens]
    pictures = [Sample([], (decode_image(c.image or b"", model.px),)) for c in contents]
    optimizers = Optimizers(model.train(), TIMED_STEPS + 1, CHECKPOINT_LR_SCALE)

    def learn(step: int) -> None:
        left, right = (F.normalize(model(half).vector_BD, dim=-1) for half in (texts, pictures))
        loss = F.cross_entropy(left @ right.T / 0.05, torch.arange(PAIRS, device=left.device))
        optimizers.update(loss, "speed", step)

    def embed(step: int) -> None:
        model.vectors([*texts, *pictures])

    counted = len(model.pack([*texts, *pictures]).ids_T)
    for name, act in (("training", learn), ("embedding", embed)):
        seconds, peak = timed(act)
        yield Line(f"{name} speed", TIMED_STEPS * counted / seconds, "tokens/s", counted)
        yield Line(f"{name} memory", peak / 2**30, "GiB", counted)


def timed(act: Callable[[int], None]) -> tuple[float, int]:
    """Seconds of TIMED_STEPS calls after a warm-up call, and peak memory in bytes of the GPU or the process."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    act(0)
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for step in range(1, TIMED_STEPS + 1):
        act(step)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    if cuda:
        return seconds, torch.cuda.max_memory_allocated()
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Parse the command line and print a line per number."""
    parser = argparse.ArgumentParser(description="Adapt a checkpoint to a catalogue and measure it.")
    for name, what in (
        ("dataset", "dataset folder"),
        ("split", "split folder"),
        ("checkpoint", "checkpoint folder"),
        ("out", "folder of the trained encoder"),
    ):
        parser.add_argument(name, type=Path, help=what)
    parser.add_argument("--size", choices=sorted(SIZES), default=GPU)
    parser.add_argument("--rank", type=int, default=RANK, help="of the adapters")
    parser.add_argument("--budget", type=float, default=1.0, help="factor on the training steps")
    given = parser.parse_args()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    sys.stdout.write(json.dumps({"device": where}) + "\n")
    dataset = Dataset.open(open_artifact(given.dataset, "dataset"))
    split = Split.open(open_artifact(given.split, "split"))
    for line in gpu_run(
        dataset, split, given.checkpoint, given.out, SIZES[given.size], given.rank, given.budget
    ):
        sys.stdout.write(json.dumps(line._asdict()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
