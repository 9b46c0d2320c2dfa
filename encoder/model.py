"""The encoder model: from samples to vectors, by pooling and a linear head on top of the backbone.

Shapes: B samples, T packed tokens, D vector width, H hidden width, Z experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.backbone.backbone import Backbone, Read
from encoder.backbone.packing import CHAIN, IMAGE, TEXT, Packed, Sample, pack
from encoder.parts.discriminants import COUNT, Discriminants
from encoder.parts.experts import load_balance, per_sequence
from encoder.parts.fusion import ModalityFusion
from encoder.parts.wide import Wide

# Most tokens of a forward pass without gradients. Bounds memory; results do not depend on it. On a CPU, batches that
# fit into its caches are an eighth faster than batches of eight times as many tokens
# (docs/log/encoder_speed.md#embedding-beside-the-plain-loop).
TOKENS_AT_ONCE = {"cpu": 2_048, "cuda": 16_384}
# Length of what is learned, by the backbone or by heads on towers, beside a fixed path in which words have length 1.
# Of any length it outgrows them, and titles do not find their items (docs/log/encoder.md#why-titles-lost-their-items
# and #pretrained-towers-on-hm). A picture alone, whose looks are shorter, is mostly what is learned of it.
DEEP = 0.7


@dataclass(frozen=True)
class Encoded:
    """Vectors of samples, in the order given.

    Attributes:
        vector_BD: float, before normalisation.
        gate_BZ: float, expert weights averaged over a sample's tokens and the layers with experts; None without
            experts.
        balance: mean load-balancing loss of these layers; None without experts.
    """

    vector_BD: Tensor
    gate_BZ: Tensor | None = None
    balance: Tensor | None = None


class EncoderModel(nn.Module):
    """Backbone, then mean over tokens and a linear head (MOON Embedding §1.4), or fusion (MOON3.0 §4.1).

    Args:
        backbone: the multimodal model.
        width: D, the full width of the vectors.
        fusion: fuses pooled image, text and attribute chain; None: mean over tokens and a linear head.
        wide: a linear path beside the backbone, whose vectors are added to those of the backbone, made as long as
            ``DEEP``; None: there is none.
        discriminants: of pictures, the last numbers of the vector; only beside a wide path. None: there are none.
    """

    def __init__(
        self,
        backbone: Backbone,
        width: int,
        fusion: ModalityFusion | None = None,
        wide: Wide | None = None,
        discriminants: Discriminants | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.width = width
        self.fusion = fusion
        self.wide = wide
        self.discriminants = discriminants
        learned = width - COUNT if discriminants else width
        self.head = None if fusion else nn.Linear(backbone.hidden_size, learned, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def px(self) -> int:
        """Side of its pictures in pixels."""
        return self.backbone.vision.px

    def pack(self, samples: Sequence[Sample], causal: bool = False) -> Packed:
        """Put samples end to end for this model's backbone."""
        backbone = self.backbone
        return pack(samples, backbone.image_prefix, self.device, causal, backbone.rows_and_columns)

    def forward(self, samples: Sequence[Sample]) -> Encoded:
        """Vectors of samples, none of them empty."""
        packed = self.pack(samples)
        encoded = self.encoded(packed, self.backbone(packed))
        if self.wide is None:
            return encoded
        vector = DEEP * F.normalize(encoded.vector_BD, dim=-1) + self.wide(samples)
        if self.discriminants is not None:
            apart = self.discriminants(samples, self.wide.words([sample.tokens for sample in samples]))
            vector = torch.cat([F.normalize(vector, dim=-1), apart], dim=1)
        return replace(encoded, vector_BD=vector)

    def encoded(self, packed: Packed, read: Read) -> Encoded:
        """Vectors from the hidden states of packed sequences, in the order of the samples."""
        back = torch.argsort(packed.order_B)
        vectors = self._pooled(packed, read.hidden_TH)[back]
        if not read.routes:
            return Encoded(vectors)
        gates = [per_sequence(one.weight_TZ, packed.sequence_T, len(packed)) for one in read.routes]
        balance = [load_balance(one.weight_TZ, one.probability_TZ) for one in read.routes]
        return Encoded(vectors, torch.stack(gates).mean(0)[back], torch.stack(balance).mean())

    def vectors(self, samples: Sequence[Sample]) -> Tensor:
        """Vectors of any number of samples, without gradients and before normalisation: float (B, D)."""
        width = len(self.backbone.image_prefix)
        length = [len(s.pictures) * width + len(s.tokens) + len(s.chain) for s in samples]
        out = torch.empty(len(samples), self.width, device=self.device)
        rows: list[int] = []
        tokens, most = 0, TOKENS_AT_ONCE[self.device.type]
        with torch.no_grad():
            for row in sorted(range(len(samples)), key=length.__getitem__):
                if rows and tokens + length[row] > most:
                    out[rows] = self([samples[r] for r in rows]).vector_BD.float()
                    rows, tokens = [], 0
                rows.append(row)
                tokens += length[row]
            if rows:
                out[rows] = self([samples[r] for r in rows]).vector_BD.float()
        return out

    def _pooled(self, packed: Packed, hidden_TH: Tensor) -> Tensor:
        """Vectors in packed order."""
        if self.head is not None:
            return self.head(_mean(hidden_TH, packed.sequence_T, len(packed))[0])
        assert self.fusion is not None
        sources, present = [], []
        for part in (IMAGE, TEXT):
            mine = packed.part_T == part
            mean, found = _mean(hidden_TH[mine], packed.sequence_T[mine], len(packed))
            sources.append(mean)
            present.append(found)
        chained = (packed.part_T == CHAIN).nonzero()[:, 0]
        last = torch.full((len(packed),), -1, device=hidden_TH.device)
        # The last token of a chain is <|emb|>.
        last = last.scatter_reduce(0, packed.sequence_T[chained], chained, "amax")
        found = last >= 0
        sources.append(torch.where(found[:, None], hidden_TH[last.clamp(min=0)], 0.0))
        present.append(found)
        return self.fusion(sources[0], sources[1], sources[2], torch.stack(present, dim=1))


def _mean(hidden_TH: Tensor, sequence_T: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean over the tokens of each sequence, float (B, H), and whether it has any, bool (B)."""
    total = hidden_TH.new_zeros(count, hidden_TH.shape[1]).index_add(0, sequence_T, hidden_TH)
    tokens = torch.bincount(sequence_T, minlength=count)
    return total / tokens.clamp(min=1)[:, None], tokens > 0
