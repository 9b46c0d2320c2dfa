"""Dual-level alignment, joint over modalities (MOON2.0 §3.2-§3.5).

Each step draws triplets (query, positive, negative) of one relation. The query is encoded as text, as image and as
both; the positive and the negative as text, as image and with everything: one packed batch, five objectives.

Shapes: B triplets, N negatives, S samples of all roles, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from encoder.backbone.packing import Sample
from encoder.examples.negatives import CategoryNegatives, deepest_categories
from encoder.examples.pairs import Pairs
from encoder.examples.views import View, can_show, show
from encoder.learner import Learner, NothingToLearn, Objective
from encoder.losses.alignment import inter_loss, intra_loss, total
from encoder.losses.filtering import triplet_weights
from encoder.losses.info_nce import false_extra_negatives, false_negatives, over_widths
from encoder.model import Encoded
from encoder.parts.modality import OBJECTIVES, DualAlignment
from encoder.stages.coaugment import Coaugmented
from encoder.stages.contrast import pair_keys

# Relation -> (sampling weight, temperature); weights are normalised over the relations that have pairs. The paper's
# triplets all come from searches; where a log has few or none, an item serves as the query for itself.
RELATIONS = {"own": (0.5, 0.05), "variant": (0.1, 0.05), "query": (0.2, 0.1), "bought": (0.2, 0.2)}
# Relation -> views of the query as text, image and both: an item that is its own query must not be shown completely.
READ: dict[str, tuple[View, View, View]] = {
    "own": ("half", "image", "half"),
    "variant": ("words", "image", "all"),
    "query": ("words", "image", "all"),
    "bought": ("words", "image", "all"),
}
QUERY_ROLES = ("text", "image", "both")
ITEM_ROLES = {"positive": "item", "negative": "negative"}  # objective -> field of Triplets


@dataclass(frozen=True)
class Align:
    """The one stage of MOON2.0.

    Attributes:
        fraction: of the training budget.
        intra: also align image and text of one product (§3.3); False: queries with items only.
        augmented: positives get enriched text and picture variants (§3.4).
        filtered: implausible triplets get less weight (§3.5).
        learning_rate_scale: factor on the peak learning rates.
        name: name of the stage.
    """

    fraction: float
    intra: bool = True
    augmented: bool = True
    filtered: bool = True
    learning_rate_scale: float = 1.0
    name: str = "align"

    def begin(self, learner: Learner) -> Objective:
        """Find the triplets."""
        return Aligning(self, learner)


class Aligning(Objective):
    """L_total = L_inter + L_intra + rho L_aux + sigma L_sparsity (§3.3).

    Without experts all objectives have the loss weight 1/M, because W* assigns objectives to experts.

    Raises:
        NothingToLearn: no relation has two pairs.
    """

    def __init__(self, stage: Align, learner: Learner) -> None:
        super().__init__()
        self.stage, self.learner = stage, learner
        corpus = learner.corpus
        self.pairs = {name: _showable(learner, name) for name in RELATIONS}
        self.pairs = {name: pairs for name, pairs in self.pairs.items() if len(pairs) > 1}
        if not self.pairs:
            raise NothingToLearn(
                f"{stage.name}: expected pairs of items, or of queries and items; found "
                f"{learner.relations.counts()}. Nothing to learn from."
            )
        self.has_both = corpus.items.has_image & corpus.items.has_text
        self.readable = {
            (name, view): can_show(corpus.queries if name == "query" else corpus.items, view)
            for name in self.pairs
            for view in READ[name]
        }
        bought = learner.relations.bought
        categories = deepest_categories([row["category"] for row in corpus.records])
        self.hard = CategoryNegatives(categories, corpus.spu, (bought.anchor, bought.item))
        mixtures = learner.model.backbone.experts
        self.alignment: DualAlignment | None = None
        if len(mixtures):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(learner.seed)
                mixture: Any = next(iter(mixtures.values()))
                self.alignment = DualAlignment(len(mixture.experts)).to(learner.model.device)
        self.coaugmented = Coaugmented(learner) if stage.augmented else None
        self.omega: list[dict[str, float]] = []

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """L_total of one random batch of triplets of one random relation."""
        drawn = self._draw(rng)
        batch = self._batch(drawn, rng)
        encoded = self.learner.encode(batch.samples)
        losses = self._inter(drawn, batch, encoded, progress)
        if self.stage.intra:
            losses |= self._intra(drawn, batch, encoded)
        return self._total(losses, batch, encoded)

    def _draw(self, rng: np.random.Generator) -> Triplets:
        """Half as many triplets as the batch has pairs: a triplet has up to nine sequences, a pair two."""
        corpus = self.learner.corpus
        weight = np.array([RELATIONS[name][0] for name in self.pairs])
        relation = list(self.pairs)[int(rng.choice(len(self.pairs), p=weight / weight.sum()))]
        pairs = self.pairs[relation]
        chosen = rng.choice(len(pairs), size=min(self.learner.batch // 2, len(pairs)), replace=False)
        anchor, item = pairs.anchor[chosen], pairs.item[chosen]
        self.seen = corpus.items.ids[item]
        negative = self.hard.draw(item, rng, anchor=None if relation == "query" else anchor)[:, 0]
        return Triplets(relation, anchor, item, np.where(negative >= 0, negative, rng.permutation(item)))

    def _batch(self, drawn: Triplets, rng: np.random.Generator) -> Batch:
        """Samples of the query in three views; of positive and negative completely and, for L_intra, by modality."""
        corpus, batch = self.learner.corpus, Batch()
        side = corpus.queries if drawn.relation == "query" else corpus.items
        for role, view in zip(QUERY_ROLES, READ[drawn.relation], strict=True):
            rows = np.flatnonzero(self.readable[drawn.relation, view][drawn.anchor])
            batch.add(role, rows, show(corpus, side, drawn.anchor[rows], view, rng))
        for role, of in ITEM_ROLES.items():
            items: np.ndarray = getattr(drawn, of)
            whole = show(corpus, corpus.items, items, "all", rng)
            if self.coaugmented is not None and role == "positive":
                whole = self.coaugmented(items, whole, rng)
            batch.add(role, np.arange(len(items)), whole)
            if self.stage.intra:
                both = np.flatnonzero(self.has_both[items])
                batch.add(f"{role} text", both, show(corpus, corpus.items, items[both], "words", rng))
                batch.add(f"{role} image", both, show(corpus, corpus.items, items[both], "image", rng))
        return batch

    def _inter(self, drawn: Triplets, batch: Batch, encoded: Encoded, progress: float) -> dict[str, Tensor]:
        """L^t, L^i and L^mm: each view of the query chooses its complete positive."""
        corpus, vector_SD = self.learner.corpus, encoded.vector_BD
        keys = _tensors(pair_keys(corpus, drawn.relation, drawn.anchor, drawn.item), vector_SD.device)
        further = _tensors((drawn.negative, corpus.spu[drawn.negative]), vector_SD.device)
        same_BB, same_BN = false_negatives(*keys), false_extra_negatives(*keys, *further)
        positive_BD, negative_BD = vector_SD[batch.at["positive"]], vector_SD[batch.at["negative"]]
        temperature, losses = RELATIONS[drawn.relation][1], {}
        for role in QUERY_ROLES:
            at, rows = batch.at[role], torch.from_numpy(batch.rows[role]).to(vector_SD.device)
            if len(at) < 2:
                continue
            query_BD, own_BD = vector_SD[at], positive_BD[rows]
            weight_B = None
            if self.stage.filtered:
                positive_B = F.cosine_similarity(query_BD, own_BD)
                weight_B = triplet_weights(
                    positive_B, F.cosine_similarity(query_BD, negative_BD[rows]), progress
                )
            losses[role] = self._query_loss(
                (query_BD, own_BD, negative_BD), same_BB[rows][:, rows], same_BN[rows], weight_B, temperature
            )
        return losses

    def _query_loss(
        self,
        vectors: tuple[Tensor, Tensor, Tensor],
        same_BB: Tensor,
        same_BN: Tensor,
        weight_B: Tensor | None,
        temperature: float,
    ) -> Tensor:
        """Mean of ``inter_loss`` over the Matryoshka prefixes of queries, positives and negatives."""

        def loss_at(width: int) -> Tensor:
            query, positive, negative = (one[:, :width] for one in vectors)
            return inter_loss(query, positive, same_BB, negative, same_BN, weight_B, temperature)

        return over_widths(loss_at, self.learner.size.matryoshka)

    def _intra(self, drawn: Triplets, batch: Batch, encoded: Encoded) -> dict[str, Tensor]:
        """L^pos and L^neg: the picture of an item chooses the item's own text."""
        losses = {}
        for role, of in ITEM_ROLES.items():
            text_BD, image_BD = (encoded.vector_BD[batch.at[f"{role} {part}"]] for part in ("text", "image"))
            if len(text_BD) > 1:
                items = getattr(drawn, of)[batch.rows[f"{role} text"]]
                fits_BB = false_negatives(
                    *_tensors(pair_keys(self.learner.corpus, "own", items, items), text_BD.device)
                )
                losses[role] = self._item_loss(image_BD, text_BD, fits_BB)
        return losses

    def _item_loss(self, image_BD: Tensor, text_BD: Tensor, fits_BB: Tensor) -> Tensor:
        """Mean of ``intra_loss`` over the Matryoshka prefixes."""
        return over_widths(
            lambda width: intra_loss(image_BD[:, :width], text_BD[:, :width], fits_BB),
            self.learner.size.matryoshka,
        )

    def _total(self, losses: dict[str, Tensor], batch: Batch, encoded: Encoded) -> Tensor:
        """L_total: losses weighted by ``DualAlignment``, plus balance and sparsity."""
        zero = encoded.vector_BD.new_zeros(())
        if self.alignment is None or encoded.gate_BZ is None or encoded.balance is None:
            omega = {name: zero + 1 / len(OBJECTIVES) for name in losses}
            return total(losses, omega, zero, zero)
        gates = []
        for name in OBJECTIVES:  # objectives without a loss in this batch get an empty tensor
            roles = (f"{name} image", f"{name} text") if name in ITEM_ROLES else (name,)
            places = [batch.at[role] for role in roles] if name in losses else [np.empty(0, dtype=np.int64)]
            gates.append(encoded.gate_BZ[np.concatenate(places)])
        weight_M = self.alignment.objective_weights(gates)
        self.omega.append(self.alignment.watch(weight_M))
        omega = dict(zip(OBJECTIVES, weight_M, strict=True))
        return total(losses, omega, encoded.balance, self.alignment.sparsity())

    def facts(self) -> dict[str, object]:
        """Number of triplets of each relation, and the objectives' mean loss weights over the last 50 steps."""
        recent = self.omega[-50:]
        weights = (
            {name: float(np.mean([one[name] for one in recent])) for name in recent[-1]} if recent else {}
        )
        return {"triplets": {name: len(pairs) for name, pairs in self.pairs.items()}, "omega": weights}


