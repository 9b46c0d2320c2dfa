"""The generative multimodal backbone: small from our own config, or loaded from a checkpoint folder.

Encoder artifacts are ordinary checkpoint folders: ``load_backbone`` reads them and published ones alike, of
Qwen-VL, InternVL and SmolVLM. FIRE reads Qwen's vision layers, so the latter two cannot have it.
Every picture is a square of the same side: patches and positions have one shape per length, computed once.

Shapes: B sequences, L tokens of a sequence, T packed tokens, N pictures, P patches, V image tokens, S image side in
pixels, H hidden width.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PretrainedConfig, Qwen3VLConfig
from transformers.utils.logging import disable_progress_bar

from encoder.backbone.attention import GROUPS, PICTURES
from encoder.backbone.checkpoints import PREPROCESSOR, BackboneError, image_markers, read_checkpoint
from encoder.backbone.fast_modules import use_fast_modules
from encoder.backbone.packing import Packed
from encoder.backbone.vision import Vision, WholeVision
from encoder.parts.experts import Routed
from encoder.parts.fire import Fire

__all__ = ["Backbone", "BackboneError", "build_backbone", "load_backbone", "small_config"]

# Devices on which matrix products are computed in bfloat16. Weights stay float32 everywhere, so that small updates
# are not rounded away; at 8 billion parameters that is 32 GB, of which adapters train a thousandth.
BFLOAT16_DEVICES = ("cuda",)

disable_progress_bar()  # it would print one bar per checkpoint


@dataclass(frozen=True)
class Seen:
    """Output of the vision side for the pictures of a batch.

    Attributes:
        tokens_VH: float, the embeddings of the image tokens.
        after: for each of the first language layers, float (V, H) to add to the image tokens after it (DeepStack).
        layers: output of each vision layer, float (P, vision width); empty unless FIRE needs them.
    """

    tokens_VH: Tensor
    after: Sequence[Tensor]
    layers: Sequence[Tensor]


@dataclass(frozen=True)
class Read:
    """Last hidden states of packed sequences, and how the mixtures of experts routed the tokens.

    Attributes:
        hidden_TH: float.
        routes: one for each layer with experts.
    """

    hidden_TH: Tensor
    routes: tuple[Routed, ...]


class Backbone(nn.Module):
    """A model run layer by layer, so that parts of the MOON papers can be inserted between its layers.

    Args:
        model: made by ``AutoModelForImageTextToText``.
        vision: how it turns pictures into tokens.

    Attributes:
        experts: language layer -> mixture of experts that replaces its feed-forward block.
        fire: fine-grained residual enhancement (MOON3.0 §4.1), or None.
    """

    def __init__(self, model: Any, vision: Vision | WholeVision) -> None:
        super().__init__()
        use_fast_modules(model)
        self.model = model
        self.vision = vision
        self.config: Any = model.config
        self.experts = nn.ModuleDict()
        self.fire: Fire | None = None
        self._language.config._attn_implementation = GROUPS
        if isinstance(vision, Vision):
            model.base_model.visual.config._attn_implementation = PICTURES

    @property
    def _language(self) -> Any:
        base = self.model.base_model
        return base.text_model if hasattr(base, "text_model") else base.language_model

    @property
    def rows_and_columns(self) -> bool:
        """Whether image tokens have row and column positions (M-RoPE) instead of one running position."""
        return isinstance(self.vision, Vision)

    @property
    def hidden_size(self) -> int:
        """Width H of the last hidden state."""
        return int(self.config.text_config.hidden_size)

    @property
    def vision_width(self) -> int:
        """Width of the hidden states of the vision layers."""
        config = self.config.vision_config
        return int(getattr(config, "embed_dim", config.hidden_size))

    @property
    def layers(self) -> nn.ModuleList:
        """The language layers."""
        return self._language.layers

    @property
    def image_prefix(self) -> list[int]:
        """Token ids that stand for one picture at the start of a sequence."""
        if isinstance(self.vision, Vision):
            before, after = [self.config.vision_start_token_id], [self.config.vision_end_token_id]
        else:
            before, after = list(self.vision.before), list(self.vision.after)
        return [*before, *[self.config.image_token_id] * self.vision.tokens, *after]

    def forward(self, packed: Packed) -> Read:
        """Last hidden states of packed sequences, float32 even where products are computed in bfloat16."""
        device = packed.ids_T.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device in BFLOAT16_DEVICES):
            x = self._language.embed_tokens(packed.ids_T)
            seen, places_V = None, None
            if packed.pixels_NSS3 is not None:
                seen = self.see(packed.pixels_NSS3)
                places_V = (packed.ids_T == self.config.image_token_id).nonzero()[:, 0]
                x = x.index_copy(0, places_V, seen.tokens_VH.to(x.dtype))
            rotary = self.rotary(packed.positions_3T[:, None])
            hidden, routes = self.run(x[None], rotary, packed.kinds_T, seen, places_V, groups=packed.groups)
        return Read(hidden.squeeze(0).float(), routes)

    def see(self, pixels_NSS3: Tensor) -> Seen:
        """Run the vision side.

        Args:
            pixels_NSS3: uint8 or float, 0..255.
        """
        if isinstance(self.vision, WholeVision):
            return self._see_whole(pixels_NSS3, self.vision)
        visual, layers = self.model.base_model.visual, []
        grid = torch.tensor([[1, self.vision.grid, self.vision.grid]], device=pixels_NSS3.device)
        hooks = []
        if self.fire is not None:
            hooks = [b.register_forward_hook(lambda m, i, out: layers.append(out)) for b in visual.blocks]
        patches = self.vision.patchify(pixels_NSS3).to(visual.dtype)
        tables = self.vision.tables(visual, len(pixels_NSS3), pixels_NSS3.device)
        out = visual(patches, grid_thw=grid.expand(len(pixels_NSS3), 3), return_dict=True, **tables)
        for hook in hooks:
            hook.remove()
        tokens = out.pooler_output
        if self.fire is not None:
            tokens = tokens + self.fire.embeddings(layers)
        return Seen(tokens, getattr(out, "deepstack_features", None) or (), layers)

    def _see_whole(self, pixels_NSS3: Tensor, vision: WholeVision) -> Seen:
        whole = vision.normalise(pixels_NSS3)
        if self.config.model_type == "smolvlm":
            whole = whole[:, None]  # it expects a list of pictures per sequence
        out = self.model.base_model.get_image_features(whole, return_dict=True)
        return Seen(torch.cat(list(out.pooler_output)), (), ())

    def rotary(self, positions_3BL: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B, L, head width) of rotary positions."""
        known = positions_3BL if self.rows_and_columns else positions_3BL[0]
        return self._language.rotary_emb(self._language.norm.weight, known)

    def run(
        self,
        x_BLH: Tensor,
        rotary: tuple[Tensor, Tensor],
        kinds_T: Tensor,
        seen: Seen | None,
        places_V: Tensor | None,
        **attention: Any,
    ) -> tuple[Tensor, tuple[Routed, ...]]:
        """Run the language layers with experts and FIRE; without either, equal to the model's own loop.

        Args:
            x_BLH: token embeddings; packed sequences are (1, T, H).
            rotary: cosine and sine of the tokens' positions.
            kinds_T: int64 (B * L), for guided experts.
            seen: output of the vision side; None without pictures.
            places_V: int64, which tokens (of B * L) are image tokens; None without ``seen``.
            attention: what the attention function needs: groups, or a mask and a cache.

        Returns:
            last hidden states (B, L, H), and one ``Routed`` for each layer with experts.
        """
        routes: list[Routed] = []
        early = {-1: x_BLH}
        x = x_BLH
        attention.setdefault("attention_mask", None)
        layer: Any
        for number, layer in enumerate(self.layers):
            if self.fire is not None and number in self.fire.carry_from:
                x = x + self.fire.skip(number, early[self.fire.carry_from[number]])
            attended = layer.self_attn(
                hidden_states=layer.input_layernorm(x), position_embeddings=rotary, **attention
            )[0]
            x = x + attended
            normed = layer.post_attention_layernorm(x)
            if str(number) in self.experts:
                routed = self.experts[str(number)](normed.flatten(0, -2), kinds_T)
                routes.append(routed)
                x = x + routed.hidden_TH.view_as(x)
            else:
                x = x + layer.mlp(normed)
            if seen is not None and places_V is not None:
                added = [seen.after[number]] if number < len(seen.after) else []
                if self.fire is not None and (more := self.fire.after(number, seen.layers)) is not None:
                    added.append(more)
                for residual in added:
                    x = x.flatten(0, -2).index_add(0, places_V, residual.to(x.dtype)).view_as(x)
            if self.fire is not None:
                early[number] = x
        return self._language.norm(x), tuple(routes)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., vocabulary) of hidden states (..., H)."""
        return self.model.get_output_embeddings()(hidden)

    def save(self, folder: Path) -> None:
        """Write an ordinary Hugging Face checkpoint folder, which ``load_backbone`` reads."""
        self.model.save_pretrained(folder)
        vision = self.vision
        settings: dict[str, Any] = {"image_mean": list(vision.mean), "image_std": list(vision.std)}
        if isinstance(vision, Vision):
            settings |= {
                "patch_size": vision.patch,
                "temporal_patch_size": vision.temporal,
                "merge_size": vision.merge,
            }
        (folder / PREPROCESSOR).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def small_config(
    hidden: int, layers: int, px: int, vocabulary: int, special: dict[str, int]
) -> Qwen3VLConfig:
    """A small Qwen3-VL configuration: patches are a quarter of the picture's side, at most 16 pixels.

    Args:
        hidden: width of both sides, a multiple of 32 (the head width).
        layers: number of vision layers, and of language layers.
        px: side of a picture in pixels.
        vocabulary: tokenizer size.
        special: token ids of image, vision_start, vision_end and pad.
    """
    heads, patch = hidden // 32, min(16, px // 4)
    vision = {
        "depth": layers, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_heads": heads,
        "patch_size": patch, "temporal_patch_size": 1, "spatial_merge_size": 2, "out_hidden_size": hidden,
        "num_position_embeddings": (px // patch) ** 2, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    text = {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "head_dim": 32, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5]},
        "pad_token_id": special["pad"], "tie_word_embeddings": True,
    }  # fmt: skip
    return Qwen3VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=special["image"],
        video_token_id=special["image"],
        vision_start_token_id=special["vision_start"],
        vision_end_token_id=special["vision_end"],
        tie_word_embeddings=True,
    )


def build_backbone(config: PretrainedConfig, px: int, seed: int) -> Backbone:
    """A freshly initialised backbone for square pictures of ``px`` pixels; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(
            copy.deepcopy(config)
        )  # from_config changes its argument
    half = (0.5, 0.5, 0.5)
    return Backbone(model, _vision(config, px, half, half))


