"""What items look like without a learned model: a small thumbnail and a histogram of colours.

Legend: M items, D numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dataset.pictures import decoded

THUMBNAIL = (12, 16)  # columns, rows: the portrait shape of product pictures
HUE_BINS, SATURATION_BINS, VALUE_BINS = 12, 4, 4
HISTOGRAM_WEIGHT = 0.2  # relative to the thumbnail; equal weights had lower recall on fashion pictures
WIDTH = THUMBNAIL[0] * THUMBNAIL[1] * 3 + HUE_BINS * SATURATION_BINS * VALUE_BINS


def colours(pictures: Sequence[bytes | None]) -> np.ndarray:
    """Each picture as the unit row of a 12 x 16 RGB thumbnail and a joint HSV histogram.

    The thumbnail holds distance from white, because product pictures stand on white.

    Args:
        pictures: M encoded pictures; None (missing) becomes a row of zeros.

    Returns:
        float32 of shape (M, WIDTH).
    """
    out = np.zeros((len(pictures), WIDTH), dtype=np.float32)
    for row, picture in enumerate(pictures):
        if picture is not None:
            out[row] = _colour_row(picture)
    return out


def _colour_row(picture: bytes) -> np.ndarray:
    image = decoded(picture)
    thumbnail = np.asarray(image.resize(THUMBNAIL, Image.Resampling.BOX), dtype=np.float32).reshape(-1)
    hue, saturation, value = np.moveaxis(np.asarray(image.convert("HSV"), dtype=np.int64), -1, 0)
    cell = (hue * HUE_BINS // 256 * SATURATION_BINS + saturation * SATURATION_BINS // 256) * VALUE_BINS
    cell = cell + value * VALUE_BINS // 256
    histogram = np.bincount(cell.reshape(-1), minlength=HUE_BINS * SATURATION_BINS * VALUE_BINS)
    seen = 255 - thumbnail
    unit = [part / max(float(np.linalg.norm(part)), 1e-12) for part in (seen, histogram)]
    row = np.concatenate([unit[0], HISTOGRAM_WEIGHT * unit[1]])
    return (row / np.linalg.norm(row)).astype(np.float32)
