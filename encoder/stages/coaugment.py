"""Image-text co-augmentation of positives, in training only (MOON2.0 §3.4).

The paper enriches titles with T+ = MLLM_text(T, I, E), E the entities of title and description, varies pictures with
an editing model (a clean main image; other backgrounds; other viewpoint and light; refined details), and keeps the
variants that CLIP finds consistent with the title. ``TextEnricher`` and ``ImageVariants`` are interfaces for these
two models. Our implementations need no weights: texts come from the item's fields by templates, pictures from image
processing with the product's mask, and the model in training takes the place of CLIP.

Shapes: N pictures, S picture side in pixels, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from torch.nn import functional as F

from encoder.backbone.packing import Sample
from encoder.content import TITLE, attribute_pairs
from encoder.examples.cleaning import CatalogueEntities, EntityFinder
from encoder.examples.warp import channels_first, channels_last, homographies, warped
from encoder.learner import Learner
from encoder.pictures.region import departures, unpadded
from encoder.tokenizer import tokenize

TOLERANCE = 0.05  # cosine with the title that a variant may lose against its original; not recovered
FACT_SHOWN = 0.7  # probability of including each fact besides the title
WORD_LOST = 0.1  # probability of dropping each word
GRAIN = 8  # cells across a textured background


class TextEnricher(Protocol):
    """Writes a richer title."""

    def enrich(self, record: Mapping[str, Any], rng: np.random.Generator) -> str:
        """T+ of an item, a row of ITEMS as Python values; empty when the item has no words."""
        ...


class ImageVariants(Protocol):
    """Makes other pictures of the same product."""

    def vary(self, pixels_NSS3: np.ndarray, titles: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """One variant of each picture, uint8 to float32 (N, S, S, 3), 0..255."""
        ...


class TemplateEnricher:
    """A random selection, in random order, of category, attributes and the description's entities, with the title.

    Args:
        finder: finds the entities in descriptions.
    """

    def __init__(self, finder: EntityFinder) -> None:
        self._finder = finder

    def enrich(self, record: Mapping[str, Any], rng: np.random.Generator) -> str:
        """T+ of an item: its title and most of its other facts, with some words dropped."""
        title = (record["title"] or "").strip()
        facts = [name for name in (record["category"] or [])[-2:] if name.strip()]
        for name, value in attribute_pairs(record):
            label = name.replace("_", " ")
            facts.append(f"{label}: {value}" if rng.random() < 0.5 else f"{value} {label}")
        named = self._finder.entities(record["description"] or "") - self._finder.entities(title)
        if named:
            facts.append("with " + ", ".join(sorted(named)))
        facts = [fact for fact in facts if rng.random() < FACT_SHOWN]
        facts = [facts[place] for place in rng.permutation(len(facts))]
        facts.insert(int(rng.integers(2)) * len(facts), title)  # first or last
        words = ", ".join(fact for fact in facts if fact).split()
        kept = [word for word in words if rng.random() >= WORD_LOST]
        return " ".join(kept or words)


class ProceduralVariants:
    """One of the paper's four edits per picture, with equal probability, by image processing; titles are ignored.

    - main: the product on white;
    - background: the product on a plain colour, a gradient or a soft texture;
    - view: rotation, scale, shear and perspective; gamma and colour temperature;
    - detail: an enlarged part.

    Products can only be separated from plain surroundings (``encoder.pictures.region.departures``): in clutter the
    picture keeps its background.
    """

    def vary(self, pixels_NSS3: np.ndarray, titles: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """One variant of each picture, uint8 to float32 (N, S, S, 3), 0..255."""
        out = np.empty(pixels_NSS3.shape, dtype=np.float32)
        edit = rng.integers(4, size=len(pixels_NSS3))
        main, background, view, detail = (np.flatnonzero(edit == kind) for kind in range(4))
        masked, moved = np.concatenate([main, background]), np.concatenate([view, detail])
        filled = _bars_filled(pixels_NSS3[masked])
        behind = np.full(filled.shape, 255, dtype=np.float32)
        behind[len(main) :] = backgrounds(len(background), pixels_NSS3.shape[1], rng)
        out[masked] = behind + product_opacity(filled)[..., None] * (filled - behind)
        maps = np.concatenate([_views(len(view), rng), _magnified(len(detail), rng)])
        out[moved] = channels_last(warped(channels_first(pixels_NSS3[moved]), maps))
        out[view] = _lit(out[view], rng)
        return out


def product_opacity(pixels_NSS3: np.ndarray) -> np.ndarray:
    """Opacity mask of the product, float32 (N, S, S), 0..1; 1 everywhere in cluttered pictures.

    Pixels with the surroundings' colour that have product on all four sides, such as white prints, count as product.
    """
    distance, limit, plain = departures(pixels_NSS3)
    opacity = distance / limit[:, None, None]
    opacity -= 1
    opacity.clip(0, 1, out=opacity)
    solid = np.ones_like(opacity)
    for here, there in zip(_turned(opacity), _turned(solid), strict=True):
        np.minimum(there, np.maximum.accumulate(here, axis=1), out=there)
    solid[~plain] = 1
    return solid


def _turned(planes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Views of (N, S, S) in which axis 1 starts at each of the four sides."""
    across = planes.swapaxes(1, 2)
    return planes, planes[:, ::-1], across, across[:, ::-1]


