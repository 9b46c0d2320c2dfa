"""Settings of a click model: what a search may choose beside its recipe and its inputs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from run.artifacts import ArtifactError

COUNTS = ("id_width", "hidden", "depth")
FRACTIONS = ("dropout", "id_dropout", "other_loss")
POSITIVE = ("learning_rate",)
NOT_NEGATIVE = ("table_learning_rate", "weight_decay")


@dataclass(frozen=True)
class Settings:
    """How wide and deep a click model is, and how it learns; plain values.

    Attributes:
        id_width: width of its id embeddings.
        learning_rate: of AdamW on the dense weights.
        table_learning_rate: of row-wise Adagrad on the tables; 0: they stay as they began.
        hidden: width of the perceptron's first layer, in widths of an id embedding; each further one is half as wide.
        depth: hidden layers of the perceptron.
        dropout: fraction of the hidden values that a training step leaves out.
        weight_decay: of AdamW.
        id_dropout: fraction of the candidates whose item id a training step hides, so that the model also learns to
            score them by everything else.
        other_loss: weight of the loss that is not the data's own in training: of the listwise one where impressions
            were logged, else of the pointwise one.
    """

    id_width: int
    learning_rate: float
    table_learning_rate: float
    hidden: int = 8
    depth: int = 2
    dropout: float = 0.0
    weight_decay: float = 0.01
    id_dropout: float = 0.0
    other_loss: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a JSON file of ``settings``.

        Raises:
            ArtifactError: not a file of settings, saying what is missing, unknown or no number.
        """
        known = [one.name for one in fields(cls)]
        try:
            content: Any = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{path}: expected settings of a ranker as JSON, such as 'moon ranker --tune' writes ({error})"
            ) from None
        found = content if isinstance(content, dict) else {}
        wrong = [f"{name} is unknown" for name in found if name not in known]
        wrong += [f"{name} is missing" for name in known if name not in found]
        wrong += [
            f"{name} is {found[name]!r}" for name in known if name in found and not _fits(name, found[name])
        ]
        if wrong:
            raise ArtifactError(
                f"{path}: expected {', '.join(COUNTS)} from 1, {', '.join(FRACTIONS)} from 0 to below 1, "
                f"{', '.join(POSITIVE)} above 0, {', '.join(NOT_NEGATIVE)} from 0; {'; '.join(wrong)}. "
                f"Choose a best.json that 'moon ranker --tune' wrote."
            )
        return cls(**found)

    def settings(self) -> dict[str, Any]:
        """The settings by name, also of something that has more than settings."""
        return {one.name: getattr(self, one.name) for one in fields(Settings)}


def _fits(name: str, value: object) -> bool:
    """Whether a setting may have this value."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if name in COUNTS:
        return isinstance(value, int) and value >= 1
    if name in FRACTIONS:
        return 0 <= value < 1
    return math.isfinite(value) and (value > 0 or (value == 0 and name in NOT_NEGATIVE))
