"""Photos choose their product: for a catalogue of few products with many photos of each, such as Grocery Store.

A batch holds as many photos as its pairs would hold photos and products, and each of their products once: with 81
products a batch of pairs shows each of them several times over. So that photos are not learned by heart
(docs/log/encoder.md#photo-to-product-on-grocery-store), photos of one product are to be alike as well (supervised
contrast, 2004.11362), and in some batches two photos laid over each other choose both of their products (mixup,
1710.09412).

Shapes: B photos, K products, D vector width.
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
from encoder.examples.views import LEFT_OUT, augmented, thinned
from encoder.learner import Learner, NothingToLearn, Objective
from encoder.losses.info_nce import over_widths

PHOTOS = 2  # photos per step, times the learner's batch
MIXED = 0.7  # of the batches
MOSTLY = 0.7  # weight from which a mixed photo counts as one of its product


@dataclass(frozen=True)
class Photos:
    """A stage that learns photo search from judged or clicked photo queries.

    Attributes:
        share: of the training budget.
        temperature: of the softmax over products.
        alike: weight of supervised contrast among photos.
        mix: both parameters of the Beta distribution of a photo's weight in a mixture.
        rate: factor on the peak learning rates.
        name: of the stage.
    """

    share: float
    temperature: float = 0.17
    alike: float = 0.5
    mix: float = 0.3
    rate: float = 1.0
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
                f"{stage.name}: expected photos of two products or more, found {len(self.pairs)} photo queries "
                "with an item. Give image queries with judgements or clicks."
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
            weight, other = float(rng.beta(stage.mix, stage.mix)), rng.permutation(len(photos))
            photos = laid_over(photos, other, weight)
        items = corpus.samples(corpus.items, item, *_show(len(item), text=True))
        items = augmented(thinned(items, LEFT_OUT, rng), rng, photographed)
        vector = learner.encode([*photos, *items]).vector_BD
        first_B, spu_K = (torch.from_numpy(key).to(vector.device) for key in (product, corpus.spu[item]))
        second_B = first_B[torch.from_numpy(other).to(vector.device)]
        variant_KK = (spu_K[:, None] == spu_K) & ~torch.eye(
            len(spu_K), dtype=torch.bool, device=vector.device
        )
        mostly_B = first_B if weight >= MOSTLY else second_B if weight <= 1 - MOSTLY else None

        def loss_at(width: int) -> Tensor:
            unit = F.normalize(vector[:, :width], dim=-1)
            photo_BD, item_KD = unit[: len(photos)], unit[len(photos) :]
            score_BK = photo_BD @ item_KD.T / stage.temperature
            chosen = mixed_choice(score_BK, first_B, second_B, weight, variant_KK)
            return chosen if mostly_B is None else chosen + stage.alike * alike(photo_BD, mostly_B)

        return over_widths(loss_at, learner.size.matryoshka)

    def facts(self) -> dict[str, object]:
        """Photos and their products."""
        return {"photos": len(self.pairs), "products": len(np.unique(self.pairs.item))}


def mixed_choice(
    score_BK: Tensor, first_B: Tensor, second_B: Tensor, weight: float, variant_KK: Tensor
) -> Tensor:
    """w L(first) + (1 - w) L(second), L the mean cross-entropy of photos choosing their product.

    Args:
        score_BK: float, of each photo and product.
        first_B, second_B: int64, the two products of each photo; equal for a photo that is not mixed.
        weight: w, of the first.
        variant_KK: bool, products of one SPU, which are no negatives of each other; false on the diagonal.
    """

    def loss(target_B: Tensor) -> Tensor:
        return F.cross_entropy(score_BK.masked_fill(variant_KK[target_B], float("-inf")), target_B)

    return loss(first_B) if weight == 1 else weight * loss(first_B) + (1 - weight) * loss(second_B)


def alike(unit_BD: Tensor, product_B: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrast: photos of one product choose each other among all photos (2004.11362, equation 2).

    Args:
        unit_BD: float, unit norm.
        product_B: int64; a photo without another of its product does not count, but stays a negative.
        temperature: the paper's.
    """
    self_BB = torch.eye(len(unit_BD), dtype=torch.bool, device=unit_BD.device)
    score_BB = (unit_BD @ unit_BD.T / temperature).masked_fill(self_BB, -1e9)
    same_BB = (product_B[:, None] == product_B) & ~self_BB
    others_B = same_BB.sum(1)
    loss_B = -(score_BB.log_softmax(1) * same_BB).sum(1) / others_B.clamp(min=1)
    return loss_B.sum() / (others_B > 0).sum().clamp(min=1)


def laid_over(samples: list[Sample], other: np.ndarray, weight: float) -> list[Sample]:
    """Each sample with the picture w a + (1 - w) b, a its own and b that of the sample it is paired with."""
    pictures = np.stack([sample.pictures[0] for sample in samples]).astype(np.float32)
    mixed = weight * pictures + (1 - weight) * pictures[other]
    return [replace(sample, pictures=(picture,)) for sample, picture in zip(samples, mixed, strict=True)]


def _show(count: int, text: bool) -> tuple[np.ndarray, np.ndarray]:
    """What of so many rows is shown: words or none, and pictures."""
    return np.full(count, text), np.ones(count, dtype=bool)
