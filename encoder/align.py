"""Dual-level alignment, joint over modalities (MOON2.0 §3.2-§3.5).

Each step draws triplets (query, positive, negative) of one relation. The query is read as text, as image and as
both, the positive and the negative as text, as image and whole: one packed batch, five objectives.

Shapes: B triplets, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.contracts import DataError
from encoder.contrast import pair_keys
from encoder.examples.coaugment import Coaugmented
from encoder.examples.negatives import CategoryNegatives, deepest_categories
from encoder.examples.pairs import Pairs
from encoder.examples.views import View, can_show, show
from encoder.learner import Learner, Objective
from encoder.losses.alignment import inter_loss, intra_loss, total
from encoder.losses.filtering import triplet_weights
from encoder.losses.info_nce import false_extra_negatives, false_negatives, over_widths
from encoder.packing import Sample
from encoder.parts.modality import OBJECTIVES, DualAlignment

# Shares of the steps and temperature by relation, renormalised over those that have pairs. The paper's triplets
# all come from searches; where a log has few or none, an item stands for a query that asks for it.
RELATIONS = {"own": (0.5, 0.05), "variant": (0.1, 0.05), "query": (0.2, 0.1), "bought": (0.2, 0.2)}
# How a query is read, by relation: an item that asks for itself must not show all it has.
READ: dict[str, tuple[View, View, View]] = {
    "own": ("half", "image", "half"),
    "variant": ("words", "image", "all"),
    "query": ("words", "image", "all"),
    "bought": ("words", "image", "all"),
}


@dataclass(frozen=True)
class Align:
    """The one stage of MOON2.0.

    Attributes:
        share: of the training budget.
        intra: image and text of one product are aligned too (§3.3); False leaves the query-to-item part only.
        augmented: positives are shown with enriched text and varied pictures (§3.4).
        filtered: triplets the model finds implausible weigh less (§3.5).
        name: of the stage.
    """

    share: float
    intra: bool = True
    augmented: bool = True
    filtered: bool = True
    name: str = "align"

    def begin(self, learner: Learner) -> Objective:
        """Find the triplets."""
        return Aligning(self, learner)


class Aligning(Objective):
    """L_total = L_inter + L_intra + rho L_aux + sigma L_sparsity (§3.3).

    Without experts the objectives weigh the same, 1/M each: then there is nothing for W* to route.

    Raises:
        DataError: no relation has two pairs.
    """

    def __init__(self, stage: Align, learner: Learner) -> None:
        super().__init__()
        self.stage, self.learner = stage, learner
        corpus = learner.corpus
        self.pairs = {name: _showable(learner, name) for name in RELATIONS}
        self.pairs = {name: pairs for name, pairs in self.pairs.items() if len(pairs) > 1}
        if not self.pairs:
            raise DataError(
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
                experts = len(next(iter(mixtures.values())).experts)
                self.alignment = DualAlignment(experts).to(learner.model.device)
        self.coaugmented = Coaugmented(learner) if stage.augmented else None
        self.omega: list[dict[str, float]] = []

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """L_total of one random batch of triplets of one random relation."""
        corpus = self.learner.corpus
        share = np.array([RELATIONS[name][0] for name in self.pairs])
        relation = list(self.pairs)[int(rng.choice(len(self.pairs), p=share / share.sum()))]
        pairs, temperature = self.pairs[relation], RELATIONS[relation][1]
        count = min(self.learner.batch // 2, len(pairs))
        chosen = rng.choice(len(pairs), size=count, replace=False)
        anchor, item = pairs.anchor[chosen], pairs.item[chosen]
        self.seen = corpus.items.ids[item]
        negative = self.hard.draw(item, rng, anchor=None if relation == "query" else anchor)[:, 0]
        negative = np.where(negative >= 0, negative, rng.permutation(item))
        side = corpus.queries if relation == "query" else corpus.items

        batch = Batch()
        for role, view in zip(("text", "image", "both"), READ[relation], strict=True):
            rows = np.flatnonzero(self.readable[relation, view][anchor])
            batch.add(role, rows, show(corpus, side, anchor[rows], view, rng))
        for role, rows in (("positive", item), ("negative", negative)):
            whole = show(corpus, corpus.items, rows, "all", rng)
            if self.coaugmented is not None and role == "positive":
                whole = self.coaugmented(rows, whole, rng)
            batch.add(role, np.arange(count), whole)
            if self.stage.intra:
                both = np.flatnonzero(self.has_both[rows])
                batch.add(f"{role} text", both, show(corpus, corpus.items, rows[both], "words", rng))
                batch.add(f"{role} image", both, show(corpus, corpus.items, rows[both], "image", rng))
        encoded = self.learner.encode(batch.samples)
        device = encoded.vector_BD.device
        keys = [torch.from_numpy(key).to(device) for key in pair_keys(corpus, relation, anchor, item)]
        rows_N, spu_N = (torch.from_numpy(key).to(device) for key in (negative, corpus.spu[negative]))
        same, same_N = false_negatives(*keys), false_extra_negatives(*keys, rows_N, spu_N)
        positive_BD, negative_ND = (encoded.vector_BD[batch.at[role]] for role in ("positive", "negative"))

        losses: dict[str, Tensor] = {}
        gates: dict[str, Tensor] = {}
        for role in ("text", "image", "both"):
            at = batch.at[role]
            if len(at) < 2:
                continue
            rows = torch.from_numpy(batch.rows[role]).to(device)
            query_BD, mine_BD = encoded.vector_BD[at], positive_BD[rows]
            weight = None
            if self.stage.filtered:
                weight = triplet_weights(
                    F.cosine_similarity(query_BD, mine_BD),
                    F.cosine_similarity(query_BD, negative_ND[rows]),
                    progress,
                )
            losses[role] = over_widths(
                lambda w, q=query_BD, p=mine_BD, r=rows, x=weight: inter_loss(
                    q[:, :w], p[:, :w], same[r][:, r], negative_ND[:, :w], same_N[r], x, temperature
                ),
                self.learner.size.matryoshka,
            )
            if encoded.gate_BZ is not None:
                gates[role] = encoded.gate_BZ[at]
        for role, rows in (("positive", item), ("negative", negative)) if self.stage.intra else ():
            text_BD, image_BD = (encoded.vector_BD[batch.at[f"{role} {part}"]] for part in ("text", "image"))
            if len(text_BD) < 2:
                continue
            both = rows[batch.rows[f"{role} text"]]
            fits = false_negatives(
                *(torch.from_numpy(k).to(device) for k in pair_keys(corpus, "own", both, both))
            )
            losses[role] = over_widths(
                lambda w, i=image_BD, t=text_BD, f=fits: intra_loss(i[:, :w], t[:, :w], f),
                self.learner.size.matryoshka,
            )
            if encoded.gate_BZ is not None:
                both_at = np.concatenate([batch.at[f"{role} image"], batch.at[f"{role} text"]])
                gates[role] = encoded.gate_BZ[both_at]
        return self._total(losses, gates, encoded.balance)

    def _total(self, losses: dict[str, Tensor], gates: dict[str, Tensor], balance: Tensor | None) -> Tensor:
        some = next(iter(losses.values()))
        zero = some.new_zeros(())
        if self.alignment is None or balance is None:
            omega = {name: some.new_tensor(1 / len(OBJECTIVES)) for name in losses}
            return total(losses, omega, balance if balance is not None else zero, zero)
        none = some.new_zeros(0, self.alignment.affinity_ZM.shape[0])
        weight_M = self.alignment.objective_weights([gates.get(name, none) for name in OBJECTIVES])
        self.omega.append(self.alignment.watch(weight_M))
        return total(losses, dict(zip(OBJECTIVES, weight_M, strict=True)), balance, self.alignment.sparsity())

    def facts(self) -> dict[str, object]:
        """Triplets of each relation, and how the objectives weighed over the last steps."""
        recent = self.omega[-50:]
        weights = (
            {name: float(np.mean([one[name] for one in recent])) for name in recent[-1]} if recent else {}
        )
        return {"triplets": {name: len(pairs) for name, pairs in self.pairs.items()}, "omega": weights}


class Batch:
    """Samples of several roles in one list, and where each role's stand.

    Attributes:
        samples: of all roles.
        at: int64, places of a role's samples.
        rows: int64, which triplets they belong to.
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


def _showable(learner: Learner, relation: str) -> Pairs:
    """Pairs of a relation of whose query and item there is something to show."""
    corpus = learner.corpus
    pairs: Pairs = getattr(learner.relations, relation)
    side = corpus.queries if relation == "query" else corpus.items
    shown = can_show(corpus.items, "all")[pairs.item]
    shown &= np.any([can_show(side, view)[pairs.anchor] for view in READ[relation]], axis=0)
    return Pairs(pairs.anchor[shown], pairs.item[shown])
