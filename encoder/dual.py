"""The baseline for every recipe: a CLIP-style dual encoder (2103.00020).

A picture tower and a text tower that never see each other's input. The vector of an item with both is the sum of the
two unit vectors. With its depth and width it has about as many parameters as our multimodal model of the same size.

Shapes: B samples, D vector width, L tokens of the longest text, S picture side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from encoder.backbone.packing import Sample
from encoder.model import Encoded, EncoderModel
from run.sizes import Size

MORE_LAYERS = 3  # more per tower than the multimodal model has: about as many parameters as its patch mergers


class DualModel(EncoderModel):
    """Two towers with the interface of ``EncoderModel``.

    Args:
        size: width, depth and lengths.
        vocabulary: size of the tokenizer's vocabulary.
        end: id of the token that ends a text; the text's vector is the hidden state of this token, as in CLIP.
    """

    def __init__(self, size: Size, vocabulary: int, end: int) -> None:
        nn.Module.__init__(self)
        self.wide = None
        self.discriminants = None
        shape: dict[str, Any] = {
            "hidden_size": size.hidden,
            "intermediate_size": 2 * size.hidden,
            "num_hidden_layers": size.layers + MORE_LAYERS,
            "num_attention_heads": size.hidden // 32,
        }
        tokens: dict[str, Any] = {"vocab_size": vocabulary, "max_position_embeddings": size.text_tokens + 1}
        markers: dict[str, Any] = {"eos_token_id": end, "bos_token_id": end, "pad_token_id": end}
        self.words: nn.Module = CLIPTextModel(CLIPTextConfig(**shape, **tokens, **markers))
        self.picture: nn.Module = CLIPVisionModel(
            CLIPVisionConfig(**shape, image_size=size.image_px, patch_size=min(16, size.image_px // 4))
        )
        self.heads = nn.ModuleList(nn.Linear(size.hidden, size.item_width, bias=False) for _ in range(2))
        self.width = size.item_width
        self.side = size.image_px
        self.end = end

    @property
    def px(self) -> int:
        """Side of its pictures in pixels."""
        return self.side

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, samples: Sequence[Sample]) -> Encoded:
        """Vectors of samples, none of them empty."""
        with_text = [row for row, s in enumerate(samples) if s.tokens]
        with_image = [row for row, s in enumerate(samples) if s.pictures]
        total_BD = torch.zeros(len(samples), self.width, device=self.device)
        if with_text:
            unit = F.normalize(self.read([samples[row].tokens for row in with_text]), dim=-1)
            total_BD = total_BD.index_add(0, torch.tensor(with_text, device=self.device), unit)
        if with_image:
            pixels = torch.from_numpy(np.stack([samples[row].pictures[0] for row in with_image]))
            unit = F.normalize(self.see(pixels.to(self.device)), dim=-1)
            total_BD = total_BD.index_add(0, torch.tensor(with_image, device=self.device), unit)
        return Encoded(total_BD)

    def vectors(self, samples: Sequence[Sample], batch: int = 256) -> Tensor:
        """Vectors of any number of samples, without gradients: float (B, D)."""
        with torch.no_grad():
            parts = [self(samples[at : at + batch]).vector_BD for at in range(0, len(samples), batch)]
        return torch.cat(parts)

    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Text vectors (B, D) of token ids, padded to the longest."""
        length = max(len(text) for text in texts) + 1
        ids = np.full((len(texts), length), self.end, dtype=np.int64)
        mask = np.zeros((len(texts), length), dtype=np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text) + 1] = 1
        out = self.words(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(mask).to(self.device),
        )
        last = torch.tensor([len(text) for text in texts], device=self.device)
        return self.heads[0](out.last_hidden_state[torch.arange(len(texts), device=self.device), last])

    def see(self, pixels_BSS3: Tensor) -> Tensor:
        """Picture vectors (B, D) of uint8 or float pixels in 0..255."""
        normal = (pixels_BSS3.float() / 127.5 - 1).permute(0, 3, 1, 2)
        return self.heads[1](self.picture(pixel_values=normal).pooler_output)
