"""What tells one picture from another whichever way it is taken: linear discriminants of colours and of shapes.

A picture taken again is moved, turned, mirrored, nearer or further away. Fisher's discriminants are the directions
in which pictures differ most beside what that changes: instance discrimination (1805.01978) in closed form. Of
thumbnails they keep, for instance, the colour behind a product. Shape and texture are read from gradients and from
the spectrum, in views whose colours are mixed at random; most of what these say is the kind of product, which words
say already, so what words predict is taken away. The few numbers have places of their own in the vector: among
sixty-four others a fine pattern is lost (docs/log/encoder.md#what-pictures-say-and-words-do-not).

Shapes: B samples, N pictures, S picture side in pixels, P numbers of a thumbnail, F of a shape, D of the words'
vector, V views of a picture, K discriminants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.backbone.packing import Sample
from encoder.examples.warp import channels_first, homographies, warped
from encoder.parts.wide import THUMBNAIL, thumbnails

COLOURS, SHAPES = 4, 4
COUNT = COLOURS + SHAPES  # K
# Of mean squared length 1/2, the two are multiplied by these, beside a vector of length 1. Colours are short, since
# variants of a product differ in them (docs/log/encoder.md#how-long-discriminants-may-be).
COLOURS_BY, SHAPES_BY = 0.1, 0.25
VIEWS, MOST = 4, 4_000  # views of a picture, and pictures, that discriminants are learned from
FEWEST = 32  # pictures; of fewer nothing is learned
SHRINKAGE = 0.1  # of the covariance within pictures towards a sphere
# Of views: radians, log size, halves of the frame, log contrast.
TURN, NEARER, SHIFT, LIGHTER = 0.17, 0.15, 0.12, 0.3
SIDE = 32  # in pixels, at which shapes are read
LEVELS, CELLS = 3, 4  # halvings of the picture, and cells a side, in which gradients are summed
RINGS, WEDGES = 8, 4  # of the spectrum
FAINT = 1e-3  # part of a picture's energy that a band of its spectrum has to have to be told from none


class Discriminants(nn.Module):
    """Reads K numbers of a picture, fitted once to a catalogue, then fixed.

    Args:
        px: S.
        width: D.
    """

    def __init__(self, px: int, width: int) -> None:
        super().__init__()
        features = shapes(torch.zeros(1, px, px, 3)).shape[1]
        for name, read, kept in (("colour", 3 * THUMBNAIL**2, COLOURS), ("shape", features, SHAPES)):
            self.register_buffer(f"{name}_usual", torch.zeros(read))
            self.register_buffer(f"{name}_directions", torch.zeros(read, kept))
        self.register_buffer("told_directions", torch.zeros(width, SHAPES))  # what words say of the shapes
        self.register_buffer("told_usual", torch.zeros(SHAPES))
        self.register_buffer("alone", torch.zeros(()))  # 1: items of this catalogue have no words
        self.alone: Tensor
        self.colour_usual: Tensor
        self.colour_directions: Tensor
        self.shape_usual: Tensor
        self.shape_directions: Tensor
        self.told_directions: Tensor
        self.told_usual: Tensor

    def forward(self, samples: Sequence[Sample], told_BD: Tensor) -> Tensor:
        """The discriminants of samples of pixels, float (B, K), to stand beside vectors of length 1.

        Without a picture they are 0; so they are without words, unless the catalogue has none: a picture alone is
        then a search, and what is behind the product is the searcher's.

        Args:
            samples: pictures and words.
            told_BD: the wide path's vectors of the words alone.
        """
        out = torch.zeros(len(samples), COUNT, device=told_BD.device)
        alone = bool(self.alone)
        places = [
            place for place, sample in enumerate(samples) if sample.pictures and (alone or len(sample.tokens))
        ]
        if not places:
            return out
        pixels = torch.from_numpy(np.stack([samples[place].pictures[0] for place in places])).to(out.device)
        colours = (thumbnails(pixels) - self.colour_usual) @ self.colour_directions
        seen = (shapes(pixels) - self.shape_usual) @ self.shape_directions
        unsaid = seen - (told_BD[places] @ self.told_directions + self.told_usual)
        out[places] = torch.cat([COLOURS_BY * colours, SHAPES_BY * unsaid], dim=1)
        return out

    def fit(self, pixels_NSS3: np.ndarray, told_ND: np.ndarray) -> None:
        """Learn the discriminants; of fewer than FEWEST pictures they stay zero.

        Args:
            pixels_NSS3: uint8, pictures of items.
            told_ND: float32, the wide path's vectors of the same items' words alone; zeros without words.
        """
        rng = np.random.default_rng(0)
        rows = np.sort(rng.permutation(len(pixels_NSS3))[:MOST])
        if len(rows) < FEWEST:
            return
        worded = told_ND[rows].any(axis=1)
        if worded.sum() >= FEWEST:
            rows = rows[worded]
        else:
            self.alone.fill_(1)
        pixels, told = pixels_NSS3[rows], told_ND[rows]
        seen, views = _read(pixels, thumbnails, rng, mixed=False)
        self._keep("colour", seen, _strongest(seen, _within(views), COLOURS))
        seen, views = _read(pixels, shapes, rng, mixed=True)
        spread = seen.std(axis=0) + 1e-4
        whitening = _within(views / spread)
        distinct = (seen - seen.mean(axis=0)) / spread @ whitening
        words = RidgeCV(alphas=np.geomspace(0.1, 100, 10)).fit(told, distinct)
        rest = distinct - words.predict(told)
        chosen = _strongest(rest, np.eye(rest.shape[1]), SHAPES)
        self._keep("shape", seen, (whitening / spread[:, None]) @ chosen)
        self.told_directions.copy_(torch.from_numpy(words.coef_.T @ chosen))
        self.told_usual.copy_(torch.from_numpy(words.intercept_ @ chosen))

    def _keep(self, name: str, seen: np.ndarray, directions: np.ndarray) -> None:
        getattr(self, f"{name}_usual").copy_(torch.from_numpy(seen.mean(axis=0)))
        getattr(self, f"{name}_directions")[:, : directions.shape[1]] = torch.from_numpy(directions)


def shapes(pixels_NSS3: Tensor) -> Tensor:
    """Shape and texture of pictures, whatever their colours: float32 (N, F).

    Energies of gradients across, down and aslant (the structure tensor) in cells at several resolutions, and energies
    of the spectrum in rings and wedges, both beside the picture's own energy.
    """
    picture = pixels_NSS3.float().permute(0, 3, 1, 2) / 255
    if picture.shape[-1] > SIDE:
        picture = F.adaptive_avg_pool2d(picture, SIDE)
    picture = picture - picture.mean((2, 3), keepdim=True)
    energy = picture.square().sum((1, 2, 3))[:, None].clamp(min=1e-6)
    out, level = [], picture
    for _ in range(LEVELS):
        across = F.pad(level[:, :, :, 2:] - level[:, :, :, :-2], (1, 1, 0, 0))
        down = F.pad(level[:, :, 2:] - level[:, :, :-2], (0, 0, 1, 1))
        for one in (across.square(), down.square(), across * down):
            part = F.adaptive_avg_pool2d(one.sum(1), CELLS).flatten(1) / energy
            out.append(part.sign() * part.abs().sqrt())
        level = F.avg_pool2d(level, 2)
    side = picture.shape[-1]
    window = torch.hann_window(side, periodic=False, device=picture.device)
    spectrum = torch.fft.fft2(picture * window * window[:, None]).abs().square().sum(1).flatten(1)
    bands = torch.from_numpy(_bands(side)).to(picture.device)
    return torch.cat([*out, torch.log(spectrum @ bands / energy + FAINT)], dim=1)


@lru_cache(maxsize=4)
def _bands(side: int) -> np.ndarray:
    """Which frequencies belong to each ring and wedge, float32 (side * side, bands), without empty bands."""
    down, across = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    edges = np.geomspace(1.5 / side, 0.5, RINGS + 1)
    ring = np.searchsorted(edges, np.hypot(across, down), side="right") - 1
    wedge = np.round(np.arctan2(down, across) / np.pi * WEDGES).astype(int) % WEDGES
    band = np.where((ring >= 0) & (ring < RINGS), ring * WEDGES + wedge, RINGS * WEDGES).reshape(-1)
    found = np.unique(band[band < RINGS * WEDGES])
    return (band[:, None] == found).astype(np.float32)


def _read(
    pixels_NSS3: np.ndarray, reader: Callable[[Tensor], Tensor], rng: np.random.Generator, mixed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What a reader sees in pictures, float64 (N, numbers), and in views of them, (V, N, numbers)."""
    seen, views = [], []
    for start in range(0, len(pixels_NSS3), 512):
        part = pixels_NSS3[start : start + 512]
        seen.append(reader(torch.from_numpy(part)).numpy())
        views.append([reader(_view(part, rng, mixed)).numpy() for _ in range(VIEWS)])
    return np.concatenate(seen).astype(np.float64), np.concatenate(views, axis=1).astype(np.float64)


