"""What reinforcement adds to MOON3.0's reasoning (§4.2): arms of equal compute from one supervised model.

Arms: the model before; supervised training continued; contrastive loss on the model's own chains without rewards (the
control); contrastive loss and rewards; rewards alone. All are measured on the same held-out items.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from encoder.backbone.packing import Sample
from encoder.examples.corpus import Corpus
from encoder.generate import write_chains
from encoder.learner import Learner, Stage
from encoder.losses.rewards import (
    attribute_reward,
    field_rewards,
    format_reward,
    length_reward,
    retrieval_reward,
)
from encoder.model import EncoderModel
from encoder.optim import Optimizers
from encoder.pace import Pace
from encoder.parts.chain import chain_fields, read_chain
from encoder.stages.chaining import TrueChains
from encoder.stages.reason import Reason, Reinforce
from evaluation.encoder_tasks import own, recall
from evaluation.metrics import Measurement

ARMS: Mapping[str, Stage | None] = {
    "before": None,
    "supervised": Reason(fraction=1.0, learning_rate_scale=0.5),
    "own chains": Reinforce(fraction=1.0, grpo_weight=0.0, chain_loss_weight=1.0),
    "reinforced": Reinforce(fraction=1.0, chain_loss_weight=1.0),
    "rewards alone": Reinforce(fraction=1.0, contrast_weight=0.0, chain_loss_weight=0.0),
}
FIRST_GUESS = 100  # estimated steps of an arm before the first has been timed
ROLLOUTS = 4  # sampled chains per held-out item


def reasoning_arms(
    learner: Learner, held: Corpus, cpu_seconds: float, arms: Mapping[str, Stage | None] = ARMS
) -> Iterator[tuple[str, Measurement]]:
    """Train each arm from the same model for the same CPU time and measure it on the same items.

    Args:
        learner: with the model after its supervised stage; it is copied, not changed.
        held: held-out items, each with picture and text.
        cpu_seconds: for each arm, including the decoding of its rollouts.
        arms: arm -> stage to train; None: no training.

    Yields:
        name of the arm and a measurement of ``measure_reasoning``, or ``reasoning/steps``.
    """
    chains = TrueChains.of(learner.tokenizer, held.records, chain_fields(learner.corpus.records))
    for arm, stage in arms.items():
        own_learner = replace(learner, model=copy.deepcopy(learner.model))
        if stage is not None:
            steps = train_stage(own_learner, stage, cpu_seconds)
            yield arm, Measurement("reasoning/steps", steps, 1, "train")
        for measured in measure_reasoning(own_learner, held, chains):
            yield arm, measured


def train_stage(learner: Learner, stage: Stage, cpu_seconds: float) -> int:
    """Train a learner's model by one stage for ``cpu_seconds``; returns the number of steps."""
    objective = stage.begin(learner)
    learner.model.train()
    pace = Pace(FIRST_GUESS, cpu_seconds)
    optimizers = Optimizers(learner.model, FIRST_GUESS, stage.learning_rate_scale)
    for step in pace:
        optimizers.steps = pace.steps
        loss = objective.loss(np.random.default_rng((learner.seed, 1, step)), step / pace.steps)
        optimizers.update(loss, stage.name, step)
    return pace.steps


@torch.no_grad()
def measure_reasoning(learner: Learner, held: Corpus, chains: TrueChains) -> Iterator[Measurement]:
    """How well a model generates chains of held-out items, and its recall with them.

    Chains are generated from pictures alone, where attributes must be recognised, and from text alone, where they can
    be copied.

    Yields:
        ``reasoning/<view>/greedy|sampled/attributes|format``, per field, ``.../exact`` (all fields correct), the
        mean of each reward of sampled chains, and recall with no, own greedy, own sampled and true chains on
        both sides; n = items.
    """
    model = learner.model.eval()
    count = len(held.records)
    rows, yes, no = np.arange(count), np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    views = {
        "image": held.samples(held.items, rows, no, yes),
        "words": held.samples(held.items, rows, yes, no),
    }
    generator = torch.Generator(model.device).manual_seed(learner.seed)
    limit = learner.size.text_tokens
    greedy, sampled = {}, {}
    for view, samples in views.items():
        written = write_chains(model.backbone, samples, chains.marks, limit)
        greedy[view] = written.chained(samples, chains.marks)
        yield from _right(f"{view}/greedy", learner, written.chains, chains)
        drawn = write_chains(model.backbone, samples, chains.marks, limit, [ROLLOUTS] * count, generator)
        sampled[view] = drawn.chained(samples, chains.marks)
        yield from _right(f"{view}/sampled", learner, drawn.chains, chains)
        lengths = drawn.drawn_RL.sum(1).tolist()
        good = [length_reward(length, chains.shortest, chains.longest) for length in lengths]
        yield Measurement(f"reasoning/{view}/sampled/length", float(np.mean(good)), count, "held out")
    with_true = {
        view: [replace(s, chain=chain) for s, chain in zip(samples, chains.tokens, strict=True)]
        for view, samples in views.items()
    }
    one = {view: samples[::ROLLOUTS] for view, samples in sampled.items()}
    vectors = {}
    for name, shown in (("none", views), ("own", greedy), ("sampled", one), ("true", with_true)):
        vectors[name] = {view: _unit(model, samples) for view, samples in shown.items()}
    vectors["seen"] = {"image": vectors["true"]["image"], "words": vectors["own"]["words"]}
    for name, of in vectors.items():
        for left, right in (("image", "words"), ("words", "image")):
            task = f"{left}-{right}/{name} chain"
            for found in recall(task, of[left], of[right], own(count), False, "held out", "reasoning"):
                if "chance" not in found.name:
                    yield found
    reward = retrieval_reward(
        torch.from_numpy(_unit(model, sampled["image"])), torch.from_numpy(vectors["own"]["words"]),
        torch.arange(count).repeat_interleave(ROLLOUTS),
    )  # fmt: skip
    yield Measurement("reasoning/image/sampled/retrieval", float(reward.mean()), count, "held out")


def _unit(model: EncoderModel, samples: Sequence[Sample]) -> np.ndarray:
    return F.normalize(model.vectors(samples), dim=-1).cpu().numpy()


def _right(
    name: str, learner: Learner, written: Sequence[Sequence[int]], chains: TrueChains
) -> Iterator[Measurement]:
    """Format and attribute accuracy of chains, the same number for each item."""
    copies = len(written) // len(chains.values)
    said = [read_chain(learner.tokenizer, chain) for chain in written]
    true = [values for values in chains.values for _ in range(copies)]
    measured: dict[str, list[float]] = {"format": [], "attributes": [], "exact": []}
    for one, values in zip(said, true, strict=True):
        measured["format"].append(format_reward(one, list(values)))
        measured["attributes"].append(attribute_reward(one, values))
        measured["exact"].append(float(one == values))
        for field, right in field_rewards(one, values).items():
            measured.setdefault(field, []).append(right)
    for key, each in measured.items():
        yield Measurement(f"reasoning/{name}/{key}", float(np.mean(each)), len(each) // copies, "held out")
