"""What a stage of training is given, and what it gives back."""

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
    """The data has nothing that a stage could learn from; other stages may find something."""


@dataclass(frozen=True)
class Learner:
    """A model and all it learns from.

    Attributes:
        model: trained whole.
        tokenizer: of its backbone.
        corpus: the catalogue and the queries.
        relations: which of them belong together, and how.
        purchases: the same with purchases as the only behaviour, where there are any.
        shown: int64 (M), how often each item was shown, as far as the log tells.
        size: the dial.
        batch: pairs per step.
        seed: of what a stage draws once.
        chunk: most samples whose graph is held at once; None: all of a batch.
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
    """Vectors with gates and balance, where there are any, as further columns."""
    if encoded.gate_BZ is None or encoded.balance is None:
        return encoded.vector_BD
    balance = encoded.balance.expand(len(encoded.vector_BD), 1)
    return torch.cat([encoded.vector_BD, encoded.gate_BZ, balance], dim=1)


class Objective(nn.Module):
    """The loss of one stage; its parameters are trained and saved with the model's.

    Attributes:
        seen: int64, ids of the items in the last batch, to name them when something goes wrong.
    """

    seen: np.ndarray = np.empty(0, dtype=np.int64)

    def loss(self, rng: np.random.Generator, progress: float) -> Tensor:
        """Loss of one random batch.

        Args:
            rng: the only source of chance.
            progress: share of the stage that is done, 0 to 1.
        """
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run must put back, for safetensors."""
        return dict(self.state_dict())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        self.load_state_dict(dict(tensors))

    def facts(self) -> dict[str, object]:
        """What is worth keeping in the manifest, e.g. how many pairs there were."""
        return {}


class Stage(Protocol):
    """A stage of a recipe: a frozen dataclass."""

    @property
    def name(self) -> str:
        """What progress lines and curves call it."""
        ...

    @property
    def share(self) -> float:
        """Its share of the training budget."""
        ...

    @property
    def rate(self) -> float:
        """Factor on the peak learning rates."""
        ...

    def begin(self, learner: Learner) -> Objective:
        """Prepare the objective.

        Raises:
            NothingToLearn: the data has nothing that this stage could learn from.
        """
        ...
