"""How a square picture becomes patches, in the order Qwen-VL reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vision:
    """How a square picture becomes tokens.

    Attributes:
        px: side of the picture in pixels, a multiple of ``patch * merge``.
        patch, temporal, merge: patch side, frames per patch, and patches merged per side into one token.
        mean, std: per-channel normalisation of pixels in [0, 1].
    """

    px: int
    patch: int
    temporal: int
    merge: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.px // self.patch

    @property
    def tokens(self) -> int:
        """Image tokens one picture takes in a sequence."""
        return (self.grid // self.merge) ** 2

    def patchify(self, pixels: Tensor) -> Tensor:
        """Cut pictures into patches in Qwen's order: merge blocks row by row, patches likewise in a block.

        Args:
            pixels: uint8 (N, S, S, 3), or float in the same 0..255 range.

        Returns:
            float32 (N * grid * grid, 3 * temporal * patch * patch), normalised.
        """
        count, blocks = len(pixels), self.grid // self.merge
        mean = torch.tensor(self.mean, device=pixels.device) * 255
        std = torch.tensor(self.std, device=pixels.device) * 255
        normal = (pixels.float() - mean) / std
        cut = normal.view(count, blocks, self.merge, self.patch, blocks, self.merge, self.patch, 3)
        patches = cut.permute(0, 1, 4, 2, 5, 7, 3, 6).unsqueeze(
            6
        )  # N, rows, columns, m, m, channel, 1, patch, patch
        repeated = patches.expand(*patches.shape[:6], self.temporal, self.patch, self.patch)
        return repeated.reshape(count * self.grid**2, -1)
