"""Learning rates that fall linearly from the first step to the last, of dense weights and tables alike."""

from __future__ import annotations

from torch import nn
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from ranker.learner import Learner, Saved


class FallingLearner(Learner):
    """A learner in one process whose rates reach zero after the last step.

    Args:
        model: changed in place.
        learning_rate: of the dense weights at the first step; the tables have their own.
        steps: of the whole training.
    """

    def __init__(self, model: nn.Module, learning_rate: float, steps: int) -> None:
        super().__init__(model, learning_rate)
        self.first, self.steps = learning_rate, steps
        self.tables = [one for one in model.modules() if isinstance(one, FusedEmbeddingBagCollection)]
        self.table_rates = [one.fused_optimizer().param_groups[0]["lr"] for one in self.tables]

    def restore(self, saved: Saved) -> None:
        """Go on from ``tensors`` of an equal learner, at the rates that it had reached."""
        super().restore(saved)
        self._slow()

    def _move(self) -> None:
        super()._move()
        self._slow()

    def _slow(self) -> None:
        """Set the rates of the next step; AdamW counts the steps, and checkpoints keep its count."""
        done = max(int(state["step"]) for state in self.adam.state.values())
        left = max(1 - done / self.steps, 0.0)
        for group in self.adam.param_groups:
            group["lr"] = self.first * left
        for table, rate in zip(self.tables, self.table_rates, strict=True):
            optimizer = table.fused_optimizer()
            for group in optimizer.param_groups:
                group["lr"] = rate * left
            optimizer.step()  # hands the rate to the kernel; rows are updated in backward
