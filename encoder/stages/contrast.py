"""Contrastive post-training: a query of any modality chooses its item (MOON Embedding §1.4, §1.5; MOON §2.1).

Each step draws one kind of pair, so that the negatives of a batch have the same modality as the positive.

Shapes: B pairs, S samples of all roles, N further negatives, D vector width.
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

PLENTY = 1_000  # a kind with fewer pairs is drawn less often, so that its pairs are not repeated too much
CLEANED = 2_000  # most pairs of one kind to which the cleaning rules are applied


@dataclass(frozen=True)
class Kind:
    """One kind of pair.

    Attributes:
        relation: names of relations (``pairs.Relations``), of which the first that the data has is used.
        query, item: views of the two.
        weight: sampling weight relative to the other kinds; reduced if there are fewer than ``PLENTY`` pairs.
        temperature: temperature of InfoNCE.
    """

    relation: tuple[str, ...]
    query: View
    item: View
    weight: float
    temperature: float = 0.05


# Items taken together are only weakly similar: at the temperature of an item's own views the loss is minimal when all
# vectors coincide, and the space collapses; a higher temperature demands less contrast
# (docs/log/encoder.md#co-purchase-pairs-at-a-low-temperature).
OWN = Kind(("own",), "image", "words", 0.6)
PART = Kind(("own",), "half", "all", 0.2)
ASKING = Kind(("own",), "title", "all", 0.1)  # a title asks for its item, as a searcher does
VARIANT = Kind(("variant",), "half", "all", 0.2)
DETAILS = Kind(("own",), "title+image", "details", 0.2)
QUERY = Kind(("query",), "all", "all", 0.25, 0.1)
BOUGHT = Kind(("bought",), "all", "all", 0.2, 0.2)

# Where a catalogue has pictures only, or words only, and none of a stage's kinds: an item in two views.
ALONE = (Kind(("own",), "image", "image", 1), Kind(("own",), "half", "half", 1))

# MOON Embedding §1.4, Table 2; weights are samples in billions. The paper's queries are typed or photographed;
# where a log has none, a title serves as a typed query and another picture of the product as a photographed one.
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
# MOON §2.2: queries image : text : both = 12 : 3 : 2; items always with picture and text.
THREE_QUERIES = (
    Kind(SEEN, "image", "all", 12),
    Kind(ASKED, "words", "all", 3),
    Kind(TAKEN, "all", "all", 2, 0.2),
)


@dataclass(frozen=True)
class Contrast:
    """A round of contrastive post-training.

    Attributes:
        fraction: of the training budget.
        kinds: kinds of pairs, with sampling weights.
        loss: InfoNCE (§1.4) or circle loss (§1.5), which has its own scale instead of a temperature.
        purchases: take pairs from purchases only, if the log has any.
        cleaned: apply the four cleaning rules of §1.5 to the pairs.
        hard: for each positive, add another item of its category to the negatives of the batch (§1.5).
        queue: number of item vectors of earlier steps used as negatives (§1.5); 0: none.
        learning_rate_scale: factor on the peak learning rates.
        name: name of the stage.
    """

    fraction: float
    kinds: tuple[Kind, ...]
    loss: Literal["info_nce", "circle"] = "info_nce"
    purchases: bool = False
    cleaned: bool = False
    hard: bool = False
    queue: int = 0
    learning_rate_scale: float = 1.0
    name: str = "contrast"

    def begin(self, learner: Learner) -> Contrasting:
        """Find the pairs of every kind."""
        return Contrasting(self, learner)


@dataclass(frozen=True)
class Drawn:
    """B pairs of one kind.

    Attributes:
        kind: their kind.
        anchor: int64 (B), rows of the queries or of the items, depending on the kind's relation.
        item: int64 (B), rows of the items.
        left, right: samples of anchors and of items.
    """

    kind: Kind
    anchor: np.ndarray
    item: np.ndarray
    left: list[Sample]
    right: list[Sample]


class Contrasting(Objective):
    """The loss of ``Contrast``.

    Raises:
        NothingToLearn: no kind has two pairs, which is the least that has in-batch negatives.
    """

    def __init__(self, stage: Contrast, learner: Learner) -> None:
        super().__init__()
        self.stage, self.learner = stage, learner
        corpus = learner.corpus
        relations = learner.purchases if stage.purchases else learner.relations
        self.kept: dict[str, Mapping[str, int]] = {}
        self.kinds: list[tuple[Kind, Pairs]] = []
        whole = (corpus.items.has_text & corpus.items.has_image).any()
        possible = whole or any(_pairs_of(kind, relations, corpus) for kind in stage.kinds)
        for kind in stage.kinds if possible else ALONE:
            found = _pairs_of(kind, relations, corpus)
            if found is None:
                continue
            relation, pairs = found
            if stage.cleaned and relation != "own":  # an item with itself needs no cleaning
                name = f"{relation}: {kind.query} > {kind.item}"
                left, self.kept[name] = cleaned(learner, replace(kind, relation=(relation,)), pairs)
                pairs = left if len(left) > 1 else pairs  # ignore rules that leave nothing of this data
            self.kinds.append((replace(kind, relation=(relation,)), pairs))
        if not self.kinds:
            raise NothingToLearn(
                f"{stage.name}: expected two items with words or pictures, queries with clicks, or items taken "
                f"together; found {relations.counts()} pairs, none with the views that the recipe needs. Nothing to "
                f"learn from."
            )
        weight = np.array([kind.weight * min(len(pairs), PLENTY) for kind, pairs in self.kinds])
        self.probability = weight / weight.sum()
        self.queue = VectorQueue(stage.queue, learner.model.width) if stage.queue else None
        self.hard = None
        self.showable = {kind.item: can_show(corpus.items, kind.item) for kind, _ in self.kinds}
        if stage.hard:
            categories = deepest_categories([row["category"] for row in corpus.records])
            bought = relations.bought
            self.hard = CategoryNegatives(categories, corpus.spu, (bought.anchor, bought.item))

    def draw(self, count: int, rng: np.random.Generator) -> Drawn:
        """A random batch of at most ``count`` pairs of one random kind."""
        corpus = self.learner.corpus
        kind, pairs = self.kinds[int(rng.choice(len(self.kinds), p=self.probability))]
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
        """Matryoshka loss of one random batch of pairs of one random kind."""
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
        vector_SD = encoded.vector_BD  # of anchors, items and hard negatives
        count = len(item)
        anchor_B, item_B, spu_B, anchor_spu_B = (
            gather_keys(torch.from_numpy(key).to(vector_SD.device))
            for key in pair_keys(corpus, relation, anchor, item)
        )
        keys = (anchor_B, item_B, spu_B, anchor_spu_B)
        anchor_BD, item_BD = (gather_with_gradient(vector_SD[at : at + count]) for at in (0, count))
        extra, masked = [], []
        if len(negative):
            rows, spu = (
                gather_keys(torch.from_numpy(key).to(vector_SD.device))
                for key in (negative, corpus.spu[negative])
            )
            extra.append(gather_with_gradient(vector_SD[2 * count :]))
            masked.append(false_extra_negatives(*keys, rows, spu))
        if self.queue is not None:
            extra.append(self.queue.vector_SD.clone())
            masked.append(false_queue_negatives(self.queue, *keys))
            self.queue.push(F.normalize(item_BD.detach(), dim=-1), item_B, spu_B)
        negatives = {
            "negatives_ND": torch.cat(extra) if extra else None,
            "masked_negatives_BN": torch.cat(masked, dim=1) if masked else None,
        }
        widths, same_BB = learner.size.matryoshka, false_negatives(*keys)
        if stage.loss == "circle":
            loss = matryoshka_circle_loss(anchor_BD, item_BD, same_BB, widths, **negatives)
        else:
            loss = matryoshka_info_nce(anchor_BD, item_BD, same_BB, widths, kind.temperature, **negatives)
        return loss if encoded.balance is None else loss + RHO * encoded.balance

    def tensors(self) -> dict[str, Tensor]:
        """The queue and the pairs, which cleaning chose with the model at the beginning of this stage."""
        pairs = {
            f"pairs.{number}.{side}": torch.from_numpy(np.ascontiguousarray(getattr(chosen, side)))
            for number, (_, chosen) in enumerate(self.kinds)
            for side in ("anchor", "item")
        }
        return pairs if self.queue is None else pairs | self.queue.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the queue and the pairs."""
        self.kinds = [
            (kind, Pairs(*(tensors[f"pairs.{number}.{side}"].numpy() for side in ("anchor", "item"))))
            for number, (kind, _) in enumerate(self.kinds)
        ]
        if self.queue is not None:
            self.queue.load({k: v for k, v in tensors.items() if not k.startswith("pairs.")})

    def facts(self) -> dict[str, object]:
        """Number of pairs of each kind, and how many each cleaning rule left."""
        pairs = {f"{k.relation[0]}: {k.query} > {k.item}": len(p) for k, p in self.kinds}
        return {"pairs": pairs, **({"cleaned": self.kept} if self.kept else {})}


