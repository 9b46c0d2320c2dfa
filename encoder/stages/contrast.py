"""Contrastive post-training: a query of any modality chooses its item (MOON Embedding §1.4, §1.5; MOON §2.1).

Each step draws one kind of pair, so that the negatives in its batch are of the same modality as the positive.

Shapes: B pairs, D vector width, N negatives beyond the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from encoder.backbone.packing import Sample
from encoder.examples.cleaning import CatalogueEntities, clean, entity_counts
from encoder.examples.corpus import Corpus
from encoder.examples.negatives import CategoryNegatives, deepest_categories
from encoder.examples.pairs import Pairs, Relations
from encoder.examples.views import View, can_show, show
from encoder.learner import Learner, NothingToLearn, Objective
from encoder.losses.alignment import RHO
from encoder.losses.circle import matryoshka_circle_loss
from encoder.losses.gather import gather_keys, gather_with_gradient
from encoder.losses.info_nce import false_extra_negatives, false_negatives, matryoshka_info_nce
from encoder.losses.queue import VectorQueue, false_queue_negatives

PLENTY = 1_000  # pairs of a kind; of fewer each would be seen more often than is good for it
CLEANED = 2_000  # pairs of one kind that the cleaning rules look at, at most


@dataclass(frozen=True)
class Kind:
    """One kind of pair.

    Attributes:
        relation: what relates the two: the first of these that the data has (``pairs.Relations``).
        query, item: what is shown of each.
        share: of the steps, relative to the other kinds; less where there are fewer than ``PLENTY`` pairs.
        temperature: of InfoNCE.
    """

    relation: tuple[str, ...]
    query: View
    item: View
    share: float
    temperature: float = 0.05


# What users took together is a weak sign of likeness: at the temperature of an item's own halves the loss is
# least when all vectors lie together, and the space collapses; a higher one asks for less contrast
# (docs/log/encoder.md#co-purchase-pairs-at-a-low-temperature).
OWN = Kind(("own",), "image", "words", 0.6)
PART = Kind(("own",), "half", "all", 0.2)
QUERY = Kind(("query",), "all", "all", 0.25, 0.1)
BOUGHT = Kind(("bought",), "all", "all", 0.2, 0.2)

# MOON Embedding §1.4, Table 2, by samples in billions. The paper's queries are typed or photographed; where a
# log has none, a title stands for a typed query and another picture of the product for a photographed one.
ASKED, SEEN, TAKEN = ("query", "own"), ("variant", "own"), ("bought", "own")
NINE_KINDS = (
    Kind(ASKED, "title", "details", 0.2),
    Kind(ASKED, "title", "image", 0.2),
    Kind(ASKED, "title", "title+image", 0.2),
    Kind(ASKED, "title", "all", 0.5),
    Kind(SEEN, "image", "image", 0.2),
    Kind(SEEN, "image", "title+image", 0.5),
    Kind(SEEN, "image", "details+image", 0.2),
    Kind(TAKEN, "title+image", "title+image", 0.5, 0.2),
    Kind(TAKEN, "all", "all", 0.1, 0.2),
)
# MOON §2.2: queries image : text : both = 12 : 3 : 2, the item always with picture and text.
THREE_QUERIES = (
    Kind(SEEN, "image", "all", 12),
    Kind(ASKED, "words", "all", 3),
    Kind(TAKEN, "all", "all", 2, 0.2),
)


@dataclass(frozen=True)
class Contrast:
    """A round of contrastive post-training.

    Attributes:
        share: of the training budget.
        kinds: of pairs, and how they are mixed.
        loss: InfoNCE (§1.4) or circle loss (§1.5); the latter has its own scale instead of a temperature.
        purchases: only purchases relate items and queries, where the log has any.
        cleaned: pairs pass the four cleaning rules of §1.5 first.
        hard: another item of each positive's category is a negative of the whole batch (§1.5).
        queue: item vectors of earlier steps kept as negatives (§1.5); 0 keeps none.
        rate: factor on the peak learning rates.
        name: of the round.
    """

    share: float
    kinds: tuple[Kind, ...]
    loss: Literal["info_nce", "circle"] = "info_nce"
    purchases: bool = False
    cleaned: bool = False
    hard: bool = False
    queue: int = 0
    rate: float = 1.0
    name: str = "contrast"

    def begin(self, learner: Learner) -> Contrasting:
        """Find the pairs of every kind."""
        return Contrasting(self, learner)


@dataclass(frozen=True)
class Drawn:
    """B pairs of one kind.

    Attributes:
        kind: of which.
        anchor: int64 (B), rows of the queries or of the items, by the kind's relation.
        item: int64 (B), rows of the items.
        left, right: samples of both.
    """

    kind: Kind
    anchor: np.ndarray
    item: np.ndarray
    left: list[Sample]
    right: list[Sample]


class Contrasting(Objective):
    """The loss of ``Contrast``.

    Raises:
        NothingToLearn: no kind has two pairs: fewer have no negatives.
    """

    def __init__(self, stage: Contrast, learner: Learner) -> None:
        super().__init__()
        self.stage, self.learner = stage, learner
        corpus = learner.corpus
        relations = learner.purchases if stage.purchases else learner.relations
        self.kept: dict[str, Mapping[str, int]] = {}
        self.kinds: list[tuple[Kind, Pairs]] = []
        for kind in stage.kinds:
            found = _pairs_of(kind, relations, corpus)
            if found is None:
                continue
            relation, pairs = found
            if stage.cleaned and relation != "own":  # an item and itself: nothing to clean
                name = f"{relation}: {kind.query} > {kind.item}"
                left, self.kept[name] = cleaned(learner, replace(kind, relation=(relation,)), pairs)
                pairs = left if len(left) > 1 else pairs  # rules that leave nothing are not for this data
            self.kinds.append((replace(kind, relation=(relation,)), pairs))
        if not self.kinds:
            raise NothingToLearn(
                f"{stage.name}: expected items with words, queries with clicks, or items taken together; found "
                f"{relations.counts()} pairs, none of which the recipe can show. Nothing to learn from."
            )
        share = np.array([kind.share * min(len(pairs), PLENTY) for kind, pairs in self.kinds])
        self.share = share / share.sum()
        self.queue = VectorQueue(stage.queue, learner.size.item_width) if stage.queue else None
        self.hard = None
        self.showable = {kind.item: can_show(corpus.items, kind.item) for kind, _ in self.kinds}
        if stage.hard:
            categories = deepest_categories([row["category"] for row in corpus.records])
            bought = relations.bought
            self.hard = CategoryNegatives(categories, corpus.spu, (bought.anchor, bought.item))

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        """A random batch of at most ``count`` pairs of one random kind."""
        corpus = self.learner.corpus
        kind, pairs = self.kinds[int(rng.choice(len(self.kinds), p=self.share))]
        relation = kind.relation[0]
        chosen = rng.choice(len(pairs), size=min(count, len(pairs)), replace=False)
        anchor, item = pairs.anchor[chosen], pairs.item[chosen]
        if relation == "bought":
            swap = rng.random(len(anchor)) < 0.5
            anchor, item = np.where(swap, item, anchor), np.where(swap, anchor, item)
        searched = relation == "query"
        side, view = (corpus.queries, "all") if searched else (corpus.items, kind.query)
        left = show(corpus, side, anchor, cast(View, view), rng)
        return Drawn(kind, anchor, item, left, show(corpus, corpus.items, item, kind.item, rng))

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """Matryoshka loss of one random batch of one random kind."""
        learner, stage, corpus = self.learner, self.stage, self.learner.corpus
        drawn = self.draw(learner.batch, rng)
        kind, anchor, item = drawn.kind, drawn.anchor, drawn.item
        relation = kind.relation[0]
        self.seen = corpus.items.ids[item]
        samples = [*drawn.left, *drawn.right]
        negative = np.empty(0, dtype=np.int64)
        if self.hard is not None:
            negative = self.hard.draw(item, rng, anchor=None if relation == "query" else anchor)[:, 0]
            negative = negative[negative >= 0]
            negative = negative[self.showable[kind.item][negative]]
        samples += show(corpus, corpus.items, negative, kind.item, rng)
        encoded = learner.encode(samples)
        vector = encoded.vector_BD
        count = len(item)
        anchor_B, item_B, spu_B, anchor_spu_B = (
            gather_keys(torch.from_numpy(key).to(vector.device))
            for key in pair_keys(corpus, relation, anchor, item)
        )
        keys = (anchor_B, item_B, spu_B, anchor_spu_B)
        left, right = (gather_with_gradient(vector[at : at + count]) for at in (0, count))
        extra, masked = [], []
        if len(negative):
            rows, spu = (
                gather_keys(torch.from_numpy(key).to(vector.device))
                for key in (negative, corpus.spu[negative])
            )
            extra.append(gather_with_gradient(vector[2 * count :]))
            masked.append(false_extra_negatives(*keys, rows, spu))
        if self.queue is not None:
            extra.append(self.queue.vector_SD.clone())
            masked.append(false_queue_negatives(self.queue, *keys))
            self.queue.push(F.normalize(right.detach(), dim=-1), item_B, spu_B)
        negatives = {
            "negatives_ND": torch.cat(extra) if extra else None,
            "masked_negatives_BN": torch.cat(masked, dim=1) if masked else None,
        }
        widths, same = learner.size.matryoshka, false_negatives(*keys)
        if stage.loss == "circle":
            contrasted = matryoshka_circle_loss(left, right, same, widths, **negatives)
        else:
            contrasted = matryoshka_info_nce(left, right, same, widths, kind.temperature, **negatives)
        return contrasted if encoded.balance is None else contrasted + RHO * encoded.balance

    def tensors(self) -> dict[str, Tensor]:
        """The queue, and the pairs that the model of this stage's beginning chose."""
        pairs = {
            f"pairs.{number}.{side}": torch.from_numpy(np.ascontiguousarray(getattr(chosen, side)))
            for number, (_, chosen) in enumerate(self.kinds)
            for side in ("anchor", "item")
        }
        return pairs if self.queue is None else pairs | self.queue.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the queue and the pairs back."""
        self.kinds = [
            (kind, Pairs(*(tensors[f"pairs.{number}.{side}"].numpy() for side in ("anchor", "item"))))
            for number, (kind, _) in enumerate(self.kinds)
        ]
        if self.queue is not None:
            self.queue.load({k: v for k, v in tensors.items() if not k.startswith("pairs.")})

    def facts(self) -> dict[str, object]:
        """Pairs of each kind, and what each cleaning rule left of them."""
        pairs = {f"{k.relation[0]}: {k.query} > {k.item}": len(p) for k, p in self.kinds}
        return {"pairs": pairs, **({"cleaned": self.kept} if self.kept else {})}


def cleaned(learner: Learner, kind: Kind, pairs: Pairs) -> tuple[Pairs, dict[str, int]]:
    """What the four rules of §1.5 leave of pairs, judged by the model as it is now.

    Of more pairs than ``CLEANED`` so many are drawn first: each costs two vectors.

    Returns:
        the pairs kept, and how many were left after each rule.
    """
    corpus, rng = learner.corpus, np.random.default_rng((learner.seed, 1))
    chosen = np.sort(rng.permutation(len(pairs))[:CLEANED])
    pairs = Pairs(pairs.anchor[chosen], pairs.item[chosen])
    side = corpus.queries if kind.relation == ("query",) else corpus.items
    views: tuple[View, View] = ("all" if side is corpus.queries else kind.query, kind.item)
    vectors = []
    for of, rows, view in ((side, pairs.anchor, views[0]), (corpus.items, pairs.item, views[1])):
        distinct, place = np.unique(rows, return_inverse=True)
        vectors.append(
            F.normalize(learner.model.vectors(show(corpus, of, distinct, view, rng)), dim=-1)[place]
        )
    category = deepest_categories([row["category"] for row in corpus.records])
    finder = CatalogueEntities(corpus.records)
    titles = entity_counts([row["title"] for row in corpus.records], finder)
    return clean(
        pairs,
        similarity_P=(vectors[0] * vectors[1]).sum(1).cpu().numpy(),
        spu=corpus.spu,
        category=category,
        exposure=np.bincount(category, weights=learner.shown).astype(np.float64),
        anchor_entities=entity_counts(corpus.asked, finder) if side is corpus.queries else titles,
        item_entities=titles,
        rng=rng,
    )


def _pairs_of(kind: Kind, relations: Relations, corpus: Corpus) -> tuple[str, Pairs] | None:
    """The first relation with two pairs that can be shown as ``kind`` asks, and those pairs."""
    for name in kind.relation:
        pairs: Pairs = getattr(relations, name)
        shown = can_show(corpus.items, kind.item)[pairs.item]
        if name != "query":  # a query shows what it has
            shown &= can_show(corpus.items, kind.query)[pairs.anchor]
        if shown.sum() > 1:
            return name, Pairs(pairs.anchor[shown], pairs.item[shown])
    return None


def pair_keys(corpus: Corpus, relation: str, anchor: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arguments of ``false_negatives``. Of an item's own views, equal words are equal items."""
    if relation == "query":
        return anchor, item, corpus.spu[item], -1 - np.arange(len(anchor))
    text = item
    if relation == "own":
        words: dict[tuple[int, ...], int] = {}
        text = np.array([words.setdefault(tuple(corpus.items.tokens[row]), row) for row in item.tolist()])
    return anchor, text, corpus.spu[item], corpus.spu[anchor]