def backgrounds(count: int, px: int, rng: np.random.Generator) -> np.ndarray:
    """Plain colours, gradients and soft textures with equal probability: float32 (count, px, px, 3), 0..255."""
    kind = rng.integers(3, size=(count, 1, 1, 1))
    colour = rng.uniform(80, 255, size=(count, 1, 1, 3)).astype(np.float32)
    down, right = (rng.uniform(-50, 50, size=(2, count, 1, 1, 3)) * (kind == 1)).astype(np.float32)
    ramp = np.linspace(-1, 1, px, dtype=np.float32)[:, None]
    grain = (rng.normal(0, 30, size=(count, GRAIN, GRAIN, 3)) * (kind == 2)).astype(np.float32)
    texture = F.interpolate(channels_first(grain), size=(px, px), mode="bilinear", align_corners=False)
    out = channels_last(texture)
    out += (colour + ramp[:, None] * down) + ramp * right
    return out.clip(0, 255, out=out)


def consistent(
    variant_ND: np.ndarray, original_ND: np.ndarray, title_ND: np.ndarray, tolerance: float = TOLERANCE
) -> np.ndarray:
    """Which variants are about as similar to their title as the original pictures, according to a model.

    Args:
        variant_ND, original_ND, title_ND: vectors of any norm, compared by cosine.
        tolerance: how much lower a variant's cosine may be.

    Returns:
        bool (N).
    """
    variant, original, title = (
        x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (variant_ND, original_ND, title_ND)
    )
    return ((variant - original) * title).sum(1) >= -tolerance


