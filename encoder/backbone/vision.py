"""How each model family takes a square picture: as patches in Qwen-VL's order, or as one image.

Shapes: N pictures, S picture side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)


def _normal(pixels_NSS3: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pixels in 0..255, normalised per channel: float32 (N, S, S, 3)."""
    middle, spread = (torch.tensor(values, device=pixels_NSS3.device) * 255 for values in (mean, std))
    return (pixels_NSS3.float() - middle) / spread


@dataclass(frozen=True)
class Vision:
    """How Qwen-VL turns a square picture into tokens.

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
        """Image tokens of one picture."""
        return (self.grid // self.merge) ** 2

    def patchify(self, pixels_NSS3: Tensor) -> Tensor:
        """Cut pictures into patches in Qwen's order: merge blocks row by row, and patches row by row in a block.

        Args:
            pixels_NSS3: uint8 or float, 0..255.

        Returns:
            float32 (N * grid * grid, 3 * temporal * patch * patch), normalised.
        """
        count, blocks = len(pixels_NSS3), self.grid // self.merge
        cut = pixels_NSS3.view(count, blocks, self.merge, self.patch, blocks, self.merge, self.patch, 3)
        cut = cut.permute(0, 1, 4, 2, 5, 7, 3, 6)  # N, rows, columns, m, m, channel, patch, patch
        # Cut first: the rest then runs in place on the model's input, without a copy of the pictures.
        patches = torch.empty(cut.shape, dtype=torch.float32, device=pixels_NSS3.device).copy_(cut)
        middle, spread = (
            torch.tensor(values, device=pixels_NSS3.device).view(3, 1, 1) * 255
            for values in (self.mean, self.std)
        )
        patches.sub_(middle).div_(spread)
        repeated = patches.unsqueeze(6).expand(*patches.shape[:6], self.temporal, self.patch, self.patch)
        return repeated.reshape(count * self.grid**2, -1)

    def tables(self, visual: Any, count: int, device: torch.device) -> dict[str, Tensor]:
        """Position tables that Qwen-VL's vision side derives from each picture's shape, computed once and repeated.

        The model itself would loop over the pictures, 4 % of a training step at size small.

        Args:
            visual: the model's vision side; its attributes say which tables it needs.
            count: N.
            device: where the tensors are put.

        Returns:
            keyword arguments of its forward pass.
        """
        grid = torch.tensor([[1, self.grid, self.grid]], device=device)
        out = {"position_ids": get_vision_position_ids(grid, self.merge).repeat(count, 1)}
        if hasattr(visual, "num_grid_per_side"):  # learned positions, resampled to our grid
            taps, weights = get_vision_interpolation_indices_and_weights(
                grid,
                num_grid_per_side=visual.num_grid_per_side,
                mode=visual.interpolation_mode,
                align_corners=visual.interpolation_align_corners,
                spatial_merge_size=self.merge,
            )
            used = (weights != 0).any(dim=0)  # one of the four neighbours where the grids are equal
            out["interp_indices"] = taps[:, used].repeat(count, 1)
            out["interp_weights"] = weights[:, used].repeat(count, 1)
        if hasattr(visual, "window_size"):
            order, ends = get_vision_window_index(grid, self.merge, visual.window_size, self.patch)
            picture = torch.arange(count, device=device)[:, None]
            out["window_index"] = (picture * self.tokens + order.to(device)).flatten()
            ends = (picture * self.grid**2 + ends.to(device)[1:]).flatten()
            out["cu_window_seqlens"] = torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)
        return out


@dataclass(frozen=True)
class WholeVision:
    """How InternVL and SmolVLM turn a square picture into tokens: as one image, its tokens in reading order.

    Published processors add crops of large pictures; here only the whole picture is used.

    Attributes:
        px: side of the picture in pixels, a multiple of ``cell``.
        cell: side in pixels of the square that one token covers.
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
        """Image tokens of one picture, without the tokens around them."""
        return (self.px // self.cell) ** 2

    def normalise(self, pixels_NSS3: Tensor) -> Tensor:
        """uint8 or float pixels to float32 (N, 3, S, S), normalised."""
        return _normal(pixels_NSS3, self.mean, self.std).permute(0, 3, 1, 2)
