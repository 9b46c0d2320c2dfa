"""What both stages of MOON3.0 share: the chains items should get, pairs of contents, next tokens and contrast.

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
class Asked:
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
        NothingToLearn: no kind has two pairs, or the items have no field a chain could tell.
    """

    def __init__(self, name: str, kinds: tuple[Kind, ...], learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        self.pairs = Contrasting(Contrast(1.0, kinds, name=name), learner)
        records = learner.corpus.records
        names = chain_fields(records)
        if not names:
            raise NothingToLearn(
                f"{name}: expected a category or attributes that repeat among {len(records)} items, found "
                "none to write a chain of. Use a recipe without chains."
            )
        self.chains = TrueChains.of(learner.tokenizer, records, names)

    def draw(self, count: int, rng: np.random.Generator) -> Asked:
        """A random batch of at most ``count`` pairs of one random kind; a query gets the chain of its item."""
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

    def told(self, samples: Sequence[Sample], rows: np.ndarray) -> list[Sample]:
        """The samples with the true chains of items."""
        chains = self.chains.tokens
        return [replace(s, chain=chains[row]) for s, row in zip(samples, rows.tolist(), strict=True)]

    def contrast(self, query_BD: Tensor, item_BD: Tensor, drawn: Asked) -> Tensor:
        """Matryoshka InfoNCE of a batch."""
        same = false_negatives(*(torch.from_numpy(key).to(query_BD.device) for key in drawn.keys))
        widths = self.learner.size.matryoshka
        return matryoshka_info_nce(query_BD, item_BD, same, widths, drawn.temperature)


def next_token(chance_BL: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Minus the mean log-probability of the chains of some samples, ``<think>`` not counted."""
    return -chance_BL.sum() / sum(len(sample.chain) - 1 for sample in samples)


def balanced(loss: Tensor, encoded: Encoded) -> Tensor:
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
