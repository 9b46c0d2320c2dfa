"""The core semantic region of a product picture: the product itself, without its surroundings.

MOON §2.1 asks a frozen grounding model for the box of the product that the title names, and encodes the crop beside
the whole picture. Here the salient part of the picture is taken for the product, without weights or the title, in
well under a millisecond:

- plain surroundings (packshots): a quadratic colour surface is fitted to the border, to follow uneven light; all
  pixels that depart from it are product, in any number of pieces;
- cluttered surroundings (photos): colours that are more frequent in the middle than at the rim are product
  (centre-surround histograms, Liu et al., CVPR 2007), with a centre prior, as photographers centre products;
- nothing departs: the whole picture.

Shapes: N pictures, H rows, W columns, X = H W pixels, P of them on the border, Q terms of the surface.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from encoder.pictures.decode import WHITE

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom exclusive

GRID = 40  # saliency is computed at this many pixels on the longer side
BORDER = 0.04  # width of the border, as a fraction of the longer side
BORDER_PIXELS = 200  # most border pixels used: enough for a surface of six terms
FIT_ROUNDS = 4  # rounds of reweighted least squares
PLAIN = 0.6  # fraction of the border that must lie on the surface for the surroundings to count as plain
NOISE = 4.0  # a pixel departs when it is this many standard deviations from the surface
# ... clipped to this range (Euclidean distance in RGB levels): JPEG noise is below the lower bound, surroundings that
# vary beyond the upper one are clutter.
FAINTEST, LOUDEST = 10.0, 25.0
CHI_MEDIAN = 1.538  # median length of a 3-vector of unit normals: the median distance of noise, in deviations
RIDGE = 1e-3  # makes the surface unique where the border is a single line
LEAST = 0.004  # fraction of the picture that must be salient for a region to exist
TRIM = 0.005  # fraction of the salient mass cut off on each side, e.g. a label in the corner
CENTRE = 0.5  # width of the centre prior, in half sides
COLOUR_STEP = 32  # levels of a channel per bin in the colour histograms of middle and rim
UNSEEN = 0.3  # pixels added to each bin (smoothing)
MARGIN = 0.02  # added on each side of the box, as a fraction of the box's side


def salient_box(image: np.ndarray) -> Box:
    """Box of the salient part of ``image``, uint8 (H, W, 3); the whole picture when there is none."""
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
    """Distance of each pixel from the colour surface fitted to the picture's border.

    Least squares of colour on 1, x, y, x^2, xy, y^2 over the border, reweighted by 1 / (1 + (d / FAINTEST)^2) with d
    the distance in the last round (Cauchy weights), because a product may touch the border. The fit fails when the
    product covers a third of the border and the light is very uneven.

    Returns:
        float32 (N, H, W), Euclidean distance in RGB levels; float32 (N), the distance beyond which a pixel is not
        noise; bool (N), whether the surroundings are plain.
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
    """Euclidean distance of each pixel's colour from the surface, float32 (N, X)."""
    total_NX = np.zeros(colour_NX3.shape[:2], dtype=np.float32)
    for channel in range(3):
        off_NX = surface_NQ3[..., channel] @ place_QX
        off_NX -= colour_NX3[..., channel]
        off_NX *= off_NX
        total_NX += off_NX
    return np.sqrt(total_NX)


@lru_cache(maxsize=64)
def _border(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For pictures of one size: Q = 6 terms of each pixel, P border pixels, outer products of these pixels' terms.

    Returns:
        float32 (Q, X); int64 (P), at most BORDER_PIXELS, a fixed random sample of the border; float32 (P, Q Q).
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
    """Cut a box out of a picture and fit it on a white square, undistorted and centred, as ``decode_image`` does.

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
    """The core region of a picture, uint8 (px, px, 3): the same function for training and serving.

    Args:
        image: uint8 (H, W, 3), at a high resolution, as the crop is enlarged.
        px: side of the square returned.
    """
    return crop(image, salient_box(image), px)


def unpadded(pixels_NHW3: np.ndarray) -> np.ndarray:
    """Boxes of the pictures without the white padding that ``decode_image`` adds to make them square, int64 (N, 4).

    Padding has equal width on two opposite sides and none on the others; a white packshot is white on all four.
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
    """Rows and columns that contain the mass without TRIM on each side; all of them when there is too little."""
    if departs.mean() < LEAST:
        return (0, departs.shape[0]), (0, departs.shape[1])
    return _between(departs.sum(1)), _between(departs.sum(0))


def _between(mass: np.ndarray) -> Span:
    fraction = np.cumsum(mass) / mass.sum()
    return int(np.argmax(fraction > TRIM)), int(np.argmax(fraction >= 1 - TRIM)) + 1


def _unspeckled(departs: np.ndarray) -> np.ndarray:
    """Remove pixels with fewer than two departing neighbours: noise goes, a necklace one pixel wide stays."""
    around = Image.fromarray(departs * np.uint8(9 * 28)).filter(ImageFilter.BoxBlur(1))  # 28 per neighbour
    return departs & (np.asarray(around) > 2.5 * 28)


def _stand_out(small: np.ndarray) -> tuple[Span, Span]:
    """Rows and columns of the pixels whose colours are typical of the middle of a cluttered picture, not of its rim.

    Bayes' rule for each pixel: how frequent its colour is in the middle and at the rim, with a centre prior; then
    again with the result as the middle. The box has the extent of a uniform mass with the same mean and deviation.
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
    mass = middle**2 + 1e-6  # uncertain pixels get little weight
    return _spread(mass.sum(1)), _spread(mass.sum(0))


def _blurred(probability: np.ndarray) -> np.ndarray:
    picture = Image.fromarray((probability * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5))
    return np.asarray(picture, dtype=np.float64) / 255


def _spread(mass: np.ndarray) -> Span:
    """The interval of the uniform distribution with the mass's mean and deviation: mean -+ sqrt(3) deviations."""
    place = np.arange(len(mass)) + 0.5
    mean = (mass * place).sum() / mass.sum()
    reach = math.sqrt(3 * (mass * (place - mean) ** 2).sum() / mass.sum())
    return max(0.0, mean - reach), min(float(len(mass)), mean + reach)


def _with_margin(rows: Span, columns: Span, small: tuple[int, int], full: tuple[int, int]) -> Box:
    """The box in pixels of the full picture, MARGIN wider on each side, clipped to the picture, never empty."""
    edges = []
    for (low, high), length, size in zip((rows, columns), small, full, strict=True):
        margin, scale = MARGIN * (high - low), size / length
        first = min(max(0, math.floor((low - margin) * scale)), size - 1)
        edges.append((first, max(first + 1, min(size, math.ceil((high + margin) * scale)))))
    (top, bottom), (left, right) = edges
    return left, top, right, bottom