class Coaugmented:
    """Adds an enriched title and a picture variant to samples of items, beside their own text and picture (§3.1).

    One variant per picture: the paper's n_c is not recovered. Variants of items without text are not filtered.

    Attributes:
        made, kept: number of variants so far, and of those that passed the filter.

    Args:
        learner: its corpus and tokenizer; its model is the filter.
        enricher, variants: ``TemplateEnricher`` and ``ProceduralVariants`` unless given.
    """

    def __init__(
        self, learner: Learner, enricher: TextEnricher | None = None, variants: ImageVariants | None = None
    ) -> None:
        self._learner = learner
        self._enricher = enricher or TemplateEnricher(CatalogueEntities(learner.corpus.records))
        self._variants = variants or ProceduralVariants()
        self.made = self.kept = 0

    def __call__(self, rows: np.ndarray, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        """The samples with an enriched title after their text and a variant after their pictures.

        Args:
            rows: int64, rows of the samples' items.
            samples: samples of complete items.
            rng: the only source of randomness.
        """
        learner, corpus = self._learner, self._learner.corpus
        texts = [self._enricher.enrich(corpus.records[row], rng) for row in rows.tolist()]
        titles = tokenize(learner.tokenizer, texts, learner.size.text_tokens)
        out = [
            replace(s, tokens=[*s.tokens, *more], kinds=[*(s.kinds or [TITLE] * len(s.tokens)), *[TITLE] * len(more)])
            for s, more in zip(samples, titles, strict=True)
        ]  # fmt: skip
        pictured = [place for place, sample in enumerate(samples) if sample.pictures]
        if not pictured:
            return out
        original = corpus.pixels[corpus.items.image[rows[pictured]]]
        varied = self._variants.vary(original, [texts[place] for place in pictured], rng)
        passed = self._consistent(varied, original, [corpus.items.tokens[row] for row in rows[pictured]])
        self.made, self.kept = self.made + len(passed), self.kept + int(passed.sum())
        for place, picture, yes in zip(pictured, varied, passed.tolist(), strict=True):
            if yes:
                out[place] = replace(out[place], pictures=(*out[place].pictures, picture))
        return out

    def _consistent(
        self, varied: np.ndarray, original: np.ndarray, words: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """``consistent`` under the current model; true without text."""
        known = [place for place, tokens in enumerate(words) if tokens]
        passed = np.ones(len(words), dtype=bool)
        if known:
            seen = [Sample([], (picture,)) for pictures in (varied, original) for picture in pictures[known]]
            read = [Sample(words[place]) for place in known]
            vectors = self._learner.model.vectors([*seen, *read]).cpu().numpy()
            variant, same, title = np.split(vectors, 3)
            passed[known] = consistent(variant, same, title)
        return passed


def _bars_filled(pixels: np.ndarray) -> np.ndarray:
    """The pictures with their white padding replaced by copies of the outermost rows or columns."""
    out = pixels.copy()
    for picture, (left, top, right, bottom) in zip(out, unpadded(pixels).tolist(), strict=True):
        picture[:, :left], picture[:, right:] = picture[:, left : left + 1], picture[:, right - 1 : right]
        picture[:top], picture[bottom:] = picture[top : top + 1], picture[bottom - 1 : bottom]
    return out


def _views(count: int, rng: np.random.Generator) -> np.ndarray:
    """Small changes of viewpoint, as maps from the new picture's coordinates to the old one's."""
    return homographies(
        turn=rng.uniform(-0.2, 0.2, size=count),
        side=rng.uniform(0.9, 1.2, size=(count, 2)),
        shear=rng.uniform(-0.15, 0.15, size=count),
        shift=rng.uniform(-0.08, 0.08, size=(count, 2)),
        tilt=rng.uniform(-0.15, 0.15, size=(count, 2)),
    )


def _magnified(count: int, rng: np.random.Generator) -> np.ndarray:
    """A crop with .45 to .75 of the side, near the middle of the picture, where products are."""
    side = rng.uniform(0.45, 0.75, size=(count, 1)).repeat(2, axis=1)
    shift = rng.uniform(-0.25, 0.25, size=(count, 2))
    return homographies(np.zeros(count), side, np.zeros(count), shift, np.zeros((count, 2)))


def _lit(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other light: gamma .6 to 1.6, colour temperature from bluish to reddish."""
    count = len(pixels)
    gamma = np.exp(rng.uniform(-0.5, 0.5, size=(count, 1, 1, 1))).astype(np.float32)
    warm = rng.uniform(-0.12, 0.12, size=count).astype(np.float32)
    gain = np.stack([1 + warm, np.ones_like(warm), 1 - warm], axis=1)[:, None, None]
    return (255 * (pixels / 255).clip(0, 1) ** gamma * gain).clip(0, 255)
