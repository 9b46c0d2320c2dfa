"""Photos choose their product: for a catalogue of few products with many photos of each, such as Grocery Store.

A batch holds as many photos as its pairs would hold photos and products, and each of their products once: with 81
products a batch of pairs shows each of them several times over. Two photos laid over each other choose both of their
products (mixup, 1710.09412), without which photos are learned by heart (LOG.md).

Shapes: B photos, K products, D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from encoder.examples.augment import photographed
from encoder.examples.pairs import Pairs
from encoder.examples.views import LEFT_OUT, augmented, thinned
from encoder.learner import Learner, NothingToLearn, Objective
from encoder.losses.info_nce import over_widths
from encoder.packing import Sample

PHOTOS = 2  # photos per step, times the learner's batch
MIXED = 0.8  # of the batches


@dataclass(frozen=True)
class Photos:
    """A stage that learns photo search from judged or clicked photo queries.

    Attributes:
        share: of the training budget.
        temperature: of the softmax over products.
        mix: both parameters of the Beta distribution of a photo's weight in a mixture.
        rate: factor on the peak learning rates.
        name: of the stage.
    """

    share: float
    temperature: float = 0.1
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
        target, spu = torch.from_numpy(product).to(vector.device), torch.from_numpy(corpus.spu[item])
        variant_KK = (spu[:, None] == spu).to(vector.device) & ~torch.eye(
            len(spu), dtype=torch.bool, device=vector.device
        )

        def loss_at(width: int) -> Tensor:
            unit = F.normalize(vector[:, :width], dim=-1)
            score_BK = unit[: len(photos)] @ unit[len(photos) :].T / stage.temperature
            return mixed_choice(score_BK, target, target[torch.from_numpy(other)], weight, variant_KK)

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


def laid_over(samples: list[Sample], other: np.ndarray, weight: float) -> list[Sample]:
    """Each sample with the picture w a + (1 - w) b, a its own and b that of the sample it is paired with."""
    pictures = np.stack([sample.pictures[0] for sample in samples]).astype(np.float32)
    mixed = weight * pictures + (1 - weight) * pictures[other]
    return [replace(sample, pictures=(picture,)) for sample, picture in zip(samples, mixed, strict=True)]


def _show(count: int, text: bool) -> tuple[np.ndarray, np.ndarray]:
    """What of so many rows is shown: words or none, and pictures."""
    return np.full(count, text), np.ones(count, dtype=bool)