def load_backbone(folder: Path, px: int) -> Backbone:
    """Load a checkpoint folder: a published one, or one of our encoder artifacts.

    Args:
        folder: with ``config.json``, ``*.safetensors`` and ``preprocessor_config.json``.
        px: side of a picture in pixels, rounded up to a multiple of the side that one image token covers.

    Raises:
        BackboneError: the folder is not a complete checkpoint of a known family, see ``read_checkpoint``.
    """
    model, settings = read_checkpoint(folder)
    mean, std = tuple(settings["image_mean"]), tuple(settings["image_std"])
    config = model.config
    if config.model_type == "internvl":
        cell = round(config.vision_config.patch_size[0] / config.downsample_ratio)
    elif config.model_type == "smolvlm":
        cell = config.vision_config.patch_size * config.scale_factor
    else:
        return Backbone(model, _vision(config, px, mean, std))
    before, after = image_markers(folder, config.model_type)
    return Backbone(model, WholeVision(int(np.ceil(px / cell)) * cell, cell, mean, std, before, after))


def _vision(config: Any, px: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Vision:
    vision = config.vision_config
    block = vision.patch_size * vision.spatial_merge_size
    return Vision(
        px=int(np.ceil(px / block)) * block,
        patch=vision.patch_size,
        temporal=vision.temporal_patch_size,
        merge=vision.spatial_merge_size,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )
