"""Write the attributes down, then embed: the two stages of MOON3.0 (§4.2).

Every input, query or item, is embedded with a chain of its own, so that a content has one vector whatever role it
plays. ``Reason`` teaches the chain and the vector from true chains; ``Reinforce`` lets the model write its own,
rewards them and embeds with them, as serving does. An item whose words state its attributes copies them; an
input of a picture alone must see them. A query of a log has no attributes: its chain is that of the item it
led to.

The paper's weights, rewards and number of rollouts are not recovered; defaults are ours.

Shapes: B pairs, G rollouts of each query, R = B * G rollouts, L tokens of the longest chain, D vector width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import torch
from torch import Tensor

from encoder.backbone.packing import Packed
from encoder.generate import Rollouts, chain_log_probabilities, write_chains
from encoder.learner import Learner
from encoder.losses.grpo import KL_WEIGHT, group_advantages, grpo_loss
from encoder.losses.info_nce import false_negatives
from encoder.losses.rewards import (
    RewardWeights,
    attribute_reward,
    format_reward,
    length_reward,
    retrieval_reward,
)
from encoder.model import EncoderModel
from encoder.parts.chain import read_chain
from encoder.stages.chaining import KINDS, Asked, Chaining, balanced, next_token, unchained
from encoder.stages.contrast import Kind


@dataclass(frozen=True)
class Reason:
    """The supervised stage: L_SFT = w^i L^i + w^t L^t + w^mm L^mm + w^a L^a_NTP (§4.2).

    The paper's figure has the chain among the inputs that are contrasted. Here that is a leak: query and item
    then show the same true chain, and the vector learns to read nothing else
    (docs/log/encoder_papers.md#true-chains-leak). By default contrast therefore sees picture and words only, and
    chains enter the vector in ``Reinforce``.

    Attributes:
        share: of the training budget.
        kinds: of pairs; their shares are w^i, w^t and w^mm.
        told: w^a, the weight of next-token prediction on the true chains.
        leak: contrast sees the true chains.
        rate: factor on the peak learning rates.
        name: of the stage.
    """

    share: float
    kinds: tuple[Kind, ...] = KINDS
    told: float = 1.0
    leak: bool = False
    rate: float = 1.0
    name: str = "reason"

    def begin(self, learner: Learner) -> Reasoning:
        """Find the pairs and the true chains."""
        return Reasoning(self, learner)


@dataclass(frozen=True)
class Reinforce:
    """The stage of reinforcement: L_RL = lambda_1 L_InfoNCE + lambda_2 L_GRPO (§4.2).

    Attributes:
        share: of the training budget.
        kinds: of pairs.
        contrast: lambda_1; the loss is taken on the model's own sampled chains.
        grpo: lambda_2; 0 is the control that contrasts on own chains without any reward.
        told: weight of next-token prediction on true chains beside it; not in the paper.
        rollouts: G.
        rewards: weights of the four rewards.
        kl: weight of the divergence from the model that the stage began with.
        rate: factor on the peak learning rates.
        name: of the stage.
    """

    share: float
    kinds: tuple[Kind, ...] = KINDS
    contrast: float = 1.0
    grpo: float = 1.0
    told: float = 0.0
    rollouts: int = 4
    rewards: RewardWeights = RewardWeights()
    kl: float = KL_WEIGHT
    rate: float = 0.5
    name: str = "reinforce"

    def begin(self, learner: Learner) -> Reinforcing:
        """Find the pairs and the true chains, and keep the model as it is now for reference."""
        return Reinforcing(self, learner)


class Reasoning(Chaining):
    """The loss of ``Reason``."""

    def __init__(self, stage: Reason, learner: Learner) -> None:
        super().__init__(stage.name, stage.kinds, learner)
        self.stage = stage

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """L_SFT of one random batch: vectors and next tokens from one reading."""
        model = self.learner.model
        drawn = self.draw(self.learner.batch, rng)
        samples = [*self.told(drawn.left, drawn.left_row), *self.told(drawn.right, drawn.right_row)]
        packed = model.pack(samples)
        read = model.backbone(packed)
        encoded = model.encoded(packed, read) if self.stage.leak else model.encoded(*unchained(packed, read))
        left, right = encoded.vector_BD.chunk(2)
        told = next_token(chain_log_probabilities(model.backbone, packed, read.hidden_TH), samples)
        return balanced(self.contrast(left, right, drawn) + self.stage.told * told, encoded)

    def facts(self) -> dict[str, object]:
        """Pairs of each kind, and the fields of a chain."""
        return {**self.pairs.facts(), "fields": list(self.chains.names)}


class Reinforcing(Chaining):
    """The loss of ``Reinforce``; one step per batch of rollouts, so the policy is the one that drew them."""

    def __init__(self, stage: Reinforce, learner: Learner) -> None:
        super().__init__(stage.name, stage.kinds, learner)
        self.stage = stage
        # In a tuple, so that torch takes it for no part of what is trained.
        self.reference: tuple[EncoderModel, ...] = ()
        if stage.grpo and stage.kl:
            self.reference = (copy.deepcopy(learner.model).requires_grad_(False),)
        self.earned: list[tuple[float, ...]] = []

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """L_RL of one random batch."""
        stage, learner, model = self.stage, self.learner, self.learner.model
        marks, copies = self.chains.marks, self.stage.rollouts
        drawn = self.draw(max(learner.batch // 2, 2), rng)
        both, pairs = [*drawn.left, *drawn.right], len(drawn.left)
        generator = torch.Generator(model.device).manual_seed(int(rng.integers(2**62)))
        written = write_chains(
            model.backbone,
            both,
            marks,
            self.chains.longest,
            [copies] * pairs + [1] * pairs,
            generator,
        )
        samples, rollouts = written.chained(both, marks), copies * pairs
        if stage.told:
            samples += self.told(drawn.left, drawn.left_row)
        packed = model.pack(samples)
        read = model.backbone(packed)
        encoded = model.encoded(packed, read)
        query_RD = encoded.vector_BD[:rollouts]
        item_BD = encoded.vector_BD[rollouts : rollouts + pairs]
        each = [self.contrast(query_RD[g::copies], item_BD, drawn) for g in range(copies)]
        loss = stage.contrast * torch.stack(each).mean()
        parts = self.rewards(written.chains[:rollouts], query_RD, item_BD, drawn)
        self.earned.append(tuple(float(parts[field.name].mean()) for field in fields(RewardWeights)))
        if stage.grpo or stage.told:
            chance = chain_log_probabilities(model.backbone, packed, read.hidden_TH)
            if stage.told:
                loss = loss + stage.told * next_token(chance[rollouts + pairs :], samples[rollouts + pairs :])
            if stage.grpo:
                loss = loss + stage.grpo * self.policy_loss(packed, chance, written, parts)
        return balanced(loss, encoded)

    def policy_loss(
        self, packed: Packed, chance_BL: Tensor, written: Rollouts, parts: Mapping[str, Tensor]
    ) -> Tensor:
        """L_GRPO of the chains of the queries, which come first in what was packed and written."""
        rollouts, length = len(parts["format"]), written.drawn_RL.shape[1]
        policy_RL = reference_RL = chance_BL[:rollouts, :length]
        if self.reference:
            backbone = self.reference[0].backbone
            with torch.no_grad():
                told_BL = chain_log_probabilities(backbone, packed, backbone(packed).hidden_TH)
            reference_RL = told_BL[:rollouts, :length]
        reward_BG = self.stage.rewards.total(parts).view(-1, self.stage.rollouts)
        return grpo_loss(
            policy_RL,
            written.log_probability_RL[:rollouts],
            reference_RL,
            group_advantages(reward_BG).flatten(),
            written.drawn_RL[:rollouts],
            kl_weight=self.stage.kl,
        )

    def rewards(
        self, written: Sequence[Sequence[int]], query_RD: Tensor, item_BD: Tensor, drawn: Asked
    ) -> dict[str, Tensor]:
        """The four rewards of each chain of the queries, float (R) each."""
        copies, chains, device = self.stage.rollouts, self.chains, query_RD.device
        said = [read_chain(self.learner.tokenizer, chain) for chain in written]
        true = [chains.values[row] for row in drawn.left_row.tolist() for _ in range(copies)]
        lengths = [len(chain) - 1 for chain in written]
        same = false_negatives(*(torch.from_numpy(key).to(device) for key in drawn.keys))
        own = torch.arange(len(item_BD), device=device)
        parts = {
            "format": [format_reward(s, list(t)) for s, t in zip(said, true, strict=True)],
            "length": [length_reward(length, chains.shortest, chains.longest) for length in lengths],
            "attributes": [attribute_reward(s, t) for s, t in zip(said, true, strict=True)],
        }
        return {
            **{name: torch.tensor(values, device=device) for name, values in parts.items()},
            "retrieval": retrieval_reward(
                query_RD, item_BD, own.repeat_interleave(copies), same.repeat_interleave(copies, dim=0)
            ),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The reference and the rewards so far."""
        earned = torch.tensor(self.earned).reshape(-1, len(fields(RewardWeights)))
        weights = self.reference[0].state_dict() if self.reference else {}
        return {"earned": earned, **{f"reference.{name}": tensor for name, tensor in weights.items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put them back: the model itself has moved on since the stage began."""
        self.earned = [tuple(row) for row in tensors["earned"].tolist()]
        weights = {name.removeprefix("reference."): t for name, t in tensors.items() if name != "earned"}
        if self.reference:
            self.reference[0].load_state_dict(weights)

    def facts(self) -> dict[str, object]:
        """Pairs, fields, and the mean of each reward over tenths of the stage."""
        tenths = np.array_split(np.array(self.earned), min(10, max(len(self.earned), 1)))
        names = [field.name for field in fields(RewardWeights)]
        earned = {name: [float(part[:, at].mean()) for part in tenths] for at, name in enumerate(names)}
        weights = dict(zip(names, astuple(self.stage.rewards), strict=True))
        return {
            **self.pairs.facts(), "fields": list(self.chains.names), "weights": weights,
            "rewards": earned if self.earned else {},
        }  # fmt: skip
