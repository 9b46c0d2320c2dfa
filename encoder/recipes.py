"""The papers as recipes: each function returns one complete encoder, and reading it tells what the paper is.

A variation is a line: ``replace(moon2(), parts=replace(moon2().parts, experts="none"))``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from encoder.assemble import Parts
from encoder.learner import Stage
from encoder.stages.align import Align
from encoder.stages.contrast import BOUGHT, NINE_KINDS, OWN, PART, QUERY, THREE_QUERIES, Contrast
from encoder.stages.photos import Photos
from encoder.stages.pretrain import Pretrain
from encoder.stages.reason import Reason, Reinforce


class RecipeError(ValueError):
    """A recipe nobody knows."""


@dataclass(frozen=True)
class Recipe:
    """One encoder: what it is made of and how it learns.

    Attributes:
        name: under which it is compared.
        parts: what stands between the backbone's layers and behind them.
        stages: in order; each takes its share of the training budget.
    """

    name: str
    parts: Parts
    stages: tuple[Stage, ...]


def moon_embedding() -> Recipe:
    """MOON Embedding (2511.11305): a plain multimodal model, questions, then two rounds of contrast (§1)."""
    return Recipe(
        "moon_embedding",
        Parts(),
        (
            Pretrain(share=0.1),
            Contrast(share=0.6, kinds=NINE_KINDS, name="round1"),
            Contrast(
                share=0.3,
                kinds=NINE_KINDS,
                loss="circle",
                purchases=True,
                cleaned=True,
                hard=True,
                queue=4096,
                name="round2",
            ),
        ),
    )


def moon() -> Recipe:
    """MOON (2508.11999): the product's region beside its picture, guided experts, more negatives (§2)."""
    return Recipe(
        "moon",
        Parts(region=True, experts="guided"),
        (Contrast(share=1.0, kinds=THREE_QUERIES, purchases=True, hard=True, queue=4096),),
    )


def moon2() -> Recipe:
    """MOON2.0 (2511.12449): experts by modality, alignment between and within products, augmentation (§3)."""
    return Recipe(
        "moon2",
        Parts(experts="modality"),
        (Align(share=1.0, intra=True, augmented=True, filtered=True),),
    )


def moon3() -> Recipe:
    """MOON3.0 (2604.00513): attributes written down before embedding, fused modalities, FIRE, then RL (§4)."""
    return Recipe(
        "moon3",
        Parts(fire=True, fusion=True, chain=True),
        (Reason(share=0.8), Reinforce(share=0.2, told=1.0)),
    )


def dual() -> Recipe:
    """A CLIP-style baseline (2103.00020): two towers, a picture chooses its words and words their picture."""
    return Recipe("dual", Parts(dual=True), (Contrast(share=1.0, kinds=(OWN,)),))


def ours() -> Recipe:
    """The recipe that measured best at the small size (docs/log/encoder_papers.md#recipes-at-equal-compute).

    It first learns from an item's picture and words and from queries, then from what users took together.

    What users took together pulls together what tells two items apart, so it comes last, gently, and among more
    of what came before.
    """
    return Recipe(
        "ours",
        Parts(),
        (
            Contrast(share=0.7, kinds=(OWN, QUERY), name="halves"),
            Contrast(share=0.3, kinds=(OWN, PART, QUERY, BOUGHT), rate=0.3, name="relations"),
        ),
    )


def photos() -> Recipe:
    """For photo search in a catalogue of few products with many photos of each
    (docs/log/encoder.md#photo-to-product-on-grocery-store).
    """
    return Recipe("photos", Parts(), (Photos(share=1.0),))


# Every recipe by name. A new one is a function like those above, and a line here.
RECIPES: dict[str, Callable[[], Recipe]] = {
    "moon_embedding": moon_embedding,
    "moon": moon,
    "moon2": moon2,
    "moon3": moon3,
    "dual": dual,
    "ours": ours,
    "photos": photos,
}


def recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        RecipeError: unknown name, listing the known ones.
    """
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()
