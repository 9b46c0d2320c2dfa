"""Pictures at the door: are the bytes a picture we can use, how large is it, and a smaller copy of it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dataset.contracts import content_hash
from run.progress import track

FORMATS = ("JPEG", "PNG")
WHITE = (255, 255, 255)
MOST_BYTES = 20 * 1024 * 1024
MOST_PIXELS = 50_000_000
LONG_SIDE = 256  # kept of a larger source picture, in pixels; the largest encoder reads 224
BLOCK = 4096  # pictures handed to the threads at a time, so that a generator of them is not read ahead


class Inspection(NamedTuple):
    """What the bytes of a picture turned out to be.

    Attributes:
        problem: what keeps them from being usable; None when nothing does.
        image_id: their content hash.
        width, height: in pixels, 0 when the header cannot be read.
    """

    problem: str | None
    image_id: str
    width: int
    height: int


def inspect_picture(content: bytes) -> Inspection:
    """Judge encoded bytes: a complete JPEG or PNG of at most MOST_BYTES and MOST_PIXELS.

    The header is judged before any pixel is decoded, so a bomb is never opened; then all of it is decoded,
    because a truncated JPEG has a perfect header.
    """
    image_id = content_hash(content)
    if len(content) > MOST_BYTES:
        return Inspection(f"{len(content)} bytes, at most {MOST_BYTES}", image_id, 0, 0)
    width = height = 0
    problem = None
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                problem = f"{width} x {height} pixels, at most {MOST_PIXELS} in all"
            else:
                picture.draft("L", (1, 1))  # a JPEG is then read to its end, but at an eighth of its size
                picture.load()
    except Exception as error:  # decoders raise whatever they trip over: OSError, SyntaxError, struct.error
        problem = str(error).split(" <")[0] or type(error).__name__
    return Inspection(problem, image_id, width, height)


def inspect_pictures(contents: Iterable[bytes], total: int) -> Iterator[Inspection]:
    """``inspect_picture`` of each of ``contents``, in order, on all cores."""
    waiting = track(contents, "check pictures", total=total, unit="pictures")
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while block := list(islice(waiting, BLOCK)):
            yield from threads.map(inspect_picture, block)


def picture_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels as the header says; (0, 0) when it cannot be read."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return picture.size
    except Exception:  # told, with its reason, by inspect_picture
        return 0, 0


def read_pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(file name without its ending, picture shrunk to LONG_SIDE) of every file under ``folder``, by path.

    A folder that does not exist holds none. No more is read of a file than tells that it is too large.
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
    """The picture as a JPEG with a long side of LONG_SIDE pixels; unchanged when smaller or not usable.

    A source of a hundred thousand shop photographs is 25 GB; nothing downstream reads more than this.
    """
    seen = inspect_picture(content)
    if max(seen.width, seen.height) <= LONG_SIDE or seen.problem is not None:
        return content
    with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        picture.draft("RGB", (2 * LONG_SIDE, 2 * LONG_SIDE))
        small = to_rgb(picture)
        small.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        small.save(out, "JPEG", quality=90)
    return out.getvalue()


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode in RGB: upright as its EXIF says, transparency laid over white."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        above = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, (*WHITE, 255)), above).convert("RGB")
    if upright.mode.startswith("I;16"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
    return upright.convert("RGB")