@dataclass(frozen=True)
class Triplets:
    """B triplets of one relation.

    Attributes:
        relation: between query and positive.
        anchor: int64 (B), rows of the queries, or of the items that serve as queries.
        item: int64 (B), rows of the positives.
        negative: int64 (B), rows of the negatives, each from its positive's category.
    """

    relation: str
    anchor: np.ndarray
    item: np.ndarray
    negative: np.ndarray


class Batch:
    """Samples of several roles in one list, with the places of each role.

    Attributes:
        samples: samples of all roles.
        at: role -> int64, places of its samples in ``samples``.
        rows: role -> int64, the triplets that they belong to.
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.at: dict[str, np.ndarray] = {}
        self.rows: dict[str, np.ndarray] = {}

    def add(self, role: str, rows: np.ndarray, samples: Sequence[Sample]) -> None:
        """Append the samples of a role."""
        self.at[role] = np.arange(len(self.samples), len(self.samples) + len(samples))
        self.rows[role] = rows
        self.samples.extend(samples)


def _tensors(keys: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    return [torch.from_numpy(key).to(device) for key in keys]


def _showable(learner: Learner, relation: str) -> Pairs:
    """Pairs of a relation whose query has one of the relation's views and whose item has text or a picture."""
    corpus = learner.corpus
    pairs: Pairs = getattr(learner.relations, relation)
    side = corpus.queries if relation == "query" else corpus.items
    shown = can_show(corpus.items, "all")[pairs.item]
    shown &= np.any([can_show(side, view)[pairs.anchor] for view in READ[relation]], axis=0)
    return Pairs(pairs.anchor[shown], pairs.item[shown])
