"""Build one model from a backbone and the parts of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from encoder.backbone.backbone import Backbone, BackboneError
from encoder.backbone.vision import Vision
from encoder.model import EncoderModel
from encoder.parts.discriminants import COUNT, Discriminants
from encoder.parts.experts import GuidedExperts, ModalityExperts
from encoder.parts.fire import Fire
from encoder.parts.fusion import ModalityFusion
from encoder.parts.wide import Wide


@dataclass(frozen=True)
class Parts:
    """What a recipe adds to the backbone.

    Attributes:
        region: also encode the core region of each picture (MOON §2.1).
        experts: mixtures of experts in every second language layer, counted back from the last; guided
            (MOON §2.1) or modality-driven (MOON2.0 §3.2). The papers do not say in which layers.
        fire: fine-grained residual enhancement (MOON3.0 §4.1).
        fusion: multi-head modality fusion instead of the mean over tokens (MOON3.0 §4.1).
        chain: the model generates an attribute chain before it embeds (MOON3.0 §4.1).
        dual: two towers instead of one model: the baseline.
        wide: add a linear path from words and looks to the vector, which keeps what the rest forgets.
        discriminants: keep what tells pictures apart in numbers of its own, after those of the others; beside a wide
            path.
        towers: heads on two pretrained towers, with a fixed path, instead of one model.
    """

    region: bool = False
    experts: Literal["none", "guided", "modality"] = "none"
    fire: bool = False
    fusion: bool = False
    chain: bool = False
    dual: bool = False
    wide: bool = False
    discriminants: bool = False
    towers: bool = False


def assemble(backbone: Backbone, parts: Parts, width: int, seed: int) -> EncoderModel:
    """Add the parts to the backbone; equal seeds give equal weights.

    Args:
        backbone: experts and FIRE are inserted between its layers.
        parts: which parts the recipe has.
        width: of the vectors without the discriminants.
        seed: initialises the new weights.

    Raises:
        BackboneError: FIRE was asked for with a model family whose vision layers it cannot read.
    """
    hidden = backbone.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if parts.experts != "none":
            mixture = GuidedExperts if parts.experts == "guided" else ModalityExperts
            for number in range(len(backbone.layers) - 1, -1, -2):
                layer: Any = backbone.layers[number]
                backbone.experts[str(number)] = mixture(layer.mlp, hidden)
                # Replaced by the experts, but kept so that the checkpoint folder is complete.
                layer.mlp.requires_grad_(False)
        if parts.fire:
            if not isinstance(backbone.vision, Vision):
                raise BackboneError(
                    f"FIRE reads the vision layers of Qwen-VL, found {backbone.config.model_type}: leave it out."
                )
            vision = backbone.config.vision_config
            backbone.fire = Fire(
                vision_hidden=backbone.vision_width,
                hidden=hidden,
                merge=backbone.vision.merge,
                vision_layers=vision.depth,
                layers=len(backbone.layers),
            )
        fusion = ModalityFusion(hidden, width) if parts.fusion else None
        wide = Wide(backbone.config.text_config.vocab_size, width) if parts.wide else None
        apart = Discriminants(backbone.vision.px, width) if parts.discriminants else None
        return EncoderModel(backbone, width + COUNT if apart else width, fusion, wide, apart)
