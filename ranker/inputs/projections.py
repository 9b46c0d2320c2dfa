"""Learned projections of the vectors among a model's numbers, for features with the tag ``project``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Projections(nn.Module):
    """Replaces stretches of numbers by their projections and keeps the others.

    Args:
        widths: (name, numbers, projected width) of each feature in order; 0: kept as it is.
    """

    def __init__(self, widths: Sequence[tuple[str, int, int]]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.by_name = nn.ModuleDict({name: nn.Linear(have, want) for name, have, want in widths if want})

    def forward(self, numbers: Tensor) -> Tensor:
        """Float32 [..., numbers] -> [..., width]."""
        if not len(self.by_name):
            return numbers
        parts = numbers.split([have for _, have, _ in self.widths], dim=-1)
        return torch.cat(
            [
                self.by_name[name](part) if want else part
                for (name, _, want), part in zip(self.widths, parts, strict=True)
            ],
            dim=-1,
        )
