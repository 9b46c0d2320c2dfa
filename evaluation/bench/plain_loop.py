"""The baseline of the encoder's speed: a straightforward transformers loop over the same model.

Written as in the model's documentation: pictures are decoded and resized batch by batch, texts are padded to the
longest of the batch, the model computes mask and positions, and torch's AdamW optimises. It uses our patches (the
published image processor is slower) and torch's fused attention.

Shapes: B items of a batch, L padded length, D vector width.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedTokenizerBase

from encoder.backbone.vision import Vision
from encoder.tokenizer import IMAGE, VISION_END, VISION_START


class PlainModel(nn.Module):
    """The published model class, mean over tokens, a linear head.

    Args:
        config: the model's configuration.
        weights: the model's ``state_dict``.
        head: float (D, H).
        tokenizer: the model's tokenizer.
        vision: cuts pictures into patches.
        text_tokens: most tokens of a text.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        weights: Mapping[str, Tensor],
        head: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        vision: Vision,
        text_tokens: int,
    ) -> None:
        super().__init__()
        self.model: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
        self.model.load_state_dict(weights)
        self.head = nn.Linear(head.shape[1], head.shape[0], bias=False)
        with torch.no_grad():
            self.head.weight.copy_(head)
        self.tokenizer, self.vision, self.text_tokens = tokenizer, vision, text_tokens

    def decode(self, pictures: Sequence[bytes]) -> np.ndarray:
        """uint8 (B, S, S, 3)."""
        side = (self.vision.px, self.vision.px)
        return np.stack(
            [
                np.asarray(Image.open(io.BytesIO(one)).convert("RGB").resize(side, Image.Resampling.BICUBIC))
                for one in pictures
            ]
        )

    def forward(self, pixels: np.ndarray | None, texts: Sequence[str] | None) -> Tensor:
        """Vectors before normalisation (B, D) of pictures, texts, or pairs of both."""
        count = len(texts) if pixels is None else len(pixels)  # type: ignore[arg-type]
        prefix = "" if pixels is None else VISION_START + IMAGE * self.vision.tokens + VISION_END
        longest = self.text_tokens + (0 if pixels is None else self.vision.tokens + 2)
        batch = self.tokenizer(
            [prefix + text for text in (texts or [""] * count)],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]
        inputs: dict[str, Tensor] = {}
        if pixels is not None:
            grid = torch.tensor([[1, self.vision.grid, self.vision.grid]])
            inputs = {
                "pixel_values": self.vision.patchify(torch.from_numpy(pixels)),
                "image_grid_thw": grid.expand(count, 3),
                "mm_token_type_ids": (ids == self.model.config.image_token_id).int(),
            }
        base = self.model.base_model
        base.rope_deltas = None  # left over from the previous batch
        hidden = base(input_ids=ids, attention_mask=mask, use_cache=False, **inputs).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        return self.head((hidden * weight).sum(1) / weight.sum(1))
