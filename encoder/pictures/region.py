"""The core semantic region of a product picture: the product itself, without what surrounds it.

MOON §2.1 asks a frozen grounding model for the box of the product that the title names and encodes the crop
beside the whole picture. Here what stands out is the product, found without weights and without reading the title,
in well under a millisecond:

- plain surroundings (packshots): a quadratic surface of colour is fitted to the border, which follows uneven
  light; all that departs from it is product, in however many pieces;
- cluttered surroundings (photos): colours commoner in the middle than in the rim are product (centre-surround
  histograms, Liu et al., CVPR 2007), under a centre prior: photographers aim;
- nothing departs: the whole picture.

Shapes: N pictures, H rows, W columns, X = H W pixels, P of them on the border, Q terms of the surface.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from encoder.pictures.decode import WHITE

REGION_DETAIL = 2  # regions are found and cut from pictures this many times the side of the model's
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom exclusive

GRID = 40  # saliency is computed at this many pixels on the longer side
BORDER = 0.04  # of a side: what is taken for surroundings
BORDER_PIXELS = 200  # of them, at most: enough for a surface of six terms
FIT_ROUNDS = 4  # of reweighted least squares
PLAIN = 0.6  # share of the border that must lie on the surface for the surroundings to count as plain
NOISE = 4.0  # a pixel departs when it is so many standard deviations from the surroundings
FAINTEST, LOUDEST = 10.0, 25.0  # ... held between so many levels (of 255, Euclidean in RGB): JPEG noise is
# below the first, surroundings that vary beyond the second are clutter
CHI_MEDIAN = 1.538  # median length of a 3-vector of unit normals: the median distance of noise, in deviations
RIDGE = 1e-3  # defines the surface where the border is a single line
LEAST = 0.004  # share of the picture that must be salient for a region to exist
TRIM = 0.005  # share of the salient mass left outside on each side: a label in the corner is no product
CENTRE = 0.5  # width of the centre prior, in half sides
COLOUR_STEP = 32  # levels of a channel that share a bin in the colour histograms of middle and rim
UNSEEN = 0.3  # pixels added to each of their bins
MARGIN = 0.02  # added on each side of the box, in sides of the box


def salient_box(image: np.ndarray) -> Box:
    """Box of what stands out of ``image``, uint8 (H, W, 3); the whole picture when nothing does."""
    left, top, right, bottom = unpadded(image[None])[0].tolist()
    image = image[top:bottom, left:right]
    height, width = image.shape[:2]
    scale = max(1.0, max(height, width) / GRID)
    small = image
    if scale > 1:
        size = max(1, round(width / scale)), max(1, round(height / scale))
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    distance, limit, plain = (x[0] for x in departures(small[None]))
    rows, columns = _extent(_unspeckled(distance > limit)) if plain else _stand_out(small)
    box = _with_margin(rows, columns, small.shape[:2], (height, width))
    return box[0] + left, box[1] + top, box[2] + left, box[3] + top


def departures(pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far each pixel is from the surface of colour that the picture's border shows.

    Least squares of colour on 1, x, y, x^2, xy, y^2 over the border, reweighted by 1 / (1 + (d / FAINTEST)^2) with
    d the distance in the last round (Cauchy's weights): a product may reach the border. It must not fill a third
    of it where the light is very uneven.

    Returns:
        float32 (N, H, W), Euclidean distance in RGB levels; float32 (N), the distance beyond which a pixel
        departs from noise; bool (N), whether the surroundings are plain.
    """
    place_QX, edge_P, outer_PQQ = _border(*pixels_NHW3.shape[1:3])
    place_QP, terms = place_QX[:, edge_P], len(place_QX)
    count, pixels = len(pixels_NHW3), place_QX.shape[1]
    flat_NX3 = pixels_NHW3.reshape(count, pixels, 3)
    colour_NP3 = flat_NX3[:, edge_P].astype(np.float32)
    off_NP = _distance(colour_NP3, np.median(colour_NP3, axis=1)[:, None], place_QP[:1])
    ridge = RIDGE * np.eye(terms, dtype=np.float32)
    for _ in range(FIT_ROUNDS):
        weight_NP = 1 / (1 + (off_NP / FAINTEST) ** 2)
        normal_NQQ = (weight_NP @ outer_PQQ).reshape(count, terms, terms) + ridge
        target_NQ3 = np.stack([(weight_NP * colour_NP3[..., c]) @ place_QP.T for c in range(3)], axis=-1)
        surface_NQ3 = np.linalg.solve(normal_NQQ, target_NQ3)
        off_NP = _distance(colour_NP3, surface_NQ3, place_QP)
    median_N = np.partition(off_NP, len(edge_P) // 2, axis=1)[:, len(edge_P) // 2]
    limit_N = (median_N * (NOISE / CHI_MEDIAN)).clip(FAINTEST, LOUDEST)
    plain_N = (off_NP <= limit_N[:, None]).mean(1) >= PLAIN
    return _distance(flat_NX3, surface_NQ3, place_QX).reshape(pixels_NHW3.shape[:3]), limit_N, plain_N


def _distance(colour_NX3: np.ndarray, surface_NQ3: np.ndarray, place_QX: np.ndarray) -> np.ndarray:
    """Euclidean distance of colours from a surface at their places, float32 (N, X)."""
    total_NX = np.zeros(colour_NX3.shape[:2], dtype=np.float32)
    for channel in range(3):
        off_NX = surface_NQ3[..., channel] @ place_QX
        off_NX -= colour_NX3[..., channel]
        off_NX *= off_NX
        total_NX += off_NX
    return np.sqrt(total_NX)


@lru_cache(maxsize=64)
def _border(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of pictures of one size: the Q = 6 terms of each pixel, P pixels of the border, their normal matrices.

    Returns:
        float32 (Q, H W); int64 (P), at most BORDER_PIXELS, a fixed random part of the border; float32 (P, Q Q).
    """
    thick = max(1, round(BORDER * max(height, width)))
    y, x = np.mgrid[0:height, 0:width]
    edge = (np.minimum(x, width - 1 - x) < thick) | (np.minimum(y, height - 1 - y) < thick)
    x, y = 2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1
    place = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y]).reshape(6, -1).astype(np.float32)
    edge_P = np.random.default_rng(0).permutation(np.flatnonzero(edge))[:BORDER_PIXELS]
    outer = place[:, None, edge_P] * place[None, :, edge_P]
    return place, edge_P, np.ascontiguousarray(outer.reshape(-1, len(edge_P)).T)


def crop(image: np.ndarray, box: Box, px: int) -> np.ndarray:
    """The box of a picture, fitted undistorted and centred on a white square as ``decode_image`` fits a picture.

    Args:
        image: uint8 (H, W, 3).
        box: not empty, inside the picture.
        px: side of the square.

    Returns:
        uint8 (px, px, 3).
    """
    left, top, right, bottom = box
    part = Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
    return np.asarray(ImageOps.pad(part, (px, px), Image.Resampling.BICUBIC, color=WHITE), dtype=np.uint8)


def core_region(image: np.ndarray, px: int) -> np.ndarray:
    """The core region of a picture, uint8 (px, px, 3): one function for training's reading and serving's encoding.

    Args:
        image: uint8 (H, W, 3), at the best resolution there is: the crop is enlarged from it.
        px: side of the square returned.
    """
    return crop(image, salient_box(image), px)


def unpadded(pixels_NHW3: np.ndarray) -> np.ndarray:
    """Boxes of pictures without the white bars by which ``decode_image`` makes them square, int64 (N, 4).

    Padding is equally wide on two opposite sides and absent on the others; a white packshot has white all round.
    """
    count, height, width, _ = pixels_NHW3.shape
    lightest = pixels_NHW3[..., 0] & pixels_NHW3[..., 1] & pixels_NHW3[..., 2]
    white = lightest == 255
    rows, columns = white.all(2), white.all(1)
    top, left, bottom, right = (
        np.where(side.all(1), 0, side.argmin(1)) for side in (rows, columns, rows[:, ::-1], columns[:, ::-1])
    )
    across = (top + bottom == 0) & (left > 0) & (np.abs(left - right) <= 1)
    along = (left + right == 0) & (top > 0) & (np.abs(top - bottom) <= 1)
    return np.stack(
        [left * across, top * along, width - right * across, height - bottom * along], axis=1
    ).astype(np.int64)


Span = tuple[float, float]


def _extent(departs: np.ndarray) -> tuple[Span, Span]:
    """Rows and columns that hold the mass but for TRIM on each side; everything when there is too little."""
    if departs.mean() < LEAST:
        return (0, departs.shape[0]), (0, departs.shape[1])
    return _between(departs.sum(1)), _between(departs.sum(0))


def _between(mass: np.ndarray) -> Span:
    share = np.cumsum(mass) / mass.sum()
    return int(np.argmax(share > TRIM)), int(np.argmax(share >= 1 - TRIM)) + 1


def _unspeckled(departs: np.ndarray) -> np.ndarray:
    """Without pixels that have fewer than two such neighbours: a chain one pixel wide stays, noise goes."""
    around = Image.fromarray(departs * np.uint8(9 * 28)).filter(ImageFilter.BoxBlur(1))  # 28 for each of nine
    return departs & (np.asarray(around) > 2.5 * 28)


def _stand_out(small: np.ndarray) -> tuple[Span, Span]:
    """Rows and columns of what the middle of a cluttered picture is made of and its rim is not.

    Bayes' rule for each pixel: is its colour commoner in the middle or in the rim, times a centre prior; once
    more with what was found as the middle. The box is the one that a uniform mass of the same mean and deviation
    would fill.
    """
    height, width = small.shape[:2]
    soft = np.asarray(Image.fromarray(small).filter(ImageFilter.GaussianBlur(1)))
    red, green, blue = (soft[:, :, channel].astype(np.intp) // COLOUR_STEP for channel in range(3))
    levels = 255 // COLOUR_STEP + 1
    code = (red * levels + green) * levels + blue
    y, x = (np.abs((np.arange(n) + 0.5) / n - 0.5) * 2 for n in (height, width))
    away = np.maximum(y[:, None], x[None])  # 0 in the middle, 1 at the rim
    prior = np.exp(-((away / CENTRE) ** 2) / 2)
    middle = np.exp(-((away / CENTRE) ** 2))
    count = np.bincount(code.ravel(), minlength=levels**3)
    for _ in range(2):
        inner = np.bincount(code.ravel(), middle.ravel(), levels**3) + UNSEEN
        outer = count + 2 * UNSEEN - inner
        inner, outer = inner / inner.sum(), outer / outer.sum()
        likely = _blurred((inner / (inner + outer))[code])
        middle = likely * prior / (likely * prior + (1 - likely) * (1 - prior) + 1e-9)
    mass = middle**2 + 1e-6  # doubtful pixels count little
    return _spread(mass.sum(1)), _spread(mass.sum(0))


def _blurred(share: np.ndarray) -> np.ndarray:
    picture = Image.fromarray((share * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5))
    return np.asarray(picture, dtype=np.float64) / 255


def _spread(mass: np.ndarray) -> Span:
    """The interval over which mass of this mean and deviation would lie uniformly: mean -+ sqrt(3) deviations."""
    place = np.arange(len(mass)) + 0.5
    mean = (mass * place).sum() / mass.sum()
    reach = math.sqrt(3 * (mass * (place - mean) ** 2).sum() / mass.sum())
    return max(0.0, mean - reach), min(float(len(mass)), mean + reach)


def _with_margin(rows: Span, columns: Span, small: tuple[int, int], full: tuple[int, int]) -> Box:
    """The box in pixels of the full picture, MARGIN wider on every side, inside it and never empty."""
    edges = []
    for (low, high), length, size in zip((rows, columns), small, full, strict=True):
        margin, scale = MARGIN * (high - low), size / length
        edges.append(
            (max(0, math.floor((low - margin) * scale)), min(size, math.ceil((high + margin) * scale)))
        )
    (top, bottom), (left, right) = edges
    return left, top, right, bottom
