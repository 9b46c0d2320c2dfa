"""Product pictures of the simulated marketplace: a silhouette, a colour, a pattern, a background.

A silhouette is a list of polygons in object coordinates (x to the right, y down, both about -1..1), so proportions,
rotation and scale are one affine map.
"""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX = 64
_CANVAS_PX = 2 * SIDE_PX  # drawn at twice the size and averaged, for smooth edges
_GROUND, _SHADOW, _BODY, _TRIM, _INK = range(5)  # what a canvas pixel shows

# name -> hue in degrees, saturation, value
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 0.85, 0.85),
    "orange": (28, 0.90, 0.95),
    "yellow": (54, 0.85, 0.95),
    "green": (120, 0.75, 0.65),
    "teal": (175, 0.80, 0.70),
    "blue": (220, 0.80, 0.85),
    "purple": (275, 0.65, 0.75),
    "pink": (325, 0.60, 0.95),
    "black": (0, 0.0, 0.12),
    "white": (0, 0.0, 0.97),
}
PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag")


@dataclass(frozen=True)
class Look:
    """What a picture shows.

    Attributes:
        shape: a key of SILHOUETTES.
        colour: a key of COLOURS.
        pattern: a member of PATTERNS.
        density: -1 coarse .. 1 fine; not in the text.
        elongation: -1 squat .. 1 slender; not in the text.
        background: hue of the backdrop in turns, 0..1; not in the text.
    """

    shape: str
    colour: str
    pattern: str
    density: float
    elongation: float
    background: float


@dataclass(frozen=True)
class Camera:
    """Camera parameters; query pictures are rotated, smaller, off centre and noisy.

    Attributes:
        angle: rotation in radians.
        scale: size of the product; 1 fills the frame.
        shift: x and y of its centre, in object coordinates.
        noise: standard deviation of the sensor noise, in 8-bit steps.
    """

    angle: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    noise: float = 4.0


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> np.ndarray:
    angle = np.radians(np.linspace(start, stop, 28))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


