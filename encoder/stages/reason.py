"""Generate the attribute chain, then embed: the two stages of MOON3.0 (§4.2).

Every input, query or item, is embedded with its own chain, so that a content has the same vector in either role.
``Reason`` is supervised with true chains; in ``Reinforce`` the model generates chains, which are rewarded and
embedded, as in serving. An input whose text states the attributes can copy them; from a picture alone they must be
recognised.
Queries have no attributes: their true chain is that of the item clicked or bought from them.

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
from encoder.stages.chaining import (
    KINDS,
    Asked,
    Chaining,
    next_token_loss,
    with_balance_loss,
    without_chains,
)
from encoder.stages.contrast import Kind


@dataclass(frozen=True)
class Reason:
    """The supervised stage: L_SFT = w^i L^i + w^t L^t + w^mm L^mm + w^a L^a_NTP (§4.2).

    In the paper's figure the chain is an input of the contrastive loss. Here that is a leak: query and item have the
    same true chain, and the vector learns to use nothing else (docs/log/encoder_papers.md#true-chains-leak). By
    default the contrastive loss therefore uses picture and text only, and chains enter the vector in ``Reinforce``.

    Attributes:
        fraction: of the training budget.
        kinds: kinds of pairs; their sampling weights are w^i, w^t and w^mm.
        chain_loss_weight: w^a, weight of the next-token loss on the true chains.
        leak: the contrastive loss includes the true chains.
        learning_rate_scale: factor on the peak learning rates.
        name: name of the stage.
    """

    fraction: float
    kinds: tuple[Kind, ...] = KINDS
    chain_loss_weight: float = 1.0
    leak: bool = False
    learning_rate_scale: float = 1.0
    name: str = "reason"

    def begin(self, learner: Learner) -> Reasoning:
        """Find the pairs and the true chains."""
        return Reasoning(self, learner)


@dataclass(frozen=True)
class Reinforce:
    """The reinforcement stage: L_RL = lambda_1 L_InfoNCE + lambda_2 L_GRPO (§4.2).

    Attributes:
        fraction: of the training budget.
        kinds: kinds of pairs.
        contrast_weight: lambda_1, weight of InfoNCE on the model's own sampled chains.
        grpo_weight: lambda_2; 0 is the control, which uses the model's own chains without reward.
        chain_loss_weight: weight of an additional next-token loss on true chains; not in the paper.
        rollouts: G.
        reward_weights: weights of the four rewards.
        kl_weight: weight of the KL divergence from the model at the beginning of the stage.
        learning_rate_scale: factor on the peak learning rates.
        name: name of the stage.
    """

    fraction: float
    kinds: tuple[Kind, ...] = KINDS
    contrast_weight: float = 1.0
    grpo_weight: float = 1.0
    chain_loss_weight: float = 0.0
    rollouts: int = 4
    reward_weights: RewardWeights = RewardWeights()
    kl_weight: float = KL_WEIGHT
    learning_rate_scale: float = 0.5
    name: str = "reinforce"

    def begin(self, learner: Learner) -> Reinforcing:
        """Find the pairs and the true chains, and copy the current model as the reference."""
        return Reinforcing(self, learner)


class Reasoning(Chaining):
    """The loss of ``Reason``."""

    def __init__(self, stage: Reason, learner: Learner) -> None:
        super().__init__(stage.name, stage.kinds, learner)
        self.stage = stage

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """L_SFT of one random batch: vectors and next-token loss from one forward pass."""
        model = self.learner.model
        drawn = self.draw(self.learner.batch, rng)
        samples = [
            *self.with_true_chains(drawn.left, drawn.left_row),
            *self.with_true_chains(drawn.right, drawn.right_row),
        ]
        packed = model.pack(samples)
        read = model.backbone(packed)
        seen = (packed, read) if self.stage.leak else without_chains(packed, read)
        encoded = model.encoded(*seen)
        query_BD, item_BD = encoded.vector_BD.chunk(2)
        log_probability_BL = chain_log_probabilities(model.backbone, packed, read.hidden_TH)
        chain_loss = next_token_loss(log_probability_BL, samples)
        loss = self.contrast(query_BD, item_BD, drawn) + self.stage.chain_loss_weight * chain_loss
        return with_balance_loss(loss, encoded)

    def facts(self) -> dict[str, object]:
        """Number of pairs of each kind, and the fields of a chain."""
        return {**self.pairs.facts(), "fields": list(self.chains.names)}


class Reinforcing(Chaining):
    """The loss of ``Reinforce``; on-policy, with one step per batch of rollouts."""

    def __init__(self, stage: Reinforce, learner: Learner) -> None:
        super().__init__(stage.name, stage.kinds, learner)
        self.stage = stage
        # In a tuple, so that torch does not register it as a submodule to be trained.
        self.reference: tuple[EncoderModel, ...] = ()
        if stage.grpo_weight and stage.kl_weight:
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
        if stage.chain_loss_weight:
            samples += self.with_true_chains(drawn.left, drawn.left_row)
        packed = model.pack(samples)
        read = model.backbone(packed)
        encoded = model.encoded(packed, read)
        query_RD = encoded.vector_BD[:rollouts]
        item_BD = encoded.vector_BD[rollouts : rollouts + pairs]
        each = [self.contrast(query_RD[g::copies], item_BD, drawn) for g in range(copies)]
        loss = stage.contrast_weight * torch.stack(each).mean()
        parts = self.rewards(written.chains[:rollouts], query_RD, item_BD, drawn)
        self.earned.append(tuple(float(parts[field.name].mean()) for field in fields(RewardWeights)))
        if stage.grpo_weight or stage.chain_loss_weight:
            log_probability_BL = chain_log_probabilities(model.backbone, packed, read.hidden_TH)
            true = slice(rollouts + pairs, None)
            if stage.chain_loss_weight:
                chain_loss = next_token_loss(log_probability_BL[true], samples[true])
                loss = loss + stage.chain_loss_weight * chain_loss
            if stage.grpo_weight:
                policy_loss = self.policy_loss(packed, log_probability_BL, written, parts)
                loss = loss + stage.grpo_weight * policy_loss
        return with_balance_loss(loss, encoded)

    def policy_loss(
        self, packed: Packed, log_probability_BL: Tensor, written: Rollouts, parts: Mapping[str, Tensor]
    ) -> Tensor:
        """L_GRPO of the queries' chains, the first rows of ``packed`` and ``written``."""
        rollouts, length = len(parts["format"]), written.drawn_RL.shape[1]
        policy_RL = reference_RL = log_probability_BL[:rollouts, :length]
        if self.reference:
            backbone = self.reference[0].backbone
            with torch.no_grad():
                reference_BL = chain_log_probabilities(backbone, packed, backbone(packed).hidden_TH)
            reference_RL = reference_BL[:rollouts, :length]
        reward_BG = self.stage.reward_weights.total(parts).view(-1, self.stage.rollouts)
        return grpo_loss(
            policy_RL,
            written.log_probability_RL[:rollouts],
            reference_RL,
            group_advantages(reward_BG).flatten(),
            written.drawn_RL[:rollouts],
            kl_weight=self.stage.kl_weight,
        )

    def rewards(
        self, written: Sequence[Sequence[int]], query_RD: Tensor, item_BD: Tensor, drawn: Asked
    ) -> dict[str, Tensor]:
        """The four rewards of the queries' chains, float (R) each."""
        copies, chains, device = self.stage.rollouts, self.chains, query_RD.device
        said = [read_chain(self.learner.tokenizer, chain) for chain in written]
        true = [chains.values[row] for row in drawn.left_row.tolist() for _ in range(copies)]
        lengths = [len(chain) - 1 for chain in written]
        same_BB = false_negatives(*(torch.from_numpy(key).to(device) for key in drawn.keys))
        own = torch.arange(len(item_BD), device=device)
        parts = {
            "format": [format_reward(s, list(t)) for s, t in zip(said, true, strict=True)],
            "length": [length_reward(length, chains.shortest, chains.longest) for length in lengths],
            "attributes": [attribute_reward(s, t) for s, t in zip(said, true, strict=True)],
        }
        return {
            **{name: torch.tensor(values, device=device) for name, values in parts.items()},
            "retrieval": retrieval_reward(
                query_RD, item_BD, own.repeat_interleave(copies), same_BB.repeat_interleave(copies, dim=0)
            ),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The reference and the rewards so far."""
        earned = torch.tensor(self.earned).reshape(-1, len(fields(RewardWeights)))
        weights = self.reference[0].state_dict() if self.reference else {}
        return {"earned": earned, **{f"reference.{name}": tensor for name, tensor in weights.items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore both: the reference differs from the current model, which has been trained since."""
        self.earned = [tuple(row) for row in tensors["earned"].tolist()]
        weights = {name.removeprefix("reference."): t for name, t in tensors.items() if name != "earned"}
        if self.reference:
            self.reference[0].load_state_dict(weights)

    def facts(self) -> dict[str, object]:
        """Number of pairs, fields, reward weights, and the mean of each reward over tenths of the stage."""
        tenths = np.array_split(np.array(self.earned), min(10, max(len(self.earned), 1)))
        names = [field.name for field in fields(RewardWeights)]
        earned = {name: [float(part[:, at].mean()) for part in tenths] for at, name in enumerate(names)}
        weights = dict(zip(names, astuple(self.stage.reward_weights), strict=True))
        return {
            **self.pairs.facts(), "fields": list(self.chains.names), "weights": weights,
            "rewards": earned if self.earned else {},
        }  # fmt: skip
