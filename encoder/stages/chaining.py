"""Common parts of both stages of MOON3.0: true chains, pairs, the next-token loss and the contrastive loss.

Shapes: B pairs, L tokens of the longest chain, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from encoder.backbone.backbone import Read
from encoder.backbone.packing import CHAIN, Packed, Sample
from encoder.learner import Learner, NothingToLearn, Objective
from encoder.losses.alignment import RHO
from encoder.losses.info_nce import false_negatives, matryoshka_info_nce
from encoder.model import Encoded
from encoder.parts.chain import Marks, chain_fields, chain_marks, chain_tokens, chain_values
from encoder.parts.experts import Routed
from encoder.stages.contrast import BOUGHT, OWN, PART, QUERY, Contrast, Contrasting, Kind, pair_keys

# L^i, L^t and L^mm of the paper, by the query's modality: picture, text, both. One kind is drawn per step, so the
# sampling weights of the kinds are the loss weights w^i, w^t and w^mm.
KINDS = (OWN, PART, QUERY, BOUGHT)


@dataclass(frozen=True)
class TrueChains:
    """The true chains of a corpus's items.

    Attributes:
        names: the fields of a chain.
        values: each item's true values of these fields.
        tokens: each item's chain as token ids, including the marks.
        marks: the tokenizer's chain tokens.
        shortest, longest: number of tokens without ``<think>``: the bounds of the length reward.
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
            names: fields of a chain, see ``encoder.parts.chain.chain_fields``.
        """
        values = [chain_values(record, names) for record in records]
        tokens = chain_tokens(tokenizer, values)
        lengths = [len(chain) - 1 for chain in tokens]
        return cls(tuple(names), values, tokens, chain_marks(tokenizer), min(lengths), max(lengths))


@dataclass(frozen=True)
class Asked:
    """B pairs of one kind.

    Attributes:
        left, right: samples of the queries and of the items, without chains.
        left_row, right_row: int64 (B), row of the item whose true chain each sample has.
        keys: arguments of ``false_negatives``.
        temperature: temperature of InfoNCE.
    """

    left: list[Sample]
    right: list[Sample]
    left_row: np.ndarray
    right_row: np.ndarray
    keys: tuple[np.ndarray, ...]
    temperature: float


class Chaining(Objective):
    """Base of both stages: pairs, true chains, and the contrastive loss.

    Raises:
        NothingToLearn: no kind has two pairs, or no field of the items is suitable for a chain.
    """

    def __init__(self, name: str, kinds: tuple[Kind, ...], learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        self.pairs = Contrasting(Contrast(1.0, kinds, name=name), learner)
        records = learner.corpus.records
        names = chain_fields(records)
        if not names:
            raise NothingToLearn(
                f"{name}: expected a category or attributes whose values repeat among {len(records)} items, found "
                "none. Use a recipe without chains."
            )
        self.chains = TrueChains.of(learner.tokenizer, records, names)

    def draw(self, count: int, rng: np.random.Generator) -> Asked:
        """A random batch of at most ``count`` pairs of one random kind; a query has the chain of its item."""
        drawn = self.pairs.draw(count, rng)
        relation = drawn.kind.relation[0]
        self.seen = self.learner.corpus.items.ids[drawn.item]
        return Asked(
            left=drawn.left,
            right=drawn.right,
            left_row=drawn.item if relation == "query" else drawn.anchor,
            right_row=drawn.item,
            keys=pair_keys(self.learner.corpus, relation, drawn.anchor, drawn.item),
            temperature=drawn.kind.temperature,
        )

    def with_true_chains(self, samples: Sequence[Sample], rows: np.ndarray) -> list[Sample]:
        """The samples, each with the true chain of the item in ``rows``."""
        chains = self.chains.tokens
        return [replace(s, chain=chains[row]) for s, row in zip(samples, rows.tolist(), strict=True)]

    def contrast(self, query_BD: Tensor, item_BD: Tensor, drawn: Asked) -> Tensor:
        """Matryoshka InfoNCE of a batch."""
        same_BB = false_negatives(*(torch.from_numpy(key).to(query_BD.device) for key in drawn.keys))
        widths = self.learner.size.matryoshka
        return matryoshka_info_nce(query_BD, item_BD, same_BB, widths, drawn.temperature)


def next_token_loss(log_probability_BL: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Negative mean log-probability of the tokens of the samples' chains, without ``<think>``."""
    return -log_probability_BL.sum() / sum(len(sample.chain) - 1 for sample in samples)


def with_balance_loss(loss: Tensor, encoded: Encoded) -> Tensor:
    """The loss plus the weighted load-balancing loss, if the model has experts."""
    return loss if encoded.balance is None else loss + RHO * encoded.balance


def without_chains(packed: Packed, read: Read) -> tuple[Packed, Read]:
    """Remove the chains from sequences and their hidden states; the tokens before a chain do not attend to it."""
    before = packed.part_T != CHAIN
    routes = tuple(
        Routed(one.hidden_TH[before], one.weight_TZ[before], one.probability_TZ[before])
        for one in read.routes
    )
    rest = {name: getattr(packed, name)[before] for name in ("ids_T", "sequence_T", "part_T", "kinds_T")}
    bare = replace(packed, positions_3T=packed.positions_3T[:, before], groups=(), **rest)
    return bare, Read(read.hidden_TH[before], routes)
