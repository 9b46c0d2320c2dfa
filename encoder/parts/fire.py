"""Fine-grained residual enhancement (FIRE) of MOON3.0 §4.1: residual connections from early to late layers.

Shapes: P patches, V image tokens (P = V * merge^2), T packed tokens, K vision layers read, H hidden width, Hv hidden
width of the vision side, F = merge^2 * Hv width of the merged patches of one token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 4  # vision layers read, evenly spaced up to the last; not recovered


class Fire(nn.Module):
    """Three kinds of residuals, all exactly zero at the start, so that they leave a checkpoint unchanged.

    1. ``embeddings``: outputs of vision layers l_1..l_k, each through its own projector, are weighted by a learned
       gate and added to the image tokens' embeddings: sum_j softmax_j(w_j . x_j) P_j x_j, with x_j the merged patches
       of layer l_j, normalised per token as in Qwen's own merger.
    2. ``after``: Q_j x_j of the first of these layers is added to the image tokens after language layer 1,
       of the second after layer 2.
    3. ``skip``: the outputs of language layers 2 and 3 are added before the last two layers, scaled per channel.

    P, Q and the scales of the skips start at zero and have a gradient from the first step; the gate has one once P is
    not zero. The number of vision layers, the gate's formula and the scales are not recovered.

    Models with fewer than 5 language layers do not fit the paper's figure. For them 2. is omitted after the last
    layer, and in 3. the early end moves down, at most to the embeddings, until the skip passes over at least one
    layer; a skip that cannot is omitted. With 2 layers: vision features after the first, embeddings to the second.
    Qwen3-VL's DeepStack also adds vision layers after its first language layers; 2. is in addition to it.

    Args:
        vision_hidden: Hv.
        hidden: H.
        merge: patches per side of one token.
        vision_layers: number of vision blocks, the length of every ``features``.
        layers: number of language layers.

    Attributes:
        taps: vision blocks read, 0-based.
        injected: language layer (0-based) -> vision block whose features are added after it.
        carry_from: late language layer (0-based) -> early layer whose output is added to its input; -1 means the
            embeddings.
    """

    def __init__(self, vision_hidden: int, hidden: int, merge: int, vision_layers: int, layers: int) -> None:
        super().__init__()
        self.token_width = merge**2 * vision_hidden
        count = min(TAPS, vision_layers)
        self.taps = tuple((j + 1) * vision_layers // count - 1 for j in range(count))
        self.injected = dict(enumerate(self.taps[: min(2, layers - 1)]))
        wanted = {layers - 2: min(1, layers - 4), layers - 1: min(2, layers - 3)}  # early <= late - 2
        self.carry_from = {late: early for late, early in wanted.items() if early >= -1}

        self.projectors = nn.ModuleList(self._projector(hidden) for _ in self.taps)
        self.gates = nn.ModuleList(nn.Linear(self.token_width, 1) for _ in self.taps)
        self.injectors = nn.ModuleList(self._projector(hidden) for _ in self.injected)
        self.scales = nn.ParameterDict({str(late): torch.zeros(hidden) for late in self.carry_from})

    def _projector(self, hidden: int) -> nn.Linear:
        projector = nn.Linear(self.token_width, hidden, bias=False)
        nn.init.zeros_(projector.weight)
        return projector

    def _merged(self, patches: Tensor) -> Tensor:
        """Normalised tokens (V, F) of patch features (P, Hv) in merge-block-major order."""
        return F.layer_norm(patches.reshape(-1, self.token_width), (self.token_width,))

    def embeddings(self, features: Sequence[Tensor]) -> Tensor:
        """What to add to the image tokens' embeddings, float (V, H).

        Args:
            features: output (P, Hv) of every vision block, merge^2 consecutive patches per token.
        """
        tokens = [self._merged(features[tap]) for tap in self.taps]
        score_VK = torch.cat([gate(x) for gate, x in zip(self.gates, tokens, strict=True)], dim=1)
        projected_VKH = torch.stack([p(x) for p, x in zip(self.projectors, tokens, strict=True)], dim=1)
        return (score_VK.softmax(dim=1)[:, :, None] * projected_VKH).sum(dim=1)

    def after(self, layer: int, features: Sequence[Tensor]) -> Tensor | None:
        """What to add to the image tokens (V, H) after a language layer (0-based); None for most layers."""
        if layer not in self.injected:
            return None
        return self.injectors[layer](self._merged(features[self.injected[layer]]))

    def skip(self, layer: int, early_TH: Tensor) -> Tensor:
        """What to add to the input of a late layer, a key of ``carry_from``, given the early output (T, H)."""
        return self.scales[str(layer)] * early_TH
