"""Random crop, flip and colour changes of training pictures.

Shapes: N pictures, S picture side in pixels_NSS3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from encoder.examples.warp import channels_first, channels_last, homographies, per_picture, warped

SMALLEST_CROP = 0.75  # fraction of a side
COLOUR = 0.15  # largest relative change of brightness and of each channel


def augment(pixels_NSS3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crop and resize back, mirror half of them, change brightness and colour balance a little.

    Args:
        pixels_NSS3: uint8.
        rng: the only source of randomness.

    Returns:
        float32 (N, S, S, 3), 0..255.
    """
    count = len(pixels_NSS3)
    scale = rng.uniform(SMALLEST_CROP, 1.0, size=(count, 1))
    shift = rng.uniform(-1, 1, size=(count, 2)) * (1 - scale)
    mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    gain = rng.uniform(1 - COLOUR, 1 + COLOUR, size=(count, 1)) * rng.uniform(
        1 - COLOUR, 1 + COLOUR, size=(count, 3)
    )
    side = pixels_NSS3.shape[1]
    line = (2 * np.arange(side) + 1) / side - 1  # pixel centres, -1..1
    across = (line * scale * mirror[:, None] + shift[:, :1]).astype(np.float32)
    down = (line * scale + shift[:, 1:]).astype(np.float32)
    # A crop needs one coordinate per column and per row: a third of the time of an affine grid over all pixels_NSS3.
    whole = (count, side, side)
    grid = torch.stack(
        [
            torch.from_numpy(across)[:, None].expand(whole),
            torch.from_numpy(down)[:, :, None].expand(whole),
        ],
        dim=-1,
    )
    picture = channels_first(pixels_NSS3)
    cropped = F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)
    coloured = cropped.mul_(torch.from_numpy(gain.astype(np.float32))[:, :, None, None])
    return channels_last(coloured.clamp_(0, 255))


def photographed(pixels_NSS3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stronger augmentation, as if the photo were taken again: closer, off centre, rotated, in other light, half of
    them mirrored and half of them with a rectangle in front of the product.

    Colour balance changes by at most 8 %, because colour distinguishes an orange from a grapefruit.

    Args:
        pixels_NSS3: uint8.
        rng: the only source of randomness.

    Returns:
        float32 (N, S, S, 3), 0..255.
    """
    count = len(pixels_NSS3)
    area, aspect = rng.uniform(0.3, 1, size=count), np.exp(rng.uniform(-0.25, 0.25, size=count))
    side = (np.sqrt(area)[:, None] * np.stack([aspect**0.5, aspect**-0.5], axis=1)).clip(max=1)
    shift = rng.uniform(-1, 1, size=(count, 2)) * (1 - side)
    side[:, 0] *= rng.choice([-1, 1], size=count)
    turn = rng.normal(0, np.deg2rad(12), size=count)
    maps = homographies(turn, side, np.zeros(count), shift, np.zeros((count, 2)))
    picture = warped(channels_first(pixels_NSS3), maps)
    bright, contrast = (per_picture(rng.uniform(0.75, 1.25, size=count)) for _ in range(2))
    balance = torch.from_numpy(rng.uniform(0.92, 1.08, size=(count, 3, 1, 1)).astype(np.float32))
    mean = picture.mean((1, 2, 3), keepdim=True)
    picture.sub_(mean).mul_(contrast).add_(mean).mul_(bright * balance)
    out = channels_last(picture.clamp_(0, 255))
    px = pixels_NSS3.shape[1]
    size = (rng.uniform(0.15, 0.45, size=(count, 2)) * px).astype(int)
    corner = (rng.random((count, 2)) * (px - size)).astype(int)
    for row in np.flatnonzero(rng.random(count) < 0.5):
        (top, left), (bottom, right) = corner[row], corner[row] + size[row]
        out[row, top:bottom, left:right] = rng.uniform(0, 255, 3)
    return out
