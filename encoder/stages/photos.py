"""Classify photos by product, for a catalogue of few products with many photos of each, such as Grocery Store.

A batch has PHOTOS photos per pair of the learner's batch, and each of their products once: with 81 products, a batch
of pairs would contain each of them several times. Two regularisers keep the model from memorising photos
(docs/log/encoder.md#photo-to-product-on-grocery-store): supervised contrast between photos of one product
(2004.11362), and mixup of two photos, which have to choose both of their products (1710.09412).

Shapes: B photos, K products, S samples (photos, then products), D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from encoder.backbone.packing import Sample
from encoder.examples.augment import photographed
from encoder.examples.pairs import Pairs
from encoder.examples.views import TOKEN_DROPOUT, augmented, drop_tokens
from encoder.learner import Learner, NothingToLearn, Objective
from encoder.losses.info_nce import over_widths

PHOTOS = 2  # photos per step, as a multiple of the learner's batch
MIXED = 0.7  # fraction of the batches with mixup
MOSTLY = 0.7  # weight from which supervised contrast counts a mixed photo as a photo of the product


@dataclass(frozen=True)
class Photos:
    """A stage that learns photo search from judged or clicked photo queries.

    Attributes:
        fraction: of the training budget.
        temperature: temperature of the softmax over products.
        supervised_contrast_weight: loss weight of supervised contrast.
        mixup_alpha: both parameters of the Beta distribution of mixup weights.
        learning_rate_scale: factor on the peak learning rates.
        name: name of the stage.
    """

    fraction: float
    temperature: float = 0.17
    supervised_contrast_weight: float = 0.5
    mixup_alpha: float = 0.3
    learning_rate_scale: float = 1.0
    name: str = "photos"

    def begin(self, learner: Learner) -> Photographs:
        """Find the photos and their products."""
        return Photographs(self, learner)


class Photographs(Objective):
    """The loss of ``Photos``.

    Raises:
        NothingToLearn: fewer than two products have a photo.
    """

    def __init__(self, stage: Photos, learner: Learner) -> None:
        super().__init__()
        self.stage, self.learner = stage, learner
        pairs = learner.relations.query
        shown = learner.corpus.queries.has_image[pairs.anchor]
        self.pairs = Pairs(pairs.anchor[shown], pairs.item[shown])
        if len(np.unique(self.pairs.item)) < 2:
            raise NothingToLearn(
                f"{stage.name}: expected photos of two products or more, found {len(self.pairs)} photo queries with "
                "a judged or clicked item. Add image queries with judgements or clicks."
            )

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """Matryoshka loss of one random batch of photos."""
        learner, stage, corpus = self.learner, self.stage, self.learner.corpus
        chosen = rng.permutation(len(self.pairs))[: PHOTOS * learner.batch]
        item, product = np.unique(self.pairs.item[chosen], return_inverse=True)
        self.seen = corpus.items.ids[item]
        photos = corpus.samples(corpus.queries, self.pairs.anchor[chosen], *_show(len(chosen), text=False))
        photos = augmented(photos, rng, photographed)
        weight, other = 1.0, np.arange(len(photos))
        if rng.random() < MIXED:
            weight, other = (
                float(rng.beta(stage.mixup_alpha, stage.mixup_alpha)),
                rng.permutation(len(photos)),
            )
            photos = mixup(photos, other, weight)
        items = corpus.samples(corpus.items, item, *_show(len(item), text=True))
        items = augmented(drop_tokens(items, TOKEN_DROPOUT, rng), rng, photographed)
        vector_SD = learner.encode([*photos, *items]).vector_BD
        first_B, spu_K = (torch.from_numpy(key).to(vector_SD.device) for key in (product, corpus.spu[item]))
        second_B = first_B[torch.from_numpy(other).to(vector_SD.device)]
        variant_KK = (spu_K[:, None] == spu_K) & ~torch.eye(
            len(spu_K), dtype=torch.bool, device=vector_SD.device
        )
        mostly_B = first_B if weight >= MOSTLY else second_B if weight <= 1 - MOSTLY else None

        def loss_at(width: int) -> Tensor:
            unit_SD = F.normalize(vector_SD[:, :width], dim=-1)
            photo_BD, item_KD = unit_SD[: len(photos)], unit_SD[len(photos) :]
            score_BK = photo_BD @ item_KD.T / stage.temperature
            loss = mixup_loss(score_BK, first_B, second_B, weight, variant_KK)
            if mostly_B is None:
                return loss
            return loss + stage.supervised_contrast_weight * supervised_contrast(photo_BD, mostly_B)

        return over_widths(loss_at, learner.size.matryoshka)

    def facts(self) -> dict[str, object]:
        """Number of photos and of their products."""
        return {"photos": len(self.pairs), "products": len(np.unique(self.pairs.item))}


def mixup_loss(
    score_BK: Tensor, first_B: Tensor, second_B: Tensor, weight: float, variant_KK: Tensor
) -> Tensor:
    """w L(first) + (1 - w) L(second), L the mean cross-entropy of classifying photos by product.

    Args:
        score_BK: float, logits.
        first_B, second_B: int64, the two products of each mixed photo; equal without mixup.
        weight: w, weight of the first.
        variant_KK: bool, products of one SPU, which are not negatives of each other; false on the diagonal.
    """

    def loss(target_B: Tensor) -> Tensor:
        return F.cross_entropy(score_BK.masked_fill(variant_KK[target_B], float("-inf")), target_B)

    return loss(first_B) if weight == 1 else weight * loss(first_B) + (1 - weight) * loss(second_B)


def supervised_contrast(unit_BD: Tensor, product_B: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss: photos of one product choose each other among all photos (2004.11362, equation 2).

    Args:
        unit_BD: float, unit norm.
        product_B: int64; the only photo of a product has no loss of its own, but is a negative of the others.
        temperature: default as in the paper.
    """
    self_BB = torch.eye(len(unit_BD), dtype=torch.bool, device=unit_BD.device)
    score_BB = (unit_BD @ unit_BD.T / temperature).masked_fill(self_BB, -1e9)
    same_BB = (product_B[:, None] == product_B) & ~self_BB
    others_B = same_BB.sum(1)
    loss_B = -(score_BB.log_softmax(1) * same_BB).sum(1) / others_B.clamp(min=1)
    return loss_B.sum() / (others_B > 0).sum().clamp(min=1)


def mixup(samples: list[Sample], other: np.ndarray, weight: float) -> list[Sample]:
    """Each sample with the picture w a + (1 - w) b, where a is its own picture and b that of sample ``other``."""
    pictures = np.stack([sample.pictures[0] for sample in samples]).astype(np.float32)
    mixed = weight * pictures + (1 - weight) * pictures[other]
    return [replace(sample, pictures=(picture,)) for sample, picture in zip(samples, mixed, strict=True)]


def _show(count: int, text: bool) -> tuple[np.ndarray, np.ndarray]:
    """Masks for ``Corpus.samples``: pictures, with or without text."""
    return np.full(count, text), np.ones(count, dtype=bool)
