"""One vector from picture, text and attribute chain: the Multi-head Modality Fusion of MOON3.0 §4.1.

Shapes: B sequences, H hidden width, D vector width, K heads of width W = D / K, S = 3 sources.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SOURCES = ("image", "text", "chain")


class ModalityFusion(nn.Module):
    """Heads that each attend over the sources, plus a normalised branch from image and text.

    The paper's figure shows several linear heads on each source, an L2Norm branch from image and text, and
    a box "Fusion"; the formulas are not recovered. Ours: head k of source s is the vector V_(k,s) h_s and

        a_(k,s) = softmax over the present s of ( g_(k,s) . h_s + c_(k,s) )
        r = L2Norm( concat_k sum_s a_(k,s) V_(k,s) h_s ) + mean over present s in {i, t} of L2Norm( U_s h_s )

    with gates g, c that start at zero, so every head starts as the mean of the present sources. An absent source has
    no influence on the vector and no gradient, whatever its row contains.

    Args:
        hidden: H.
        width: D, a multiple of ``heads``.
        heads: K; not recovered.

    Raises:
        ValueError: ``width`` is not a multiple of ``heads``.
    """

    def __init__(self, hidden: int, width: int, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width: expected a multiple of {heads} heads, found {width}.")
        self.heads = heads
        self.values = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in SOURCES)
        self.gates = nn.ModuleList(nn.Linear(hidden, heads) for _ in SOURCES)
        self.units = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in SOURCES[:2])
        for parameter in self.gates.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image_BH: Tensor, text_BH: Tensor, chain_BH: Tensor, present_B3: Tensor) -> Tensor:
        """Vectors, float (B, D), not normalised; zero where no source is present.

        Heads are interleaved (element d belongs to head d mod K), so that a Matryoshka prefix has a part of each.

        Args:
            image_BH, text_BH: float, mean hidden state of the image and of the text tokens.
            chain_BH: float, hidden state of ``<|emb|>`` at the end of the attribute chain.
            present_B3: bool, which of the three a sequence has; rows of absent sources may contain anything, even
                NaN.
        """
        sources = [
            torch.where(present_B3[:, s, None], source, 0.0)
            for s, source in enumerate((image_BH, text_BH, chain_BH))
        ]
        values = [head(h) for head, h in zip(self.values, sources, strict=True)]
        value_BSWK = torch.stack(values, dim=1).unflatten(-1, (-1, self.heads))
        score_BSK = torch.stack([gate(h) for gate, h in zip(self.gates, sources, strict=True)], dim=1)
        # Not -inf: without any source the softmax must be finite; all values it weights are then zero.
        score_BSK = score_BSK.masked_fill(~present_B3[:, :, None], torch.finfo(score_BSK.dtype).min)
        fused_BD = (score_BSK.softmax(dim=1)[:, :, None] * value_BSWK).sum(dim=1).flatten(1)
        units = [F.normalize(unit(h), dim=-1) for unit, h in zip(self.units, sources[:2], strict=True)]
        count_B1 = present_B3[:, :2].sum(dim=1, keepdim=True).clamp(min=1)
        # The zero row of an absent source stays zero when normalised.
        return F.normalize(fused_BD, dim=-1) + (units[0] + units[1]) / count_B1
