"""How fast the encoder trains and embeds, compared with a plain transformers loop over the same model.

Both run in one thread on the same simulated catalogue, taking turns, so that a busy machine slows both. Time is
CPU time of the process. Pictures are JPEGs of the size that ``moon dataset`` keeps of a shop's photographs.

Shapes: B items of a batch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dataset.marketplace.catalogue import item_pictures, items_table, make_catalogue
from dataset.pictures import LONG_SIDE
from encoder.assemble import Parts, assemble
from encoder.backbone.backbone import Read, build_backbone, small_config
from encoder.backbone.packing import Sample
from encoder.backbone.vision import Vision
from encoder.content import Content, item_content, tokenize_fields
from encoder.encode import Encoder
from encoder.examples.augment import augment
from encoder.losses.info_nce import matryoshka_info_nce
from encoder.optim import CLIP_NORM, Optimizers
from encoder.pictures.decode import decode_image
from encoder.tokenizer import special_ids, train_tokenizer
from evaluation.bench.lines import Line, cpu_seconds, line, ratio
from evaluation.bench.plain_loop import PlainModel
from run.artifacts import Artifact
from run.sizes import REAL, Size, size

SIDES = (64, 128)
BATCH = 128
PASSES = (
    24  # over the catalogue in a training run (encoder.train.Schedule), for which a picture is decoded once
)
TRAINING_GOAL, EMBEDDING_GOAL = 2.0, 3.0  # times the plain loop


@contextmanager
def one_thread() -> Iterator[None]:
    """Run with one thread, so that results do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def contents(count: int, seed: int = 0) -> list[Content]:
    """The first ``count`` products of a simulated catalogue, photographed at LONG_SIDE pixels."""
    rng = np.random.default_rng(seed)
    catalogue = make_catalogue(count, rng)
    pictures = item_pictures(catalogue, np.random.SeedSequence(seed), np.zeros(len(catalogue), dtype=bool))
    rows = items_table(catalogue, [None] * len(catalogue), rng).to_pylist()
    found = [item_content(row, _enlarged(picture)) for row, picture in zip(rows, pictures, strict=True)]
    return [content for content in found if content.words][:count]


