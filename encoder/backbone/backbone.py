"""The generative multimodal backbone: small from our own config, or loaded from a checkpoint folder.

Encoder artifacts are ordinary checkpoint folders: ``load_backbone`` reads them and published ones alike, of
Qwen-VL, and of InternVL and SmolVLM without what leans on Qwen's vision layers (FIRE).
Every picture is a square of the same side: patches and positions have one shape per length, computed once.

Shapes: B sequences, T packed tokens, N pictures, V image tokens, S image side in pixels, H hidden width.
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
from encoder.backbone.fast_modules import quicken
from encoder.backbone.packing import Packed
from encoder.backbone.vision import Vision, WholeVision
from encoder.parts.experts import Routed
from encoder.parts.fire import Fire

__all__ = ["Backbone", "BackboneError", "build_backbone", "load_backbone", "small_config"]

# Where products are computed in bfloat16. Weights stay float32 everywhere, so that what is learned in small steps
# is not rounded away; at 8 billion parameters that is 32 GB, of which adapters train a thousandth part.
ROUNDED = ("cuda",)

disable_progress_bar()  # a bar per save would be one per checkpoint


@dataclass(frozen=True)
class Seen:
    """What the vision side makes of the pictures of a batch.

    Attributes:
        tokens: float (V, H), the embeddings of the image tokens.
        after: float (V, H) by language layer, added to the image tokens behind it (DeepStack).
        layers: float (patches, vision width) of each vision layer; empty unless FIRE asks for them.
    """

    tokens: Tensor
    after: Sequence[Tensor]
    layers: Sequence[Tensor]


@dataclass(frozen=True)
class Read:
    """Last hidden states of packed sequences, and where experts sent the tokens.

    Attributes:
        hidden_TH: float.
        routes: one per layer with experts.
    """

    hidden_TH: Tensor
    routes: tuple[Routed, ...]


class Backbone(nn.Module):
    """A model run layer by layer, so that parts of the MOON papers can stand between its own.

    Args:
        model: what ``AutoModelForImageTextToText`` made.
        vision: how it sees pictures.

    Attributes:
        experts: mixtures of experts by language layer, in place of its feed-forward block.
        fire: fine-grained residual enhancement (MOON3.0 §4.1), or None.
    """

    def __init__(self, model: Any, vision: Vision | WholeVision) -> None:
        super().__init__()
        quicken(model)
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
        """Whether image tokens have positions by row and column (M-RoPE), or by order like words."""
        return isinstance(self.vision, Vision)

    @property
    def hidden_size(self) -> int:
        """Width H of the last hidden state."""
        return int(self.config.text_config.hidden_size)

    @property
    def vision_width(self) -> int:
        """Width of the vision side's hidden states."""
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
        """Last hidden states of packed sequences, float32 whatever the arithmetic."""
        device = packed.ids.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device in ROUNDED):
            x = self._language.embed_tokens(packed.ids)
            seen, places = None, None
            if packed.pixels is not None:
                seen = self.see(packed.pixels)
                places = (packed.ids == self.config.image_token_id).nonzero()[:, 0]
                x = x.index_copy(0, places, seen.tokens.to(x.dtype))
            rotary = self.rotary(packed.positions[:, None])
            hidden, routes = self.run(x[None], rotary, packed.kinds, seen, places, groups=packed.groups)
        return Read(hidden.squeeze(0).float(), routes)

    def see(self, pixels: Tensor) -> Seen:
        """Run the vision side.

        Args:
            pixels: uint8 or float (N, S, S, 3), 0..255.
        """
        if isinstance(self.vision, WholeVision):
            return self._see_whole(pixels, self.vision)
        visual, layers = self.model.base_model.visual, []
        grid = torch.tensor([[1, self.vision.grid, self.vision.grid]], device=pixels.device)
        hooks = []
        if self.fire is not None:
            hooks = [b.register_forward_hook(lambda m, i, out: layers.append(out)) for b in visual.blocks]
        patches = self.vision.patchify(pixels).to(visual.dtype)
        tables = self.vision.tables(visual, len(pixels), pixels.device)
        out = visual(patches, grid_thw=grid.expand(len(pixels), 3), return_dict=True, **tables)
        for hook in hooks:
            hook.remove()
        tokens = out.pooler_output
        if self.fire is not None:
            tokens = tokens + self.fire.embeddings(layers)
        return Seen(tokens, getattr(out, "deepstack_features", None) or (), layers)

    def _see_whole(self, pixels: Tensor, vision: WholeVision) -> Seen:
        whole = vision.normalise(pixels)
        if self.config.model_type == "smolvlm":
            whole = whole[:, None]  # it takes several pictures of each of its sequences
        out = self.model.base_model.get_image_features(whole, return_dict=True)
        return Seen(torch.cat(list(out.pooler_output)), (), ())

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (b, L, width) of rotary positions (3, b, L)."""
        known = positions if self.rows_and_columns else positions[0]
        return self._language.rotary_emb(self._language.norm.weight, known)

    def run(
        self,
        x_bLH: Tensor,
        rotary: tuple[Tensor, Tensor],
        kinds: Tensor,
        seen: Seen | None,
        places: Tensor | None,
        **attention: Any,
    ) -> tuple[Tensor, tuple[Routed, ...]]:
        """The language layers, ours between theirs; equal to the model's own loop where there are none.

        Args:
            x_bLH: token embeddings; packed sequences have b = 1.
            rotary: of the tokens' positions.
            kinds: int64 (b * L), for guided experts.
            seen: what the vision side made of the pictures; None without any.
            places: int64 (V), which tokens (of b * L) are image tokens; None without ``seen``.
            attention: what the attention function needs: groups, or a mask and a cache.

        Returns:
            last hidden states (b, L, H), and one ``Routed`` per layer with experts.
        """
        routes: list[Routed] = []
        early = {-1: x_bLH}
        x = x_bLH
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
                routed = self.experts[str(number)](normed.flatten(0, -2), kinds)
                routes.append(routed)
                x = x + routed.hidden_TH.view_as(x)
            else:
                x = x + layer.mlp(normed)
            if seen is not None and places is not None:
                added = [seen.after[number]] if number < len(seen.after) else []
                if self.fire is not None and (more := self.fire.after(number, seen.layers)) is not None:
                    added.append(more)
                for residual in added:
                    x = x.flatten(0, -2).index_add(0, places, residual.to(x.dtype)).view_as(x)
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
    """A Qwen3-VL configuration at our size: patches a quarter of the picture, at most 16 pixels.

    Args:
        hidden: width of both sides, a multiple of 32 (the head width).
        layers: depth of the vision and of the language side.
        px: side of a picture in pixels.
        vocabulary: tokenizer size.
        special: token ids named image, vision_start, vision_end, pad.
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
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(config))  # it is written to
    half = (0.5, 0.5, 0.5)
    return Backbone(model, _vision(config, px, half, half))


def load_backbone(folder: Path, px: int) -> Backbone:
    """Load a checkpoint folder: a published one, or one of our encoder artifacts.

    Args:
        folder: with ``config.json``, ``*.safetensors`` and ``preprocessor_config.json``.
        px: wanted side of a picture; rounded up to a multiple of what one of the checkpoint's tokens covers.

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
