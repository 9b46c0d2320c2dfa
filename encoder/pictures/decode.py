"""Decode pictures of any size and mode to RGB squares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image, ImageOps

from dataset.contracts import DataError
from dataset.pictures import WHITE, decoded
from run.progress import track


def decode_image(content: bytes, px: int) -> np.ndarray:
    """Decode a picture and fit it, undistorted and centred, on a white square.

    Args:
        content: encoded picture, see ``dataset.pictures.decoded``.
        px: side of the square in pixels.

    Returns:
        uint8 (px, px, 3).

    Raises:
        DataError: the bytes are not a readable picture, are cut short, or decode to more than MOST_PIXELS.
    """
    picture = decoded(content, px)
    if picture.size != (px, px):  # a draft often has the size already
        picture = ImageOps.pad(picture, (px, px), Image.Resampling.BICUBIC, color=WHITE)
    return np.asarray(picture, dtype=np.uint8)


def decode_images(contents: Mapping[str, bytes], image_ids: Iterable[str], px: int) -> np.ndarray:
    """Decode many pictures once, for training: one array instead of a decode per step.

    Args:
        contents: image id -> encoded picture.
        image_ids: which pictures, in this order.
        px: side of the squares in pixels.

    Returns:
        uint8 (N, px, px, 3).

    Raises:
        DataError: a picture does not decode, naming its id.
    """
    wanted = list(image_ids)
    pixels = np.empty((len(wanted), px, px, 3), dtype=np.uint8)
    for row, image_id in enumerate(track(wanted, "decode pictures", unit="pictures")):
        try:
            pixels[row] = decode_image(contents[image_id], px)
        except DataError as error:
            raise DataError(f"image {image_id}: {error}. Run 'moon dataset' to quarantine it.") from error
    return pixels