def _enlarged(picture: bytes | None) -> bytes:
    assert picture is not None
    out = io.BytesIO()
    small = Image.open(io.BytesIO(picture))
    small.resize((LONG_SIDE, LONG_SIDE), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


class Contest:
    """Our encoder and the plain loop with the same weights, at one picture size.

    Args:
        shown: contents to train on and to embed, each with picture and text.
        dial: widths, lengths and picture size.
    """

    def __init__(self, shown: list[Content], dial: Size) -> None:
        self.shown, self.dial = shown, dial
        self.tokenizer = train_tokenizer([content.words for content in shown])
        config = partial(
            small_config,
            dial.hidden,
            dial.layers,
            dial.image_px,
            len(self.tokenizer),
            special_ids(self.tokenizer),
        )
        self.ours = assemble(
            build_backbone(config(), dial.image_px, seed=0), Parts(), dial.item_width, seed=0
        )
        backbone, head = self.ours.backbone, self.ours.head
        assert head is not None and isinstance(backbone.vision, Vision)
        self.plain = PlainModel(
            config(),
            backbone.model.state_dict(),
            head.weight,
            self.tokenizer,
            backbone.vision,
            dial.text_tokens,
        )
        artifact = Artifact(Path(), "encoder", "bench", {"widths": list(dial.matryoshka)}, {})
        self.encoder = Encoder(artifact, self.ours, self.tokenizer, dial.text_tokens, Parts())
        self.batch = min(BATCH, len(shown))
        self.same = torch.zeros(self.batch, self.batch, dtype=torch.bool)
        self.tokens = tokenize_fields(self.tokenizer, shown, dial.text_tokens)
        self.pixels = np.stack([decode_image(content.image or b"", dial.image_px) for content in shown])
        self.optimizers = Optimizers(self.ours, steps=1000)
        self.adamw = torch.optim.AdamW(self.plain.parameters(), lr=1e-4)
        self.step = 0

    def draw(self) -> np.ndarray:
        """Rows of the next batch."""
        self.step += 1
        return np.random.default_rng(self.step).choice(len(self.shown), size=self.batch, replace=False)

    def loss(self, pictures: Tensor, words: Tensor) -> Tensor:
        """Contrastive loss between pictures and their texts."""
        return matryoshka_info_nce(pictures, words, self.same, self.dial.matryoshka)

    def samples(self, rows: np.ndarray) -> list[Sample]:
        """A batch for our encoder: pictures, decoded before training, then texts."""
        pictures = augment(self.pixels[rows], np.random.default_rng(self.step))
        words = [self.tokens[row] for row in rows.tolist()]
        return [*(Sample([], (picture,)) for picture in pictures), *(Sample(t, kinds=k) for t, k in words)]

    def train_ours(self) -> None:
        """One training step of our encoder."""
        vectors = self.ours(self.samples(self.draw())).vector_BD
        loss = self.loss(vectors[: self.batch], vectors[self.batch :])
        self.optimizers.update(loss, "bench", self.step)

    def train_plain(self) -> None:
        """One training step of the plain loop."""
        batch = [self.shown[row] for row in self.draw().tolist()]
        pixels = self.plain.decode([content.image or b"" for content in batch])
        pictures = self.plain(augment(pixels, np.random.default_rng(self.step)), None)
        loss = self.loss(pictures, self.plain(None, [content.words for content in batch]))
        self.adamw.zero_grad()
        loss.backward()
        self.adamw.step()

    def embed_ours(self) -> np.ndarray:
        """Embed all contents as bulk embedding does after training: from pictures decoded already."""
        return self.encoder.encode(self.shown, list(self.pixels))

    def vectors(self) -> Tensor:
        """``embed_ours`` outside of inference mode, so that torch can count its floating-point operations."""
        return self.ours.vectors(self.encoder.samples(self.shown, list(self.pixels)))

    def embed_new(self) -> np.ndarray:
        """Embed all contents as bulk embedding does with pictures that are not decoded yet."""
        return self.encoder.encode(self.shown)

    @torch.no_grad()
    def embed_plain(self) -> np.ndarray:
        """Embed all contents with the plain loop, batch after batch in catalogue order."""
        parts = []
        for start in range(0, len(self.shown), self.batch):
            batch = self.shown[start : start + self.batch]
            pixels = self.plain.decode([content.image or b"" for content in batch])
            parts.append(F.normalize(self.plain(pixels, [content.words for content in batch]), dim=-1))
        return torch.cat(parts).numpy()

    def decoding(self) -> float:
        """CPU seconds to decode one picture of the catalogue."""
        some = [content.image or b"" for content in self.shown[: self.batch]]
        return cpu_seconds(lambda: [decode_image(one, self.dial.image_px) for one in some]) / len(some)


def bench_encoder(
    items: int = 384, repeats: int = 3, sides: tuple[int, ...] = SIDES, dial: Size | None = None
) -> list[Line]:
    """Measure training and embedding, and where the time of a training step goes.

    Args:
        items: in the catalogue that is trained on and embedded.
        repeats: repetitions of every measurement; the median is reported.
        sides: picture sides in pixels.
        dial: the size to measure; small unless given.
    """
    dial = dial or size(REAL)
    with one_thread():
        shown = contents(items)
        lines: list[Line] = []
        for px in sides:
            lines += _lines(Contest(shown, replace(dial, image_px=px)), repeats)
    return lines


def _lines(contest: Contest, repeats: int) -> Iterator[Line]:
    px = f"{contest.dial.image_px} px"
    took = _turns(contest.train_ours, contest.train_plain, repeats)
    decoding = median(contest.decoding() for _ in range(repeats)) * contest.batch / PASSES
    ours = [contest.batch / (seconds + decoding) for seconds in took[0]]
    plain = [contest.batch / seconds for seconds in took[1]]
    yield line(f"training {px}: items per CPU-second", ours)
    yield line(f"training {px}: items per CPU-second, plain loop", plain)
    yield ratio(f"training {px}: times the plain loop", ours, plain, TRAINING_GOAL)
    yield from _reached(f"training {px}", contest.train_ours, took[0])
    parts = _where(contest, repeats)
    whole = sum(median(seconds) for seconds in parts.values())
    for name, seconds in parts.items():
        yield line(f"training {px}: fraction of {name}", [one / whole for one in seconds])
    took = _turns(contest.embed_ours, contest.embed_plain, repeats)
    seconds = took[0]
    ours, plain = ([len(contest.shown) / seconds for seconds in column] for column in took)
    yield line(f"embedding {px}: items per CPU-second", ours)
    yield line(f"embedding {px}: items per CPU-second, plain loop", plain)
    yield ratio(f"embedding {px}: times the plain loop", ours, plain, EMBEDDING_GOAL)
    yield from _reached(f"embedding {px}", contest.vectors, seconds)
    took = _turns(contest.embed_new, contest.embed_plain, repeats)
    ours, plain = ([len(contest.shown) / seconds for seconds in column] for column in took)
    yield ratio(f"embedding {px}, new pictures: times the plain loop", ours, plain, EMBEDDING_GOAL)


def _turns(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[list[float], ...]:
    """CPU seconds of two calls that take turns, after one call of each to warm up."""
    for call in (first, second):
        call()
    pairs = [(cpu_seconds(first), cpu_seconds(second)) for _ in range(repeats)]
    return tuple(list(column) for column in zip(*pairs, strict=True))


def matmul_rate(side: int = 1024, repeats: int = 5) -> float:
    """Floating-point operations per second of the product of two large matrices: the machine's peak."""
    left, right = torch.randn(2, side, side)
    return 2 * side**3 / min(cpu_seconds(lambda: left @ right) for _ in range(repeats + 1))


def _where(contest: Contest, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each part of a training step, run by itself."""
    model, backbone, batch = contest.ours, contest.ours.backbone, contest.batch
    rows = contest.draw()
    packed = model.pack(contest.samples(rows))
    assert packed.pixels_NSS3 is not None
    pixels, rotary = packed.pixels_NSS3, backbone.rotary(packed.positions_3T[:, None])
    tokens = torch.randn(1, len(packed.ids_T), contest.dial.hidden, requires_grad=True)
    vectors = torch.randn(2 * batch, contest.dial.item_width, requires_grad=True)

    def vision() -> None:
        seen = backbone.see(pixels)
        torch.stack([seen.tokens_VH, *seen.after]).sum().backward()

    def language() -> None:
        hidden, routes = backbone.run(tokens, rotary, packed.kinds_T, None, None, groups=packed.groups)
        model.encoded(packed, Read(hidden.squeeze(0), routes)).vector_BD.sum().backward()

    def optimiser() -> None:
        nn.utils.clip_grad_norm_(contest.optimizers.params, CLIP_NORM)
        for part in contest.optimizers.parts.values():
            part.step()

    parts: dict[str, Callable[[], object]] = {
        "vision": vision,
        "language": language,
        "optimiser": optimiser,
        "data": lambda: model.pack(contest.samples(rows)),
        "loss": lambda: contest.loss(vectors[:batch], vectors[batch:]).backward(),
    }
    for part in parts.values():
        part()
    return {name: [cpu_seconds(part) for _ in range(repeats)] for name, part in parts.items()}


def _reached(what: str, call: Callable[[], object], took: list[float]) -> Iterator[Line]:
    """The call's matrix products per second, without attention, as a fraction of the machine's rate.

    Time multiplied by this fraction is what the call would take if it consisted of matrix products only.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    rate, reached = matmul_rate(), counter.get_total_flops() / median(took)
    yield line(f"{what}: GFLOP/s", [reached / 1e9])
    yield line(f"{what}: fraction of the matmul rate of {rate / 1e9:.0f} GFLOP/s", [reached / rate])