# Later parts cover earlier ones; a _GROUND part cuts a hole.
SILHOUETTES: dict[str, tuple[tuple[int, np.ndarray], ...]] = {
    "mug": (
        (_TRIM, _ellipse(0.45, 0.05, 0.36, 0.38)),
        (_GROUND, _ellipse(0.45, 0.05, 0.20, 0.22)),
        (_BODY, _box(-0.60, -0.55, 0.40, 0.65)),
        (_TRIM, _ellipse(-0.10, -0.55, 0.50, 0.10)),
    ),
    "vase": (
        (_BODY, _polygon((-0.22, -0.8), (0.22, -0.8), (0.14, -0.35), (0.55, 0.15), (0.3, 0.8), (-0.3, 0.8),
                         (-0.55, 0.15), (-0.14, -0.35))),
        (_TRIM, _ellipse(0.0, -0.8, 0.26, 0.07)),
    ),
    "lamp": (
        (_TRIM, _box(-0.06, -0.1, 0.06, 0.75)),
        (_TRIM, _ellipse(0.0, 0.76, 0.38, 0.10)),
        (_BODY, _polygon((-0.34, -0.8), (0.34, -0.8), (0.66, 0.05), (-0.66, 0.05))),
    ),
    "cushion": (
        (_BODY, _polygon((-0.8, -0.7), (0.0, -0.58), (0.8, -0.7), (0.68, 0.0), (0.8, 0.7), (0.0, 0.58),
                         (-0.8, 0.7), (-0.68, 0.0))),
    ),
    "clock": (
        (_TRIM, _ellipse(0.0, 0.0, 0.80, 0.80)),
        (_BODY, _ellipse(0.0, 0.0, 0.66, 0.66)),
        (_TRIM, _polygon((-0.05, 0.05), (-0.05, -0.52), (0.05, -0.52), (0.05, 0.05))),
        (_TRIM, _polygon((-0.05, -0.05), (0.40, -0.05), (0.40, 0.05), (-0.05, 0.05))),
    ),
    "shirt": (
        (_BODY, _polygon((-0.32, -0.7), (0.32, -0.7), (0.85, -0.32), (0.66, 0.02), (0.42, -0.14),
                         (0.42, 0.75),
                         (-0.42, 0.75), (-0.42, -0.14), (-0.66, 0.02), (-0.85, -0.32))),
        (_TRIM, _ellipse(0.0, -0.7, 0.24, 0.16, 0.0, 180.0)),
    ),
    "dress": (
        (_BODY, _polygon((-0.26, -0.8), (-0.12, -0.6), (0.12, -0.6), (0.26, -0.8), (0.32, -0.35),
                         (0.22, -0.1),
                         (0.68, 0.8), (-0.68, 0.8), (-0.22, -0.1), (-0.32, -0.35))),
        (_TRIM, _box(-0.24, -0.16, 0.24, -0.04)),
    ),
    "trousers": (
        (_BODY, _polygon((-0.42, -0.8), (0.42, -0.8), (0.56, 0.8), (0.14, 0.8), (0.0, -0.2), (-0.14, 0.8),
                         (-0.56, 0.8))),
        (_TRIM, _box(-0.43, -0.8, 0.43, -0.67)),
    ),
    "hat": (
        (_BODY, _polygon((-0.42, 0.2), (-0.36, -0.45), (-0.15, -0.6), (0.15, -0.6), (0.36, -0.45),
                         (0.42, 0.2))),
        (_BODY, _ellipse(0.0, 0.3, 0.9, 0.2)),
        (_TRIM, _box(-0.42, 0.04, 0.42, 0.2)),
    ),
    "sock": (
        (_BODY, _polygon((-0.38, -0.8), (0.14, -0.8), (0.14, 0.18), (0.6, 0.42), (0.66, 0.68), (0.42, 0.8),
                         (-0.1, 0.78), (-0.38, 0.5))),
        (_TRIM, _box(-0.42, -0.8, 0.18, -0.62)),
    ),
    "bag": (
        (_TRIM, _ellipse(0.0, -0.25, 0.42, 0.52)),
        (_GROUND, _ellipse(0.0, -0.25, 0.30, 0.40)),
        (_BODY, _polygon((-0.62, -0.25), (0.62, -0.25), (0.78, 0.72), (-0.78, 0.72))),
    ),
    "umbrella": (
        (_TRIM, _box(-0.04, -0.1, 0.04, 0.72)),
        (_TRIM, _polygon((0.04, 0.66), (-0.24, 0.66), (-0.24, 0.5), (-0.16, 0.5), (-0.16, 0.76),
                         (0.04, 0.76))),
        (_BODY, _ellipse(0.0, 0.02, 0.88, 0.76, 180.0, 360.0)),
    ),
    "watch": (
        (_BODY, _box(-0.22, -0.9, 0.22, 0.9)),
        (_TRIM, _ellipse(0.0, 0.0, 0.48, 0.48)),
        (_GROUND, _ellipse(0.0, 0.0, 0.35, 0.35)),
        (_TRIM, _polygon((-0.04, 0.04), (-0.04, -0.27), (0.04, -0.27), (0.04, -0.04), (0.2, -0.04),
                         (0.2, 0.04))),
    ),
    "shoe": (
        (_BODY, _polygon((-0.8, -0.4), (-0.3, -0.4), (0.05, -0.05), (0.6, 0.12), (0.82, 0.4), (-0.8, 0.4))),
        (_TRIM, _box(-0.84, 0.38, 0.86, 0.54)),
    ),
    "glasses": (
        (_TRIM, _box(-0.9, -0.24, 0.9, -0.12)),
        (_TRIM, _ellipse(-0.44, 0.02, 0.42, 0.38)),
        (_TRIM, _ellipse(0.44, 0.02, 0.42, 0.38)),
        (_BODY, _ellipse(-0.44, 0.02, 0.33, 0.29)),
        (_BODY, _ellipse(0.44, 0.02, 0.33, 0.29)),
    ),
}  # fmt: skip


