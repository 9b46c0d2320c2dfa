"""Sequences in, vectors out: pooling and the linear head on top of the backbone.

Shapes: B sequences, L tokens, D vector width, H hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from encoder.backbone import Backbone

LENGTH_RATIO = (
    1.3  # sequences share a padded chunk while the longest is at most this much longer than the shortest
)


@dataclass(frozen=True)
class Sample:
    """One input.

    Attributes:
        tokens: text token ids, without the image prefix.
        pixels: uint8 or float32 (S, S, 3), 0..255; None without a picture.
    """

    tokens: Sequence[int]
    pixels: np.ndarray | None


class EncoderModel(nn.Module):
    """Backbone, mean over real tokens, linear head (MOON Embedding §1.4).

    Args:
        backbone: the multimodal model.
        width: D, the widest vector.
        pad: token id that fills a chunk.
    """

    def __init__(self, backbone: Backbone, width: int, pad: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.hidden_size, width, bias=False)
        self.pad = pad

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def collate(self, sequences: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids (B, L), mask (B, L) and pixels (N, S, S, 3) of sequences, right-padded to the longest."""
        prefix = self.backbone.image_prefix
        rows = [[*(prefix if s.pixels is not None else ()), *s.tokens] for s in sequences]
        length = max(len(row) for row in rows)
        ids = np.full((len(rows), length), self.pad, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=bool)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = True
        pictures = [s.pixels for s in sequences if s.pixels is not None]
        pixels = torch.from_numpy(np.stack(pictures)).to(self.device) if pictures else None
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device), pixels

    def forward(self, sequences: Sequence[Sample], limit: int = 256) -> Tensor:
        """Vectors before normalisation, float (B, D), in the order given.

        Args:
            sequences: none of them empty.
            limit: most sequences in one padded chunk.
        """
        order, parts = [], []
        for chunk in self._chunks(sequences, limit):
            ids, mask, pixels = self.collate([sequences[i] for i in chunk])
            hidden = self.backbone(ids, mask, pixels, bidirectional=True)
            weight = mask.to(hidden.dtype)[:, :, None]
            parts.append(self.head((hidden * weight).sum(1) / weight.sum(1)))
            order.extend(chunk)
        return torch.cat(parts)[torch.from_numpy(np.argsort(np.array(order)))]

    def _chunks(self, sequences: Sequence[Sample], limit: int) -> Iterator[list[int]]:
        """Row numbers in chunks of similar length: most padding is avoidable."""
        prefix = len(self.backbone.image_prefix)
        lengths = np.array([len(s.tokens) + (prefix if s.pixels is not None else 0) for s in sequences])
        chunk: list[int] = []
        for row in np.argsort(lengths, kind="stable").tolist():
            if chunk and (len(chunk) == limit or lengths[row] > LENGTH_RATIO * lengths[chunk[0]] + 2):
                yield chunk
                chunk = []
            chunk.append(row)
        yield chunk
