"""A backbone and the parts of a recipe become one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from encoder.backbone.backbone import Backbone, BackboneError
from encoder.backbone.vision import Vision
from encoder.model import EncoderModel
from encoder.parts.experts import GuidedExperts, ModalityExperts
from encoder.parts.fire import Fire
from encoder.parts.fusion import ModalityFusion


@dataclass(frozen=True)
class Parts:
    """What a recipe puts around the backbone.

    Attributes:
        region: the core region of a picture is read beside the picture (MOON §2.1).
        experts: mixtures of experts in every second language layer, the last one among them; guided
            (MOON §2.1) or by modality (MOON2.0 §3.2). Which layers is not recovered.
        fire: fine-grained residual enhancement (MOON3.0 §4.1).
        fusion: multi-head modality fusion instead of the mean over tokens (MOON3.0 §4.1).
        chain: the model writes the attributes down before it embeds (MOON3.0 §4.1).
        dual: two towers instead of one model: the baseline.
    """

    region: bool = False
    experts: Literal["none", "guided", "modality"] = "none"
    fire: bool = False
    fusion: bool = False
    chain: bool = False
    dual: bool = False


def assemble(backbone: Backbone, parts: Parts, width: int, seed: int) -> EncoderModel:
    """Put the parts where they belong; equal seeds give equal weights.

    Args:
        backbone: gets experts and FIRE between its layers.
        parts: of the recipe.
        width: D of the vectors.
        seed: of the new weights.

    Raises:
        BackboneError: FIRE with a family whose vision layers it cannot read.
    """
    hidden = backbone.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if parts.experts != "none":
            mixture = GuidedExperts if parts.experts == "guided" else ModalityExperts
            for number in range(len(backbone.layers) - 1, -1, -2):
                layer: Any = backbone.layers[number]
                backbone.experts[str(number)] = mixture(layer.mlp, hidden)
                layer.mlp.requires_grad_(
                    False
                )  # experts stand in its place; it stays in the checkpoint folder
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
        return EncoderModel(backbone, width, fusion)