def cleaned(learner: Learner, kind: Kind, pairs: Pairs) -> tuple[Pairs, dict[str, int]]:
    """Apply the four cleaning rules of §1.5 to pairs, with similarities from the current model.

    At most ``CLEANED`` pairs are used, drawn at random, because each needs two vectors.

    Returns:
        the pairs kept, and the number of pairs left after each rule.
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
    """The first relation of ``kind`` with at least two pairs that have its views, and these pairs."""
    for name in kind.relation:
        pairs: Pairs = getattr(relations, name)
        shown = can_show(corpus.items, kind.item)[pairs.item]
        if name != "query":  # queries are always shown completely
            shown &= can_show(corpus.items, kind.query)[pairs.anchor]
        if shown.sum() > 1:
            return name, Pairs(pairs.anchor[shown], pairs.item[shown])
    return None


def pair_keys(corpus: Corpus, relation: str, anchor: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arguments of ``false_negatives``. For relation "own", items with equal text count as the same item."""
    if relation == "query":
        return anchor, item, corpus.spu[item], -1 - np.arange(len(anchor))
    text = item
    if relation == "own":
        words: dict[tuple[int, ...], int] = {}
        tokens = corpus.items.tokens
        text = np.array([words.setdefault(tuple(tokens[row]) or (-1, row), row) for row in item.tolist()])
    return anchor, text, corpus.spu[item], corpus.spu[anchor]
