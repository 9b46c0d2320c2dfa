"""Decode pictures of any size and mode to RGB squares."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image, ImageOps

from dataset.contracts import DataError
from dataset.pictures import WHITE, decoded
from run.progress import track

log = logging.getLogger(__name__)

# Side of the pictures in which core regions are found, relative to the model's; a JPEG is decoded for both at once.
DETAIL = 2


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
    return _squared(decoded(content, DETAIL * px), px)


def decode_twice(content: bytes, px: int) -> tuple[np.ndarray, np.ndarray]:
    """``decode_image`` at ``px`` and, where core regions are found, at DETAIL times ``px``, from one decode.

    Raises:
        DataError: as ``decode_image``.
    """
    picture = decoded(content, DETAIL * px)
    return _squared(picture, px), _squared(picture, DETAIL * px)


def _squared(picture: Image.Image, px: int) -> np.ndarray:
    if picture.size != (px, px):  # a draft often has the size already
        picture = ImageOps.pad(picture, (px, px), Image.Resampling.BICUBIC, color=WHITE)
    return np.asarray(picture, dtype=np.uint8)


def decode_images(
    contents: Mapping[str, bytes], image_ids: Iterable[str], px: int
) -> tuple[list[str], np.ndarray]:
    """Decode many pictures once, for training: one array instead of a decode per step.

    One that does not decode (a dataset of an earlier release may hold some) is left out, and the log says so; ``moon
    embed`` then sets its item aside.

    Args:
        contents: image id -> encoded picture.
        image_ids: which pictures, in this order.
        px: side of the squares in pixels.

    Returns:
        the ids of the N that decode, and uint8 (N, px, px, 3).

    Raises:
        DataError: none of several pictures decodes.
    """
    wanted = list(image_ids)
    pixels = np.empty((len(wanted), px, px, 3), dtype=np.uint8)
    good: list[str] = []
    bad: dict[str, DataError] = {}
    for image_id in track(wanted, "decode pictures", unit="pictures"):
        try:
            pixels[len(good)] = decode_image(contents[image_id], px)
            good.append(image_id)
        except DataError as error:
            bad[image_id] = error
    if bad:
        first, reason = next(iter(bad.items()))
        found = f"{len(bad)} of {len(wanted)} pictures do not decode (image {first}: {reason})"
        if len(bad) > 1 and not good:
            raise DataError(f"{found}. Run 'moon dataset' again.") from reason
        log.warning("%s: nothing is learned from them; 'moon dataset' would quarantine them", found)
    return good, pixels[: len(good)]
