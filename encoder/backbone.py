"""The generative multimodal backbone: a Qwen-VL model, small from our own config or loaded from a folder.

Encoder artifacts are ordinary checkpoint folders: ``load_backbone`` reads them and published ones alike.
Every picture is a square of the same side: patches and positions have one shape per length, computed once.

Shapes: B sequences, L tokens, N images, S image side in pixels, H hidden width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForImageTextToText,
    PretrainedConfig,
    Qwen3VLConfig,
)
from transformers.utils.logging import disable_progress_bar

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
PREPROCESSOR = "preprocessor_config.json"
EQUAL_LENGTHS = "flash_equal_lengths"  # the word "flash" is how transformers knows to hand over whole batches


class BackboneError(ValueError):
    """A checkpoint folder cannot be used: what was expected, what was found, what to do."""


@dataclass(frozen=True)
class Vision:
    """How a square picture becomes tokens.

    Attributes:
        px: side of the picture in pixels, a multiple of ``patch * merge``.
        patch, temporal, merge: patch side, frames per patch, and patches merged per side into one token.
        mean, std: per-channel normalisation of pixels in [0, 1].
    """

    px: int
    patch: int
    temporal: int
    merge: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.px // self.patch

    @property
    def tokens(self) -> int:
        """Image tokens one picture takes in a sequence."""
        return (self.grid // self.merge) ** 2

    def patchify(self, pixels: Tensor) -> Tensor:
        """Cut pictures into patches in Qwen's order: merge blocks row by row, patches likewise in a block.

        Args:
            pixels: uint8 (N, S, S, 3), or float in the same 0..255 range.

        Returns:
            float32 (N * grid * grid, 3 * temporal * patch * patch), normalised.
        """
        count, blocks = len(pixels), self.grid // self.merge
        mean = torch.tensor(self.mean, device=pixels.device) * 255
        std = torch.tensor(self.std, device=pixels.device) * 255
        normal = (pixels.float() - mean) / std
        cut = normal.view(count, blocks, self.merge, self.patch, blocks, self.merge, self.patch, 3)
        patches = cut.permute(0, 1, 4, 2, 5, 7, 3, 6).unsqueeze(
            6
        )  # N, rows, columns, m, m, channel, 1, patch, patch
        repeated = patches.expand(*patches.shape[:6], self.temporal, self.patch, self.patch)
        return repeated.reshape(count * self.grid**2, -1)


@lru_cache(maxsize=256)
def token_positions(length: int, image_tokens: int) -> Tensor:
    """Temporal, row and column position of each token of a sequence that starts with a picture, or none.

    Args:
        length: tokens in the sequence.
        image_tokens: tokens of the picture, which follow a single start token; 0 for text alone.

    Returns:
        int64 (3, length). After a picture, text goes on from its largest coordinate plus one (M-RoPE).
    """
    if not image_tokens:
        return torch.arange(length).expand(3, length)
    side = round(image_tokens**0.5)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    picture = 1 + torch.stack([torch.zeros(image_tokens, dtype=torch.int64), row.flatten(), column.flatten()])
    rest = torch.arange(max(length - 1 - image_tokens, 0)) + 1 + side
    whole = torch.cat([torch.zeros(3, 1, dtype=torch.int64), picture, rest.expand(3, -1)], dim=1)
    return whole[:, :length]


def _equal_length_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each of many packed pictures (1, heads, tokens, width), in one kernel call.

    The model's own fallback calls the kernel once per picture: 14 % of a training step at size small.
    """
    ends = kwargs["cu_seq_lens_q"].tolist()
    lengths = {stop - start for start, stop in zip(ends, ends[1:], strict=False)}
    if len(lengths) == 1:
        length = lengths.pop()
        split = [x[0].unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key, value)]
        out = nn.functional.scaled_dot_product_attention(
            split[0], split[1], split[2], scale=scaling
        )  # pictures, heads, length, width
        return out.transpose(1, 2).flatten(0, 1).unsqueeze(0), None
    parts = [
        nn.functional.scaled_dot_product_attention(
            query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop], scale=scaling
        ).transpose(1, 2)
        for start, stop in zip(ends, ends[1:], strict=False)
    ]
    return torch.cat(parts, dim=1), None


AttentionInterface.register(EQUAL_LENGTHS, _equal_length_attention)
disable_progress_bar()  # a bar per save would be one per checkpoint


