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
from dataclasses import astuple, dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dataset.contracts import DataError
from encoder.backbone import Read
from encoder.contrast import BOUGHT, OWN, PART, QUERY, Contrast, Contrasting, Kind, pair_keys
from encoder.examples.views import View, show
from encoder.learner import Learner, Objective
from encoder.losses.alignment import RHO
from encoder.losses.grpo import KL_WEIGHT, group_advantages, grpo_loss
from encoder.losses.info_nce import false_negatives, matryoshka_info_nce
from encoder.losses.rewards import (
    RewardWeights,
    attribute_reward,
    format_reward,
    length_reward,
    retrieval_reward,
)
from encoder.model import Encoded, EncoderModel
from encoder.packing import CHAIN, Packed, Sample
from encoder.parts.chain import Marks, chain_fields, chain_marks, chain_tokens, chain_values, read_chain
from encoder.parts.experts import Routed
from encoder.parts.generate import Rollouts, chain_log_probabilities, write_chains

# L^i, L^t and L^mm of the paper, by what the query shows: picture, words, both. One is drawn per step, so the
# shares of these kinds of pair are the weights w^i, w^t and w^mm.
KINDS = (OWN, PART, QUERY, BOUGHT)


@dataclass(frozen=True)
class TrueChains:
    """The chains that the items of a corpus should get.

    Attributes:
        names: fields asked for.
        values: of each item, its true fields among them.
        tokens: of each item, marks included.
        marks: of the tokenizer.
        shortest, longest: tokens of a chain, ``<think>`` not counted: bounds of the length reward.
    """

    names: tuple[str, ...]
    values: list[dict[str, str]]
    tokens: list[list[int]]
    marks: Marks
    shortest: int
    longest: int

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, records: Sequence[Mapping[str, object]], names: Sequence[str]
    ) -> TrueChains:
        """The chains of items.

        Args:
            tokenizer: with the marks.
            records: rows of ``dataset.contracts.ITEMS`` as Python values.
            names: fields to ask for, see ``encoder.parts.chain.chain_fields``.
        """
        values = [chain_values(record, names) for record in records]
        tokens = chain_tokens(tokenizer, values)
        lengths = [len(chain) - 1 for chain in tokens]
        return cls(tuple(names), values, tokens, chain_marks(tokenizer), min(lengths), max(lengths))


@dataclass(frozen=True)
class Reason:
    """The supervised stage: L_SFT = w^i L^i + w^t L^t + w^mm L^mm + w^a L^a_NTP (§4.2).

    The paper's figure has the chain among the inputs that are contrasted. Here that is a leak: query and item
    then show the same true chain, and the vector learns to read nothing else (LOG.md). By default contrast
    therefore sees picture and words only, and chains enter the vector in ``Reinforce``.

    Attributes:
        share: of the training budget.
        kinds: of pairs; their shares are w^i, w^t and w^mm.
        told: w^a, the weight of next-token prediction on the true chains.
        leak: contrast sees the true chains.
        name: of the stage.
    """

    share: float
    kinds: tuple[Kind, ...] = KINDS
    told: float = 1.0
    leak: bool = False
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
    name: str = "reinforce"

    def begin(self, learner: Learner) -> Reinforcing:
        """Find the pairs and the true chains, and keep the model as it is now for reference."""
        return Reinforcing(self, learner)


@dataclass(frozen=True)
class Drawn:
    """B pairs of one kind.

    Attributes:
        left, right: samples of the queries and of the items, without chains.
        left_row, right_row: int64 (B), the item whose chain each should get.
        keys: arguments of ``false_negatives``.
        temperature: of InfoNCE.
    """

    left: list[Sample]
    right: list[Sample]
    left_row: np.ndarray
    right_row: np.ndarray
    keys: tuple[np.ndarray, ...]
    temperature: float


