"""Train an encoder by a recipe, stage after stage; resumable at every checkpoint."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from dataset.split import Split
from dataset.tables import Dataset
from encoder.assemble import assemble
from encoder.backbone.backbone import build_backbone, load_backbone, small_config
from encoder.dual import DualModel
from encoder.encode import device, save_encoder
from encoder.examples.cleaning import exposures
from encoder.examples.corpus import Corpus, catalogue_texts, read_corpus
from encoder.examples.pairs import read_relations
from encoder.learner import Learner, NothingToLearn, Objective
from encoder.model import EncoderModel
from encoder.optim import CHECKPOINT_LR_SCALE, Optimizers
from encoder.pace import Pace
from encoder.parts.chain import add_chain_marks
from encoder.parts.discriminants import Discriminants
from encoder.parts.lora import add_lora, merge
from encoder.parts.wide import Wide, thumbnails
from encoder.pictures.cache import decoded
from encoder.recipes import Recipe, ours
from encoder.tokenizer import end_id, load_tokenizer, special_ids, train_tokenizer
from encoder.towers.features import tower_corpus
from encoder.towers.model import TowerModel
from encoder.towers.towers import installed_towers, read_towers
from run.artifacts import Artifact, open_artifact, write_artifact
from run.progress import track
from run.resume import Checkpoints
from run.sizes import Size

CHECKPOINT_EVERY = 50  # steps
CURVE_POINTS = 100
TRAINING = "training"  # name of the checkpoint


@dataclass(frozen=True)
class Schedule:
    """How long to train, from the size and the number of items; the same on every machine.

    The papers give no schedule (not recovered). Batches grow with the model; each item is seen a fixed number of
    times, within bounds that keep the demo short on two CPU cores.

    Attributes:
        batch: pairs per step.
        steps: of all stages together; each stage gets its fraction.
        chunk: most samples whose graph is held at once (GradCache); None: the whole batch.
    """

    batch: int
    steps: int
    chunk: int | None = None

    @classmethod
    def of(cls, size: Size, items: int, budget: float = 1.0) -> Schedule:
        """The schedule of a catalogue, its steps multiplied by ``budget``."""
        steps = min(max(round(24 * items / size.encoder_batch), 60), size.encoder_steps)
        return cls(size.encoder_batch, max(round(steps * budget), 1), size.encoder_chunk)


def train_encoder(
    dataset: Dataset,
    split: Split,
    size: Size,
    out: Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    checkpoint: Path | None = None,
    budget: float = 1.0,
    cpu_seconds: float | None = None,
    lora: int = 0,
) -> Artifact:
    """Train an encoder on a dataset and write it as an artifact of kind ``encoder``.

    Interrupted training resumes from ``<out>.partial``; on a CPU the result is the same, bit for bit.

    Args:
        dataset: catalogue and judgements.
        split: only its ``fit_log`` is used.
        size: width, depth and lengths; a checkpoint keeps its own width and depth.
        out: directory of the artifact.
        seed: for weights, batches and augmentation.
        recipe: recipe to train; ``recipes.ours()`` unless given.
        checkpoint: a folder of ``checkpoints.FAMILIES`` to start from instead of random weights; for a recipe with
            towers, a folder of ``encoder.towers.towers`` instead of the installed packages.
        budget: factor on the number of steps.
        cpu_seconds: train for this CPU time instead, divided among the stages, to compare recipes at equal compute.
            The number of steps then depends on the machine, and so does the result.
        lora: rank of the adapters that are trained instead of the backbone's own weights; 0: train all weights.

    Raises:
        DataError: nothing to learn from: no kind of pair has two pairs. (Where no item has words or a picture
            the encoder is left untrained: there is nothing to encode either.)
        BackboneError: the checkpoint folder cannot be used.
        FloatingPointError: training diverged, naming stage, step and batch.
    """
    recipe = recipe or ours()
    config = {
        "size": asdict(size), "widths": list(size.matryoshka), "seed": seed, "budget": budget,
        "recipe": recipe.name, "parts": asdict(recipe.parts), "cpu_seconds": cpu_seconds, "lora": lora,
        "checkpoint": None if checkpoint is None else Path(checkpoint).name,
        "fit_until": split.known_from.isoformat(),
    }  # fmt: skip
    parents = {"dataset": dataset.artifact, "split": split.artifact}
    origin = None if checkpoint is None else str(checkpoint.resolve())  # two folders may have one name
    checkpoints = Checkpoints(out, {**config, "checkpoint": origin}, parents)
    state = TrainingState(checkpoints)
    learner = new_learner(dataset, split, size, recipe, seed, checkpoint, lora, state.tokenizer())
    plan = Schedule.of(size, len(learner.corpus.spu), budget * recipe.pace)
    begun_from = (
        checkpoint is not None and not recipe.parts.towers
    )  # the heads on towers always begin at random
    done = _train(learner, recipe, plan, state, cpu_seconds, begun_from)
    if lora:
        merge(learner.model.backbone.model)
    made = {**config, "batch": plan.batch, "width": learner.model.width, **done}
    with write_artifact(out, "encoder", made, parents) as to:
        save_encoder(learner.model, learner.tokenizer, to)
    checkpoints.remove()
    return open_artifact(out, "encoder")


def new_learner(
    dataset: Dataset,
    split: Split,
    size: Size,
    recipe: Recipe,
    seed: int,
    checkpoint: Path | None = None,
    lora: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Learner:
    """An untrained model of a recipe, with its training data.

    Args:
        dataset, split, size, recipe, seed, checkpoint, lora: as in ``train_encoder``.
        tokenizer: the tokenizer of a resumed run; None: the checkpoint's, or one trained on the catalogue.
    """
    learnable = split.encoder_items(dataset.items)
    if recipe.parts.towers:
        tower_model = _tower_model(size, seed, checkpoint, lora).to(device())
        model: EncoderModel = tower_model
        tokenizer, corpus = tower_model.towers.tokenizer, tower_corpus(dataset, tower_model, learnable)
    else:
        if tokenizer is None:
            texts = catalogue_texts(dataset, learnable, recipe.parts.chain)
            tokenizer = load_tokenizer(checkpoint) if checkpoint else train_tokenizer(texts)
        model = _model(recipe, tokenizer, size, seed, checkpoint, lora).to(device())
        corpus = read_corpus(
            dataset, tokenizer, size.text_tokens, model.px, learnable, recipe.parts.region,
            decoded(dataset, model.px),
        )  # fmt: skip
        if model.wide is not None:
            _fit_wide(model.wide, corpus)
            if model.discriminants is not None:
                _fit_discriminants(model.discriminants, model.wide, corpus)
    rows = np.arange(len(corpus.spu))
    plan = Schedule.of(size, len(rows))
    return Learner(
        model=model,
        tokenizer=tokenizer,
        corpus=corpus,
        relations=read_relations(split.fit_log, split.fit_until, dataset.judgements, corpus),
        purchases=read_relations(split.fit_log, split.fit_until, dataset.judgements, corpus, purchases=True),
        shown=exposures(split.fit_log, split.fit_until, corpus.items, rows, len(rows)),
        size=size,
        batch=plan.batch,
        seed=seed,
        chunk=plan.chunk,
    )


def _model(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    size: Size,
    seed: int,
    checkpoint: Path | None,
    lora: int,
) -> EncoderModel:
    """The untrained model of a recipe."""
    if recipe.parts.dual:
        if checkpoint is not None or lora:
            raise ValueError(
                "the dual encoder is trained from scratch: it takes no checkpoint and no adapters"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DualModel(size, len(tokenizer), end_id(tokenizer))
    if checkpoint is not None:
        backbone = load_backbone(checkpoint, size.image_px)
    else:
        config = small_config(size.hidden, size.layers, size.image_px, len(tokenizer), special_ids(tokenizer))
        backbone = build_backbone(config, size.image_px, seed)
    if recipe.parts.chain:
        add_chain_marks(tokenizer, backbone.model)
    model = assemble(backbone, recipe.parts, size.item_width, seed)
    if lora:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_lora(backbone.model, rank=lora, alpha=2 * lora)
        if recipe.parts.chain:  # the chain's marks are new tokens
            backbone.model.get_input_embeddings().requires_grad_(True)
    return model


def _tower_model(size: Size, seed: int, checkpoint: Path | None, lora: int) -> TowerModel:
    """Untrained heads on the towers of a checkpoint folder, or of the installed packages."""
    if lora:
        raise ValueError("a recipe with pretrained towers takes no adapters")
    towers = installed_towers() if checkpoint is None else read_towers(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TowerModel(towers, size.item_width, size.text_tokens)


def _fit_wide(wide: Wide, corpus: Corpus) -> None:
    """Fit the wide path to the items of a corpus of pixels."""
    items, shown = corpus.items, np.flatnonzero(corpus.items.has_image)
    looks = np.zeros((len(items.tokens), len(wide.usual_P)), dtype=np.float32)
    for start in range(0, len(shown), 1024):
        rows = shown[start : start + 1024]
        looks[rows] = thumbnails(torch.from_numpy(corpus.pixels[items.image[rows]])).numpy()
    wide.fit(items.tokens, looks, shown)


def _fit_discriminants(discriminants: Discriminants, wide: Wide, corpus: Corpus) -> None:
    """Fit the discriminants of pictures to the items of a corpus of pixels, beside a fitted wide path."""
    shown = np.flatnonzero(corpus.items.has_image)
    told = wide.words([corpus.items.tokens[row] for row in shown]).cpu().numpy()
    discriminants.fit(corpus.pixels[corpus.items.image[shown]], told)


class Trained(nn.Module):
    """Everything that a stage trains: the model and the objective's own parameters."""

    def __init__(self, model: EncoderModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective


def _train(
    learner: Learner,
    recipe: Recipe,
    plan: Schedule,
    state: TrainingState,
    cpu_seconds: float | None,
    pretrained: bool,
) -> dict[str, Any]:
    """All stages; returns each one's steps, training curve and facts, and the CPU time of all steps."""
    position = state.position()
    scale = CHECKPOINT_LR_SCALE if pretrained else 1.0
    learner.model.train()
    until = np.cumsum([stage.fraction for stage in recipe.stages])  # of the budget, at the end of each stage
    for number, stage in enumerate(recipe.stages):
        if number < position.stage:
            continue
        resumed = number == position.stage and position.step > 0
        if resumed:
            state.restore_model(learner.model)
        started = time.process_time()
        name = f"{number}.{stage.name}"
        try:
            objective = stage.begin(learner)
        except NothingToLearn as nothing:
            position.steps[name] = 0
            if not any(position.steps.values()) and stage is recipe.stages[-1] and learner.corpus.has_content:
                raise
            sys.stderr.write(f"  stage left out: {nothing}\n")
            continue
        trained = Trained(learner.model, objective)
        begun = time.process_time() - started
        position.cpu_seconds += begun
        left = None if cpu_seconds is None else cpu_seconds * until[number] - position.cpu_seconds
        first = position.step if resumed else 0
        planned = position.steps.get(name, max(round(plan.steps * stage.fraction), 1))
        pace = Pace(planned, left, first)
        optimizers = Optimizers(trained, planned, scale * stage.learning_rate_scale)
        if resumed:
            state.restore(objective, optimizers)
        curve = position.losses.setdefault(name, [])
        started = time.process_time()
        label, total = f"{recipe.name}: {stage.name}", planned - first if left is None else None
        for step in track(pace, label, total):
            optimizers.steps = pace.steps
            loss = objective.loss(np.random.default_rng((learner.seed, number, step)), step / pace.steps)
            optimizers.update(loss, stage.name, step, objective.seen)
            curve.append(float(loss.detach()))
            if (step + 1) % CHECKPOINT_EVERY == 0:
                started = position.reach(number, step + 1, name, pace.steps, objective.facts(), started)
                state.save(trained, optimizers, learner.tokenizer, position)
        position.reach(number, pace.steps, name, pace.steps, objective.facts(), started)
        state.save(trained, optimizers, learner.tokenizer, position)
    return {
        "steps": position.steps,
        "losses": {name: _smooth(curve) for name, curve in position.losses.items()},
        "facts": position.facts,
        "trained_cpu_seconds": position.cpu_seconds,
    }


def _smooth(losses: list[float]) -> dict[str, list[float]]:
    """A training curve of at most CURVE_POINTS points, each the mean loss of a range of steps."""
    parts = np.array_split(np.array(losses), min(len(losses), CURVE_POINTS))
    ends = np.cumsum([len(part) for part in parts])
    return {"step": ends.astype(float).tolist(), "loss": [float(part.mean()) for part in parts]}


@dataclass
class Position:
    """How far training is.

    Attributes:
        stage, step: number of the current stage, and of the steps done in it.
        steps: planned steps of each stage that has begun.
        losses: loss of every step, by stage.
        facts: facts of each objective.
        cpu_seconds: CPU time of all steps so far.
    """

    stage: int
    step: int
    steps: dict[str, int]
    losses: dict[str, list[float]]
    facts: dict[str, dict[str, object]]
    cpu_seconds: float

    def reach(
        self, stage: int, step: int, name: str, steps: int, facts: dict[str, object], since: float
    ) -> float:
        """Record how far stage ``name`` is, and the CPU time since ``since``; returns the CPU time now."""
        now = time.process_time()
        self.stage, self.step, self.steps[name], self.facts[name] = stage, step, steps, facts
        self.cpu_seconds += now - since
        return now


class TrainingState:
    """The checkpoint of a training run: weights, optimizer state, tokenizer and position, replaced as a whole.

    Args:
        checkpoints: the run's checkpoints.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints, self._found = checkpoints, checkpoints.find(TRAINING)

    def position(self) -> Position:
        """Where the run stopped; the start if there is no checkpoint."""
        if self._found is None:
            return Position(0, 0, {}, {}, {}, 0.0)
        return Position(**self._found.state)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer trained at the start of the run, so that a resumed run reads the same tokens."""
        return None if self._found is None else load_tokenizer(self._found.folder)

    def restore_model(self, model: EncoderModel) -> None:
        """Restore the trainable weights, before the stage begins; frozen ones are initialised as in the first run."""
        model.load_state_dict(self._tensors("weights", model.device), strict=False)

    def restore(self, objective: Objective, optimizers: Optimizers) -> None:
        """Restore the state of the objective and the optimizers."""
        objective.restore(self._tensors("objective", torch.device("cpu")))
        optimizers.load(self._tensors("optimizer", optimizers.params[0].device))

    def _tensors(self, name: str, where: torch.device) -> dict[str, torch.Tensor]:
        assert self._found is not None
        return load_file(self._found.file(f"{name}.safetensors"), device=str(where))

    def save(
        self,
        trained: Trained,
        optimizers: Optimizers,
        tokenizer: PreTrainedTokenizerBase,
        position: Position,
    ) -> None:
        """Replace the checkpoint by the current state."""
        with self._checkpoints.save(TRAINING, asdict(position)) as folder:
            fixed = {name for name, p in trained.model.named_parameters() if not p.requires_grad}
            learned = {k: v for k, v in trained.model.state_dict().items() if k not in fixed}
            tensors = {"weights": learned, "objective": trained.objective.tensors()}
            for name, named in tensors.items():
                # Cloned: tied weights share memory, which safetensors refuses.
                cloned = {key: value.clone() for key, value in named.items()}
                save_file(cloned, folder / f"{name}.safetensors")
            save_file(optimizers.tensors(), folder / "optimizer.safetensors")
            tokenizer.save_pretrained(folder)
