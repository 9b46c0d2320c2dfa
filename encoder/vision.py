"""How a family of models sees a square picture: as patches in Qwen-VL's order, or as one whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _normal(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pixels (N, S, S, 3) of 0..255, normalised per channel: float32."""
    middle, spread = (torch.tensor(values, device=pixels.device) * 255 for values in (mean, std))
    return (pixels.float() - middle) / spread


@dataclass(frozen=True)
class Vision:
    """How Qwen-VL makes tokens of a square picture.

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
        normal = _normal(pixels, self.mean, self.std)
        cut = normal.view(count, blocks, self.merge, self.patch, blocks, self.merge, self.patch, 3)
        patches = cut.permute(0, 1, 4, 2, 5, 7, 3, 6).unsqueeze(
            6
        )  # N, rows, columns, m, m, channel, 1, patch, patch
        repeated = patches.expand(*patches.shape[:6], self.temporal, self.patch, self.patch)
        return repeated.reshape(count * self.grid**2, -1)


@dataclass(frozen=True)
class WholeVision:
    """How InternVL and SmolVLM make tokens of a square picture: as one image, its tokens in reading order.

    Published processors add crops of large pictures; a product's picture is read whole here.

    Attributes:
        px: side of the picture in pixels, a multiple of ``cell``.
        cell: side of what one token covers.
        mean, std: per-channel normalisation of pixels in [0, 1].
        before, after: token ids around the image tokens.
    """

    px: int
    cell: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Image tokens one picture takes in a sequence, markers left out."""
        return (self.px // self.cell) ** 2

    def normalise(self, pixels: Tensor) -> Tensor:
        """float32 (N, 3, S, S) of uint8 or float (N, S, S, 3)."""
        return _normal(pixels, self.mean, self.std).permute(0, 3, 1, 2)
