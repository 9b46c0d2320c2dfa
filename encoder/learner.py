"""The interface between training and its stages: what a stage is given, and the objective it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dataset.contracts import DataError
from encoder.backbone.packing import Sample
from encoder.examples.corpus import Corpus
from encoder.examples.pairs import Relations
from encoder.losses.grad_cache import cached
from encoder.model import Encoded, EncoderModel
from run.sizes import Size


class NothingToLearn(DataError):
    """The data has no training examples for this stage; other stages may find some."""


@dataclass(frozen=True)
class Learner:
    """A model and the data it is trained on.

    Attributes:
        model: the model to train.
        tokenizer: its tokenizer.
        corpus: the catalogue and the queries.
        relations: positive pairs of them, by relation.
        purchases: the same from purchases only, where the log has any.
        shown: int64 (M), number of impressions of each item, see ``cleaning.exposures``.
        size: widths, depth and lengths.
        batch: pairs per step.
        seed: for what a stage draws once.
        chunk: most samples whose graph is held at once (GradCache); None: the whole batch.
    """

    model: EncoderModel
    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus
    relations: Relations
    purchases: Relations
    shown: np.ndarray
    size: Size
    batch: int
    seed: int
    chunk: int | None = None

    def encode(self, samples: Sequence[Sample]) -> Encoded:
        """Vectors of a batch, with gradients: in one pass, or by GradCache when the batch exceeds ``chunk``."""
        if self.chunk is None or len(samples) <= self.chunk:
            return self.model(samples)
        width = self.model.width
        rows = cached(lambda part: _columns(self.model(part)), samples, self.chunk)
        if rows.shape[1] == width:
            return Encoded(rows)
        return Encoded(rows[:, :width], rows[:, width:-1], rows[:, -1].mean())


def _columns(encoded: Encoded) -> Tensor:
    """Vectors, followed by columns for the experts' gates and balance loss if the model has experts."""
    if encoded.gate_BZ is None or encoded.balance is None:
        return encoded.vector_BD
    balance = encoded.balance.expand(len(encoded.vector_BD), 1)
    return torch.cat([encoded.vector_BD, encoded.gate_BZ, balance], dim=1)


class Objective(nn.Module):
    """The loss of one stage; its parameters are trained and checkpointed with the model's.

    Attributes:
        seen: int64, ids of the items in the last batch, for error messages.
    """

    seen: np.ndarray = np.empty(0, dtype=np.int64)

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """Loss of one random batch.

        Args:
            rng: the only source of randomness.
            progress: fraction of the stage that is done, 0 to 1.
        """
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The state to checkpoint, for safetensors."""
        return dict(self.state_dict())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that ``tensors`` returned."""
        self.load_state_dict(dict(tensors))

    def facts(self) -> dict[str, object]:
        """What to record in the manifest, e.g. the number of pairs."""
        return {}


class Stage(Protocol):
    """A stage of a recipe: a frozen dataclass."""

    @property
    def name(self) -> str:
        """Its name in progress lines and training curves."""
        ...

    @property
    def fraction(self) -> float:
        """Its fraction of the training budget."""
        ...

    @property
    def learning_rate_scale(self) -> float:
        """Factor on the peak learning rates."""
        ...

    def begin(self, learner: Learner) -> Objective:
        """Prepare the objective.

        Raises:
            NothingToLearn: the data has no training examples for this stage.
        """
        ...
