"""Warp batches of pictures by plane projective maps (homographies).

Shapes: N pictures, S picture side in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def homographies(
    turn: np.ndarray, side: np.ndarray, shear: np.ndarray, shift: np.ndarray, tilt: np.ndarray
) -> np.ndarray:
    """Maps (N, 3, 3) of (x, y, 1), -1..1: scale by ``side``, shear, rotate (radians), shift, tilt."""
    cos, sin, out = np.cos(turn), np.sin(turn), np.zeros((len(turn), 3, 3))
    out[:, 0, 0], out[:, 0, 1] = cos * side[:, 0], (cos * shear - sin) * side[:, 1]
    out[:, 1, 0], out[:, 1, 1] = sin * side[:, 0], (sin * shear + cos) * side[:, 1]
    out[:, :2, 2], out[:, 2, :2], out[:, 2, 2] = shift, tilt, 1
    return out


def warped(picture_N3SS: Tensor, map_N33: np.ndarray) -> Tensor:
    """Pictures (N, 3, S, S) warped by maps from new to old coordinates; the border is repeated beyond the edge."""
    px = picture_N3SS.shape[-1]
    place = (np.arange(px) * 2 + 1) / px - 1
    new = np.stack([*np.meshgrid(place, place), np.ones((px, px))], axis=-1).reshape(1, -1, 3)
    old = new.astype(np.float32) @ map_N33.swapaxes(1, 2).astype(np.float32)
    grid = torch.from_numpy(old[..., :2] / old[..., 2:]).reshape(len(map_N33), px, px, 2)
    return F.grid_sample(picture_N3SS, grid, mode="bilinear", padding_mode="border", align_corners=False)


def channels_first(pixels_NSS3: np.ndarray) -> Tensor:
    """(N, S, S, 3) to float32 (N, 3, S, S)."""
    return torch.from_numpy(np.ascontiguousarray(pixels_NSS3)).permute(0, 3, 1, 2).float()


def channels_last(picture_N3SS: Tensor) -> np.ndarray:
    """(N, 3, S, S) to (N, S, S, 3)."""
    return picture_N3SS.permute(0, 2, 3, 1).contiguous().numpy()


def per_picture(value_N: np.ndarray) -> Tensor:
    """(N) to float32 (N, 1, 1, 1)."""
    return torch.from_numpy(value_N.astype(np.float32))[:, None, None, None]
