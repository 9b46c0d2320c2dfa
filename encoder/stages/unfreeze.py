"""The last stage on pretrained towers: their last layers learn, too (gradual unfreezing, 1801.06146)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from encoder.examples.augment import augment
from encoder.learner import Learner
from encoder.stages.contrast import Contrast, Contrasting
from encoder.towers.model import TowerModel


@dataclass(frozen=True)
class Unfreeze(Contrast):
    """Contrastive training of the heads and of the last layers of both towers.

    Pictures, augmented, and texts are read in every step instead of once, so on a CPU a step takes 25 times as long.

    Attributes:
        layers: how many layers of each tower are trained, those below stay frozen; of the picture tower they are
            blocks, and its last convolution besides.
    """

    layers: int = 1
    name: str = "unfreezing"

    def begin(self, learner: Learner) -> Contrasting:
        """Unfreeze the layers, and find the pairs of every kind.

        Raises:
            TypeError: the recipe has no towers.
        """
        model = learner.model
        if not isinstance(model, TowerModel):
            raise TypeError(f"{self.name}: expected a recipe with towers, found {type(model).__name__}.")
        corpus = replace(learner.corpus, pixels=model.unfreeze(self.layers), change=augment)
        return Contrasting(self, replace(learner, corpus=corpus))
