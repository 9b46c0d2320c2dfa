"""Pictures of any size and mode to squares of RGB bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dataset.contracts import DataError
from moon.progress import track

WHITE = (255, 255, 255)


def decode_image(content: bytes, px: int) -> np.ndarray:
    """Decode a picture and fit it, undistorted and centred, on a white square.

    Args:
        content: JPEG, PNG, WebP, GIF (first frame) or BMP, in any mode; EXIF rotation is applied and
            transparency is laid over white.
        px: side of the square in pixels.

    Returns:
        uint8 (px, px, 3).

    Raises:
        DataError: the bytes are not a readable picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.draft("RGB", (px, px))
            picture = _to_rgb(ImageOps.exif_transpose(opened))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"expected a picture, found {len(content)} bytes that do not decode: {error}"
        ) from error
    return np.asarray(ImageOps.pad(picture, (px, px), Image.Resampling.BICUBIC, color=WHITE), dtype=np.uint8)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        above = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, (*WHITE, 255)), above).convert("RGB")
    if picture.mode.startswith("I;16"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def decode_images(contents: Mapping[str, bytes], image_ids: Iterable[str], px: int) -> np.ndarray:
    """Decode many pictures once, for training: one array instead of a decode per step.

    Args:
        contents: image id -> encoded picture.
        image_ids: which, in the wanted order.
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
            raise DataError(f"image {image_id}: {error}. Run 'moon import' to quarantine it.") from error
    return pixels