def _labels(look: Look, affine: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    """Label of the part that each canvas pixel shows, uint8 (canvas, canvas)."""
    image = Image.new("L", (_CANVAS_PX, _CANVAS_PX), _GROUND)
    pen = ImageDraw.Draw(image)
    parts = SILHOUETTES[look.shape]
    lowest = max(points[:, 1].max() for _, points in parts)
    for label, points in ((_SHADOW, _ellipse(0.08, lowest, 0.7, 0.12)), *parts):
        placed = (points @ affine.T + shift) * (_CANVAS_PX / 2) + _CANVAS_PX / 2
        pen.polygon([(x, y) for x, y in placed.tolist()], fill=label)
    return np.array(image)


_AXIS = (np.arange(_CANVAS_PX, dtype=np.float32) + 0.5) * (2 / _CANVAS_PX) - 1
_X, _Y = np.meshgrid(_AXIS, _AXIS)
_LIGHT = (1.0 - 0.08 * (_X + _Y))[::2, ::2, None]  # from the upper left, per pixel of the picture


def _ink(pattern: str, density: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mask of the pattern's second colour, bool, in the shape of ``x`` and ``y`` (object coordinates)."""
    period = 0.40 * 2.0 ** (-0.75 * density)  # 0.67 (coarse) .. 0.24 (fine): at least 3 px in a 32 px picture
    across, down = x / period % 1.0, y / period % 1.0
    if pattern == "striped":
        return down < 0.5
    if pattern == "dotted":
        return (across - 0.5) ** 2 + (down - 0.5) ** 2 < 0.10
    if pattern == "checked":
        return (across < 0.5) ^ (down < 0.5)
    if pattern == "zigzag":
        return (down + np.abs(across - 0.5)) % 1.0 < 0.5
    return np.zeros(x.shape, dtype=bool)


def _rgb(hue_degrees: float, saturation: float, value: float) -> np.ndarray:
    clipped = min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    return np.array(colorsys.hsv_to_rgb(hue_degrees / 360 % 1.0, *clipped), dtype=np.float32)


def _palette(look: Look, rng: np.random.Generator) -> np.ndarray:
    """The colour of each canvas label, uint8 (5, 3)."""
    hue, saturation, value = COLOURS[look.colour]
    turn, deeper, brighter = rng.uniform(-1, 1, size=3)
    body = _rgb(hue + 7 * turn, saturation + 0.06 * deeper if saturation else 0.0, value + 0.05 * brighter)
    ink = 0.45 * body if value > 0.9 and saturation < 0.5 else 0.35 * body + 0.65
    trim = body * 0.55 if value > 0.3 else body + 0.22
    ground = _rgb(360 * look.background, 0.42, 0.92)
    return (np.stack([ground, ground * 0.72, body, trim, ink]) * 255).astype(np.uint8)


def draw(look: Look, rng: np.random.Generator, camera: Camera | None = None) -> bytes:
    """Draw a product as a 64 x 64 JPEG; the same arguments give the same bytes."""
    camera = camera or Camera()
    stretch = np.diag([0.80 * 2.0 ** (-0.30 * look.elongation), 0.80 * 2.0 ** (0.30 * look.elongation)])
    cosine, sine = np.cos(camera.angle), np.sin(camera.angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    affine = camera.scale * turn @ stretch
    labels = _labels(look, affine, camera.shift)
    back = np.linalg.inv(camera.scale * turn).astype(
        np.float32
    )  # patterns rotate and scale with the product, but are not stretched
    x, y = _X - np.float32(camera.shift[0]), _Y - np.float32(camera.shift[1])
    inked = _ink(look.pattern, look.density, back[0, 0] * x + back[0, 1] * y, back[1, 0] * x + back[1, 1] * y)
    labels[(labels == _BODY) & inked] = _INK
    canvas = Image.fromarray(np.take(_palette(look, rng), labels, axis=0)).reduce(2)
    pixels = np.asarray(canvas, dtype=np.float32) * _LIGHT
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(camera.noise)
    stream = io.BytesIO()
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    picture.save(stream, format="JPEG", quality=88, subsampling=0)
    return stream.getvalue()