class Chaining(Objective):
    """What both stages share: pairs, true chains, and the contrastive loss.

    Raises:
        DataError: no kind has two pairs, or the items have no field a chain could tell.
    """

    def __init__(self, stage: Reason | Reinforce, learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        self.pairs = Contrasting(Contrast(stage.share, stage.kinds, name=stage.name), learner)
        records = learner.corpus.records
        names = chain_fields(records)
        if not names:
            raise DataError(
                f"{stage.name}: expected a category or attributes that repeat among {len(records)} items, found "
                "none to write a chain of. Use a recipe without chains."
            )
        self.chains = TrueChains.of(learner.tokenizer, records, names)

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        """A random batch of at most ``count`` pairs of one random kind."""
        corpus = self.learner.corpus
        kind, pairs = self.pairs.kinds[int(rng.choice(len(self.pairs.kinds), p=self.pairs.share))]
        relation = kind.relation[0]
        chosen = rng.choice(len(pairs), size=min(count, len(pairs)), replace=False)
        anchor, item = pairs.anchor[chosen], pairs.item[chosen]
        if relation == "bought":
            swap = rng.random(len(anchor)) < 0.5
            anchor, item = np.where(swap, item, anchor), np.where(swap, anchor, item)
        searched = relation == "query"
        view: View = "all" if searched else kind.query
        self.seen = corpus.items.ids[item]
        return Drawn(
            left=show(corpus, corpus.queries if searched else corpus.items, anchor, view, rng),
            right=show(corpus, corpus.items, item, kind.item, rng),
            left_row=item if searched else anchor,
            right_row=item,
            keys=pair_keys(corpus, relation, anchor, item),
            temperature=kind.temperature,
        )

    def told(self, samples: Sequence[Sample], rows: np.ndarray) -> list[Sample]:
        """The samples with the true chains of items."""
        chains = self.chains.tokens
        return [replace(s, chain=chains[row]) for s, row in zip(samples, rows.tolist(), strict=True)]

    def contrast(self, query_BD: Tensor, item_BD: Tensor, drawn: Drawn) -> Tensor:
        """Matryoshka InfoNCE of a batch."""
        same = false_negatives(*(torch.from_numpy(key).to(query_BD.device) for key in drawn.keys))
        widths = self.learner.size.matryoshka
        return matryoshka_info_nce(query_BD, item_BD, same, widths, drawn.temperature)


def _next_token(chance_BL: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Minus the mean log-probability of the chains of some samples, ``<think>`` not counted."""
    return -chance_BL.sum() / sum(len(sample.chain) - 1 for sample in samples)


def _balanced(loss: Tensor, encoded: Encoded) -> Tensor:
    """The loss with that of unevenly used experts, where there are experts."""
    return loss if encoded.balance is None else loss + RHO * encoded.balance


def unchained(packed: Packed, read: Read) -> tuple[Packed, Read]:
    """Sequences that have been read, without their chains: what comes before a chain does not see it."""
    before = packed.part != CHAIN
    routes = tuple(
        Routed(one.hidden_TH[before], one.weight_TZ[before], one.probability_TZ[before])
        for one in read.routes
    )
    rest = {name: getattr(packed, name)[before] for name in ("ids", "sequence", "part", "kinds")}
    bare = replace(packed, positions=packed.positions[:, before], groups=(), **rest)
    return bare, Read(read.hidden_TH[before], routes)


class Reasoning(Chaining):
    """The loss of ``Reason``."""

    def __init__(self, stage: Reason, learner: Learner) -> None:
        super().__init__(stage, learner)
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
        told = _next_token(chain_log_probabilities(model.backbone, packed, read.hidden_TH), samples)
        return _balanced(self.contrast(left, right, drawn) + self.stage.told * told, encoded)

    def facts(self) -> dict[str, object]:
        """Pairs of each kind, and the fields of a chain."""
        return {**self.pairs.facts(), "fields": list(self.chains.names)}


class Reinforcing(Chaining):
    """The loss of ``Reinforce``; one step per batch of rollouts, so the policy is the one that drew them."""

    def __init__(self, stage: Reinforce, learner: Learner) -> None:
        super().__init__(stage, learner)
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
                loss = loss + stage.told * _next_token(
                    chance[rollouts + pairs :], samples[rollouts + pairs :]
                )
            if stage.grpo:
                loss = loss + stage.grpo * self.policy_loss(packed, chance, written, parts)
        return _balanced(loss, encoded)

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
        self, written: Sequence[Sequence[int]], query_RD: Tensor, item_BD: Tensor, drawn: Drawn
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