def _view(pixels_NSS3: np.ndarray, rng: np.random.Generator, mixed: bool) -> Tensor:
    """Pictures taken again, float32 (N, S, S, 3); ``mixed``: with their colours turned at random."""
    count = len(pixels_NSS3)
    size = np.exp(rng.uniform(-NEARER, NEARER, size=(count, 1))).repeat(2, axis=1)
    size[:, 0] *= rng.choice([-1, 1], size=count)
    shift, none = rng.uniform(-SHIFT, SHIFT, size=(count, 2)), np.zeros(count)
    turn = rng.uniform(-TURN, TURN, size=count)
    picture = warped(channels_first(pixels_NSS3), homographies(turn, size, none, shift, np.zeros((count, 2))))
    if mixed:
        mixing = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
        mixing *= np.exp(rng.uniform(-LIGHTER, LIGHTER, size=(count, 1, 1)))
        mean = picture.mean((2, 3), keepdim=True)
        picture = torch.einsum("nij,njhw->nihw", torch.from_numpy(mixing.astype(np.float32)), picture - mean)
    return picture.permute(0, 2, 3, 1)


def _within(views: np.ndarray) -> np.ndarray:
    """The map after which views of a picture differ alike in all directions, float64 (numbers, numbers)."""
    rest = (views - views.mean(axis=0)).reshape(-1, views.shape[-1])
    covariance = rest.T @ rest / max(len(rest), 1)
    average = max(float(np.trace(covariance)) / len(covariance), 1e-9)
    value, vector = np.linalg.eigh(covariance + SHRINKAGE * average * np.eye(len(covariance)))
    whitening: np.ndarray = vector / np.sqrt(value)
    return whitening


def _strongest(rows: np.ndarray, whitening: np.ndarray, count: int) -> np.ndarray:
    """Directions in which whitened rows differ most; what is placed in them has the mean squared length 1/2."""
    placed = (rows - rows.mean(axis=0)) @ whitening
    _, strength, direction = np.linalg.svd(placed, full_matrices=False)
    length = np.sqrt(2 * (strength[:count] ** 2).sum() / len(rows))
    found: np.ndarray = whitening @ direction[:count].T / max(float(length), 1e-9)
    return found
