"""Train the encoder: stage 1 pretraining, then stage 2a post-training; resumable at every checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dataset.contracts import DataError
from dataset.split import Split
from dataset.tables import Dataset
from encoder.backbone import Backbone, build_backbone, load_backbone, small_config
from encoder.encode import device, save_encoder
from encoder.examples.corpus import Corpus, catalogue_texts, read_corpus
from encoder.examples.pairs import item_pairs, query_pairs
from encoder.model import EncoderModel
from encoder.optim import CHECKPOINT_LR_SCALE, Optimizers
from encoder.posttrain import MIX, Positives, own_pairs, part_pairs, posttrain_loss
from encoder.pretrain import pretrain_loss
from encoder.tokenizer import load_tokenizer, pad_id, special_ids, train_tokenizer
from moon.artifacts import Artifact, ArtifactError, open_artifact, write_artifact
from moon.progress import track
from moon.sizes import Size

CHECKPOINT_EVERY = 50  # steps
CURVE_POINTS = 100
STAGES = ("pretrain", "posttrain")
MADE_BY = "moon encoder"


@dataclass(frozen=True)
class Schedule:
    """Steps and batch of both stages."""

    pretrain_steps: int
    pretrain_batch: int
    posttrain_steps: int
    posttrain_batch: int


def schedule(size: Size, items: int, budget: float = 1.0) -> Schedule:
    """How long to train, from the size and the number of items; the same on every machine.

    The papers give no schedule (not recovered). Batches grow with the model; post-training sees each item a
    fixed number of times, within bounds that keep two CPU cores inside the demo's time.

    Args:
        size: the dial.
        items: in the catalogue.
        budget: factor on the steps of both stages.
    """
    batch = {"nano": 96, "small": 128}.get(size.name, 256)
    longest = {"nano": 500, "small": 600}.get(size.name, 20_000)
    posttrain = min(max(round(24 * items / batch), 60), longest)
    return Schedule(
        pretrain_steps=max(round(posttrain * 0.2 * budget), 1),
        pretrain_batch=batch // 2,
        posttrain_steps=max(round(posttrain * budget), 1),
        posttrain_batch=batch,
    )


def train_encoder(
    dataset: Dataset,
    split: Split,
    size: Size,
    out: Path,
    seed: int = 0,
    checkpoint: Path | None = None,
    budget: float = 1.0,
) -> Artifact:
    """Train an encoder on a dataset and write it as an artifact of kind ``encoder``.

    Interrupted training goes on from ``<out>.partial``; on a CPU the result is the same, bit for bit.

    Args:
        dataset: catalogue and judgements.
        split: only log events available before its ``fit_until`` are used.
        size: width, depth and lengths; a checkpoint keeps its own width and depth.
        out: directory of the artifact.
        seed: of weights, batches and augmentation.
        checkpoint: a Qwen-VL folder to start from instead of random weights.
        budget: factor on the number of steps.

    Raises:
        DataError: nothing to learn from: no kind of pair occurs twice.
        BackboneError: the checkpoint folder cannot be used.
        FloatingPointError: training diverged, naming the step.
    """
    config = {
        "size": asdict(size), "widths": list(size.matryoshka), "seed": seed, "budget": budget,
        "checkpoint": None if checkpoint is None else Path(checkpoint).name,
        "fit_until": split.fit_until.isoformat(),
    }  # fmt: skip
    parents = {"dataset": dataset.artifact, "split": split.artifact}
    partial = Partial(out.with_name(out.name + ".partial"), config, parents)
    learnable = split.encoder_items(dataset.items)
    tokenizer, backbone = _start(dataset, learnable, size, seed, checkpoint, partial)
    torch.manual_seed(seed)
    model = EncoderModel(backbone, size.item_width, pad_id(tokenizer)).to(device())
    corpus = read_corpus(dataset, tokenizer, size.text_tokens, backbone.vision.px, learnable)
    positives = Positives(
        own=own_pairs(corpus),
        part=part_pairs(corpus),
        query=query_pairs(split.log, split.fit_until, dataset.judgements, corpus.queries, corpus.items),
        item=item_pairs(split.log, split.fit_until, corpus.items),
    )
    if not positives.kinds():
        raise DataError(
            f"{dataset.artifact.path}: expected items with words, queries with clicks, or items "
            f"bought together before {split.fit_until.isoformat()}; found none: nothing to learn from."
        )
    losses = _train(model, tokenizer, corpus, positives, size, seed, partial, budget, checkpoint is not None)
    counts = {kind: len(getattr(positives, kind)) for kind in MIX}
    plan = asdict(schedule(size, len(corpus.spu), budget))
    with write_artifact(
        out, "encoder", {**config, "schedule": plan, "pairs": counts, "losses": losses}, parents
    ) as to:
        save_encoder(model, tokenizer, to)
    partial.remove()
    return open_artifact(out, "encoder", MADE_BY)


def _start(
    dataset: Dataset, learnable: np.ndarray, size: Size, seed: int, checkpoint: Path | None, partial: Partial
) -> tuple[PreTrainedTokenizerBase, Backbone]:
    """Tokenizer and backbone: from the checkpoint folder, or trained on the catalogue and random."""
    if checkpoint is not None:
        return load_tokenizer(checkpoint), load_backbone(checkpoint, size.image_px)
    tokenizer = partial.tokenizer() or train_tokenizer(catalogue_texts(dataset, learnable))
    config = small_config(size.hidden, size.layers, size.image_px, len(tokenizer), special_ids(tokenizer))
    return tokenizer, build_backbone(config, size.image_px, seed)


def _train(
    model: EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    positives: Positives,
    size: Size,
    seed: int,
    partial: Partial,
    budget: float,
    pretrained: bool,
) -> dict[str, dict[str, list[float]]]:
    """Both stages; returns the training curve of each."""
    plan = schedule(size, len(corpus.spu), budget)

    def asked(rng: np.random.Generator) -> Tensor:
        return pretrain_loss(model, corpus, tokenizer, plan.pretrain_batch, size.text_tokens, rng)

    def contrasted(rng: np.random.Generator) -> Tensor:
        return posttrain_loss(model, corpus, positives, plan.posttrain_batch, size.matryoshka, rng)

    stages: tuple[tuple[int, Callable[[np.random.Generator], Tensor]], ...] = (
        (plan.pretrain_steps, asked),
        (plan.posttrain_steps, contrasted),
    )
    stage_done, step_done, losses = partial.position()
    model.train()
    for stage, (steps, loss_of) in enumerate(stages):
        if stage < stage_done:
            continue
        optimizers = Optimizers(model, steps, CHECKPOINT_LR_SCALE if pretrained else 1.0)
        first = 0
        if stage == stage_done and step_done:
            partial.restore(model, optimizers)
            first = step_done
        curve = losses.setdefault(STAGES[stage], [])
        for step in track(range(first, steps), f"{STAGES[stage]} encoder"):
            loss = loss_of(np.random.default_rng((seed, stage, step)))
            optimizers.update(loss, STAGES[stage], step)
            curve.append(float(loss.detach()))
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
                partial.save(model, optimizers, tokenizer, stage, step + 1, losses)
    return {name: _smooth(curve) for name, curve in losses.items()}


def _smooth(losses: list[float]) -> dict[str, list[float]]:
    """A training curve of at most CURVE_POINTS points: the mean loss around each step."""
    parts = np.array_split(np.array(losses), min(len(losses), CURVE_POINTS))
    ends = np.cumsum([len(part) for part in parts])
    return {"step": ends.astype(float).tolist(), "loss": [float(part.mean()) for part in parts]}


class Partial:
    """Training under way: weights, optimizer state, tokenizer and position, replaced as a whole at each save.

    Args:
        path: ``<out>.partial``.
        config: of the run; a partial of another run is ignored.
        parents: dataset and split of the run.
    """

    def __init__(self, path: Path, config: dict[str, Any], parents: dict[str, Artifact]) -> None:
        self.path, self.config, self.parents = path, config, parents
        try:
            found = open_artifact(path, "encoder-partial", MADE_BY)
        except ArtifactError:
            found = None  # absent or damaged: training starts again
        ours = (
            found and found.config["run"] == config and found.parents == {k: v.id for k, v in parents.items()}
        )
        self._found = found if ours else None

    def position(self) -> tuple[int, int, dict[str, list[float]]]:
        """Stage, steps done in it, and the losses so far."""
        if self._found is None:
            return 0, 0, {}
        config = self._found.config
        return config["stage"], config["step"], config["losses"]

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer trained at the start of the run, so that a resumed run reads the same tokens."""
        return None if self._found is None else load_tokenizer(self._found.path)

    def restore(self, model: EncoderModel, optimizers: Optimizers) -> None:
        """Put weights and optimizer state back."""
        if self._found is not None:
            load_model(model, self._found.file("weights.safetensors"), device=str(model.device))
            optimizers.load(load_file(self._found.file("optimizer.safetensors"), device=str(model.device)))

    def save(
        self,
        model: EncoderModel,
        optimizers: Optimizers,
        tokenizer: PreTrainedTokenizerBase,
        stage: int,
        step: int,
        losses: dict[str, list[float]],
    ) -> None:
        """Replace what is there by the present state."""
        state = {"run": self.config, "stage": stage, "step": step, "losses": losses}
        with write_artifact(self.path, "encoder-partial", state, self.parents) as folder:
            save_model(model, str(folder / "weights.safetensors"))
            save_file(optimizers.tensors(), folder / "optimizer.safetensors")
            tokenizer.save_pretrained(folder)

    def remove(self) -> None:
        """Delete it: the artifact is complete."""
        shutil.rmtree(self.path, ignore_errors=True)
