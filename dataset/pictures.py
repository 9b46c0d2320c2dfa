"""Pictures: the one decoder that all code uses, and the limits of a valid picture.

Import, service, encoder and report all call ``decoded``: what one of them accepts, the others can read.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dataset.contracts import DataError, content_hash
from run.progress import track

# A closed list, not everything Pillow reads: opening an EPS would start an interpreter.
MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}
FORMATS = tuple(MEDIA_TYPES)
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
# Not opened, but known by how they begin, (offset, bytes) -> name: their items are not silently without a picture.
OTHER_ENDINGS = (".avif", ".heic", ".heif", ".tif", ".tiff", ".jxl", ".jp2", ".svg", ".ico")
NOT_OPENED = "which is not opened"
OTHER_FORMATS = {
    (4, b"ftypavi"): "AVIF",
    (4, b"ftyphei"): "HEIC",
    (4, b"ftyphev"): "HEIC",
    (4, b"ftypmif1"): "HEIC",
    (0, b"II*\0"): "TIFF",
    (0, b"MM\0*"): "TIFF",
    (0, b"\xff\x0a"): "JPEG XL",
    (0, b"\0\0\0\x0cJXL "): "JPEG XL",
    (0, b"\0\0\0\x0cjP  "): "JPEG 2000",
    (0, b"<svg"): "SVG",
    (0, b"\0\0\1\0"): "ICO",
}
WHITE = (255, 255, 255)
MOST_BYTES = 20 * 1024 * 1024
MOST_PIXELS = 50_000_000
LONG_SIDE = 256  # larger source pictures are shrunk to this, in pixels; the largest encoder reads 224
BLOCK = 4096  # pictures per round of the threads, so that a generator is not read far ahead


class Inspection(NamedTuple):
    """The result of inspecting the bytes of a picture.

    Attributes:
        problem: why the picture cannot be used; None if it can.
        image_id: content hash of the bytes.
        width, height: in pixels, 0 if the header cannot be read.
    """

    problem: str | None
    image_id: str
    width: int
    height: int


@contextmanager
def opened(content: bytes, most_pixels: int = MOST_PIXELS) -> Iterator[Image.Image]:
    """Open a picture, reading only its header: a decompression bomb is refused before it is decoded.

    Args:
        content: an encoded picture of one of FORMATS.
        most_pixels: width x height may be at most this.

    Raises:
        DataError: not a picture, or too many pixels; also wraps any error of decoding inside the block.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > most_pixels:
                raise ValueError(f"{width} x {height} pixels, at most {most_pixels} in all")
            yield picture
    except Exception as error:  # decoders raise all kinds: OSError, SyntaxError, struct.error
        if (other := unopened(content)) is not None:
            raise DataError(f"expected a picture, found {other}") from ValueError(other)
        raise DataError(
            f"expected a picture ({', '.join(FORMATS)}), found {len(content)} bytes that do not "
            f"decode: {_reason(error)}"
        ) from error


def unopened(content: bytes) -> str | None:
    """That a picture is of a format which is not opened, and which are; None: it is of none that we know."""
    for (offset, begins), name in OTHER_FORMATS.items():
        if content[offset : offset + len(begins)] == begins:
            return f"{name}, {NOT_OPENED}: {', '.join(FORMATS)} are"
    return None


def _reason(error: BaseException | None) -> str:
    """Why bytes do not decode, without the addresses that Pillow puts behind it."""
    return str(error).split(" <")[0] or type(error).__name__


def decoded(content: bytes, px: int | None = None, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Decode to RGB: rotated as EXIF says, transparency over white, the first frame of an animation.

    Args:
        content: an encoded picture of one of FORMATS.
        px: a large JPEG may be decoded at a fraction of its size, both sides at least this; None: full size.
        most_pixels: width x height may be at most this.

    Raises:
        DataError: the bytes are not a readable picture, are cut short, or decode to more than ``most_pixels``.
    """
    with opened(content, most_pixels) as picture:
        if px is not None:
            picture.draft("RGB", (px, px))
        return to_rgb(picture)


def decoded_pixels(content: bytes) -> int:
    """How many pixels ``decoded`` expands at once, by the header: what decoding costs in time and memory.

    A JPEG is decoded at half its size or less, unless it is progressive or smaller than the encoder's picture.

    Raises:
        DataError: not a picture, or of more than MOST_PIXELS.
    """
    with opened(content) as picture:
        width, height = picture.size
        reduced = picture.format == "JPEG" and "progressive" not in picture.info
        return width * height // (4 if reduced and min(width, height) >= 2 * LONG_SIDE else 1)


def media_type(content: bytes) -> str:
    """The HTTP media type of an encoded picture.

    Raises:
        DataError: not a picture.
    """
    with opened(content) as picture:
        return MEDIA_TYPES[str(picture.format)]


def inspect_picture(content: bytes) -> Inspection:
    """Check that bytes are a complete picture of FORMATS, of at most MOST_BYTES and MOST_PIXELS.

    The header is checked before any pixel is decoded, so a decompression bomb is never expanded; then the whole
    picture is decoded, because a truncated JPEG has a valid header.
    """
    image_id = content_hash(content)
    if len(content) > MOST_BYTES:
        return Inspection(f"{len(content)} bytes, at most {MOST_BYTES}", image_id, 0, 0)
    width = height = 0
    try:
        with opened(content, MOST_PIXELS) as picture:
            width, height = picture.size
            picture.draft("RGB", (1, 1))  # a JPEG is then read to its end, but at an eighth of its size
            to_rgb(picture)
    except DataError as error:
        return Inspection(_reason(error.__cause__), image_id, *picture_size(content))
    return Inspection(None, image_id, width, height)


def picture_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels from the header; (0, 0) if it cannot be read."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return picture.size
    except Exception:  # inspect_picture reports the reason
        return 0, 0


def inspect_pictures(contents: Iterable[bytes], total: int) -> Iterator[Inspection]:
    """``inspect_picture`` of each of ``contents``, in order, on all cores."""
    waiting = track(contents, "check pictures", total=total, unit="pictures")
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while block := list(islice(waiting, BLOCK)):
            yield from threads.map(inspect_picture, block)


def read_pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(file name without its ending, picture shrunk to LONG_SIDE) of every file under ``folder``, by path.

    A folder that does not exist yields nothing. Reading a file stops once it is known to be too large.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    waiting = track(files, "read pictures", unit="pictures")
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while block := list(islice(waiting, BLOCK)):
            yield from zip((path.stem for path in block), threads.map(_read, block), strict=True)


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return shrink(stream.read(MOST_BYTES + 1))


def shrink(content: bytes) -> bytes:
    """The picture as a JPEG with a long side of LONG_SIDE pixels; unchanged if smaller or not usable.

    A hundred thousand shop photographs take 25 GB; nothing downstream reads more than LONG_SIDE.
    """
    seen = inspect_picture(content)
    if max(seen.width, seen.height) <= LONG_SIDE or seen.problem is not None:
        return content
    small = decoded(content, 2 * LONG_SIDE)
    small.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=90)
    return out.getvalue()


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB: rotated as EXIF says, transparency over white."""
    picture.load()
    upright = _upright(picture)
    if upright.mode.startswith("I;16"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        grey = np.asarray(upright)
        clear = grey == upright.info.get("transparency", -1)
        return Image.fromarray(np.where(clear, 255, grey >> 8).astype(np.uint8)).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        above = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, (*WHITE, 255)), above).convert("RGB")
    return upright.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """Rotate as EXIF says; damaged EXIF is ignored."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # any error of the parser; the pixels are intact
        return picture