class Backbone(nn.Module):
    """A Qwen-VL model with a causal and a bidirectional reading of the same weights.

    Args:
        model: what ``AutoModelForImageTextToText`` made.
        vision: how its pictures are cut.
    """

    def __init__(self, model: Any, vision: Vision) -> None:
        super().__init__()
        self.model = model
        self.vision = vision
        self.config: Any = model.config
        model.base_model.visual.config._attn_implementation = EQUAL_LENGTHS

    @property
    def hidden_size(self) -> int:
        """Width H of the last hidden state."""
        return int(self.config.text_config.hidden_size)

    @property
    def image_prefix(self) -> list[int]:
        """Token ids that stand for one picture at the start of a sequence."""
        start, end = self.config.vision_start_token_id, self.config.vision_end_token_id
        return [start, *[self.config.image_token_id] * self.vision.tokens, end]

    def forward(self, ids: Tensor, mask: Tensor, pixels: Tensor | None, bidirectional: bool) -> Tensor:
        """Last hidden states.

        Args:
            ids: int64 (B, L), right-padded; a sequence with a picture starts with ``image_prefix``.
            mask: bool (B, L), true on real tokens.
            pixels: uint8 or float (N, S, S, 3), 0..255, of the sequences with a picture, in order; or None.
            bidirectional: whether every token sees the whole sequence (MOON Embedding §1.4) or only its past.

        Returns:
            float (B, L, H); rows under padding are meaningless.
        """
        length = ids.shape[1]
        pictured = ids[:, 0] == self.config.vision_start_token_id
        text, picture = (token_positions(length, n).to(ids.device) for n in (0, self.vision.tokens))
        positions = torch.where(pictured[None, :, None], picture[:, None], text[:, None])
        attention = mask[:, None, None, :].expand(-1, 1, length, -1)
        if not bidirectional:
            attention = attention & torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        inputs: dict[str, Any] = {}
        if pixels is not None and len(pixels):
            grid = torch.tensor([[1, self.vision.grid, self.vision.grid]], device=ids.device)
            inputs = {
                "pixel_values": self.vision.patchify(pixels),
                "image_grid_thw": grid.expand(len(pixels), 3),
            }
        # A prepared 4-D mask is used as it is by every family; switches on the config are private to each.
        out = self.model.base_model(
            input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False, **inputs
        )
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., vocabulary) of hidden states (..., H)."""
        return self.model.get_output_embeddings()(hidden)

    def save(self, folder: Path) -> None:
        """Write an ordinary Hugging Face checkpoint folder, which ``load_backbone`` reads."""
        self.model.save_pretrained(folder)
        vision = self.vision
        settings = {
            "patch_size": vision.patch,
            "temporal_patch_size": vision.temporal,
            "merge_size": vision.merge,
            "image_mean": list(vision.mean),
            "image_std": list(vision.std),
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
        model = AutoModelForImageTextToText.from_config(config)
    half = (0.5, 0.5, 0.5)
    return Backbone(model, _vision(config, px, half, half))


def load_backbone(folder: Path, px: int) -> Backbone:
    """Load a Qwen-VL checkpoint folder: a published one, or one of our encoder artifacts.

    Args:
        folder: with ``config.json``, ``*.safetensors`` and ``preprocessor_config.json``.
        px: wanted side of a picture; rounded up to a multiple of the checkpoint's ``patch * merge``.

    Raises:
        BackboneError: a file is missing, another model family, or tensors missing from the weights.
    """
    folder = Path(folder)
    for name in ("config.json", PREPROCESSOR):
        if not (folder / name).is_file():
            raise BackboneError(
                f"{folder}: expected a Hugging Face checkpoint of {', '.join(FAMILIES)}, found no {name}. "
                "Give the folder that 'save_pretrained' wrote, processor included."
            )
    family = json.loads((folder / "config.json").read_text()).get("model_type")
    if family not in FAMILIES:
        raise BackboneError(f"{folder}: expected a model of {', '.join(FAMILIES)}, found {family!r}.")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise BackboneError(f"{folder}: the weights do not load into a {family} model: {error}") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise BackboneError(
            f"{folder}: {len(missing)} tensors missing from the weights, first {missing[:3]}. "
            "They would be random: download or export the checkpoint again."
        )
    settings = json.loads((folder / PREPROCESSOR).read_text())
    return Backbone(model, _vision(config, px, tuple(settings["image_mean"]), tuple(settings["image_std"])))


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
