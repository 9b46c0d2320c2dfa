"""Generating attribute chains: batched decoding with a key-value cache (MOON3.0 §4.1, §4.2).

The picture and the text of an input attend to each other and never to the chain, so their keys and values are
computed once, copied to every rollout of the input, and extended by one token per step.

Shapes: B inputs, G rollouts of each, R = B * G rollouts, L tokens of the longest chain, T packed tokens,
P tokens of the longest prefix, A key heads, W head width, Y vocabulary, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from encoder.backbone.backbone import Backbone
from encoder.backbone.packing import CHAIN, Packed, Sample, pack, token_positions
from encoder.parts.chain import Marks

AT_ONCE = 512  # rollouts decoded together: bounds memory; greedy chains do not depend on it


@dataclass(frozen=True)
class Rollouts:
    """R generated chains; those of one input are neighbours, in the order of the inputs.

    Attributes:
        inputs: index of each chain's input.
        chains: token ids from ``<think>``, which is given, to ``<|emb|>``, or to where the chain was cut off.
        log_probability_RL: float, log-probability of each generated token under the model that generated it; 0
            elsewhere. Column t is token t + 1 of the chain.
        drawn_RL: bool, true for generated tokens.
    """

    inputs: list[int]
    chains: list[list[int]]
    log_probability_RL: Tensor
    drawn_RL: Tensor

    def chained(self, samples: Sequence[Sample], marks: Marks) -> list[Sample]:
        """Each chain's input followed by the chain; one that was cut off gets ``<|emb|>`` at its end."""
        return [
            replace(samples[row], chain=chain if chain[-1] == marks.emb else [*chain, marks.emb])
            for row, chain in zip(self.inputs, self.chains, strict=True)
        ]


def policy_logits(backbone: Backbone, hidden: Tensor) -> Tensor:
    """Logits (..., Y) of the next token of a chain, float32; -inf for the tokens that stand for pictures."""
    config = backbone.config
    forbidden = [config.image_token_id, config.video_token_id, config.vision_start_token_id]
    logits = backbone.logits(hidden).float()
    return logits.index_fill(-1, torch.tensor(forbidden, device=logits.device), float("-inf"))


@torch.no_grad()
def write_chains(
    backbone: Backbone,
    samples: Sequence[Sample],
    marks: Marks,
    longest: int,
    copies: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Generate chains, greedily or by sampling at temperature 1.

    Args:
        backbone: the policy.
        samples: with a picture, text or both; their own chains are ignored.
        marks: the tokenizer's chain tokens.
        longest: most tokens to generate; a chain that has not ended by then is cut off.
        copies: how many chains to generate for each sample; None: one.
        generator: for sampling; None decodes greedily.
    """
    copies = [1] * len(samples) if copies is None else copies
    parts, start = [], 0
    while start < len(samples):
        stop = start + 1
        while stop < len(samples) and sum(copies[start : stop + 1]) <= AT_ONCE:
            stop += 1
        parts.append(_write(backbone, samples[start:stop], marks, longest, copies[start:stop], generator))
        start = stop
    width = max((part.drawn_RL.shape[1] for part in parts), default=0)
    return Rollouts(
        [row for row, count in enumerate(copies) for _ in range(count)],
        [chain for part in parts for chain in part.chains],
        torch.cat([F.pad(p.log_probability_RL, (0, width - p.log_probability_RL.shape[1])) for p in parts]),
        torch.cat([F.pad(p.drawn_RL, (0, width - p.drawn_RL.shape[1])) for p in parts]),
    )


def chain_log_probabilities(backbone: Backbone, packed: Packed, hidden_TH: Tensor) -> Tensor:
    """Log-probability of every chain token but the first of each chain, from one forward pass, with gradient.

    Args:
        backbone: the model that computed ``hidden_TH``.
        packed: sequences with chains.
        hidden_TH: their last hidden states.

    Returns:
        float (B, L) in the order of the samples; column t is token t + 1 of the chain, 0 beyond its end.
    """
    chained = (packed.part_T == CHAIN).nonzero()[:, 0]
    owner = packed.sequence_T[chained]
    first = torch.full((len(packed),), len(packed.ids_T), device=chained.device)
    first = first.scatter_reduce(0, owner, chained, "amin")
    column = chained - first[owner] - 1
    token, row, column = chained[column >= 0], packed.order_B[owner[column >= 0]], column[column >= 0]
    log_probability_TY = policy_logits(backbone, hidden_TH[token - 1]).log_softmax(-1)
    log_probability_T = log_probability_TY.gather(1, packed.ids_T[token][:, None])[:, 0]
    width = int(column.max()) + 1 if len(column) else 0
    return log_probability_T.new_zeros(len(packed), width).index_put((row, column), log_probability_T)


class _Kept:
    """A stand-in for a transformers cache that collects the prefixes' keys and values by layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values, (1, A, T, W) each."""
        self.layers.append((key, value))
        return key, value


class _Growing:
    """A stand-in for a transformers cache into which chains are written, one token per step."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], filled: int) -> None:
        self.layers, self.filled = layers, filled

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write a layer's new key and value (R, A, 1, W); return all keys and values so far."""
        for kept, new in zip(self.layers[layer], (key, value), strict=True):
            kept[:, :, self.filled] = new[:, :, 0]
        keys, values = self.layers[layer]
        return keys[:, :, : self.filled + 1], values[:, :, : self.filled + 1]


def _write(
    backbone: Backbone,
    samples: Sequence[Sample],
    marks: Marks,
    longest: int,
    copies: Sequence[int],
    generator: torch.Generator | None,
) -> Rollouts:
    embed = backbone.model.get_input_embeddings()
    device = embed.weight.device
    inputs_R = torch.arange(len(samples)).repeat_interleave(torch.tensor(copies)).to(device)
    cache, seen_RP = _read_prefixes(backbone, samples, longest, inputs_R)
    positions_3RL = _chain_positions(backbone, samples, longest)[:, inputs_R]
    rows, start = len(inputs_R), cache.filled
    seen_RP = F.pad(seen_RP, (0, longest), value=True)  # a chain attends to all of itself so far
    token = torch.full((rows,), marks.think, device=device)
    kinds = torch.zeros(rows, dtype=torch.int64, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    tokens, chances, drawn = [token], [], []
    for step in range(longest):
        cache.filled = start + step
        hidden, _ = backbone.run(
            embed(token)[:, None],
            backbone.rotary(positions_3RL[:, :, step : step + 1]),
            kinds,
            None,
            None,
            attention_mask=seen_RP[:, None, None, : cache.filled + 1],
            past_key_values=cache,
        )
        chance_RY = policy_logits(backbone, hidden[:, 0]).log_softmax(-1)
        if generator is None:
            token = chance_RY.argmax(-1)
        else:
            token = _draw(chance_RY, generator)
        drawn.append(~ended)
        tokens.append(token)
        chances.append(chance_RY.gather(1, token[:, None])[:, 0].masked_fill(ended, 0))
        ended = ended | (token == marks.emb)
        if ended.all():
            break
    drawn_RL = torch.stack(drawn, dim=1)
    lengths = (1 + drawn_RL.sum(1)).tolist()
    written = torch.stack(tokens, dim=1).tolist()
    chains = [chain[:length] for chain, length in zip(written, lengths, strict=True)]
    return Rollouts(inputs_R.tolist(), chains, torch.stack(chances, dim=1), drawn_RL)


def _draw(chance_RY: Tensor, generator: torch.Generator) -> Tensor:
    """Sample one token for each row by inverting the cumulative distribution."""
    summed_RY = chance_RY.exp().cumsum(-1)
    height = torch.rand(len(chance_RY), 1, generator=generator, device=chance_RY.device) * summed_RY[:, -1:]
    return torch.searchsorted(summed_RY, height, right=True)[:, 0]


def _read_prefixes(
    backbone: Backbone, samples: Sequence[Sample], room: int, inputs_R: Tensor
) -> tuple[_Growing, Tensor]:
    """A cache of the rollouts' prefixes with ``room`` free places, and which prefix places are used, bool (R, P)."""
    device = inputs_R.device
    bare = [replace(s, chain=()) for s in samples]
    packed = pack(bare, backbone.image_prefix, device, rows_and_columns=backbone.rows_and_columns)
    x_TH, seen, places_V = backbone.model.get_input_embeddings()(packed.ids_T), None, None
    if packed.pixels_NSS3 is not None:
        seen = backbone.see(packed.pixels_NSS3)
        places_V = (packed.ids_T == backbone.config.image_token_id).nonzero()[:, 0]
        x_TH = x_TH.index_copy(0, places_V, seen.tokens_VH.to(x_TH.dtype))
    kept = _Kept()
    backbone.run(
        x_TH[None],
        backbone.rotary(packed.positions_3T[:, None]),
        packed.kinds_T,
        seen,
        places_V,
        groups=packed.groups,
        past_key_values=kept,
    )
    lengths = torch.bincount(packed.sequence_T, minlength=len(packed))
    place = torch.arange(len(packed.ids_T), device=device) - (lengths.cumsum(0) - lengths)[packed.sequence_T]
    row_R = torch.argsort(packed.order_B)[inputs_R]
    prefix = int(lengths.max())

    def spread(packed_1ATW: Tensor) -> Tensor:
        heads, width = packed_1ATW.shape[1], packed_1ATW.shape[3]
        padded = packed_1ATW.new_zeros(len(packed), prefix + room, heads, width)
        padded[packed.sequence_T, place] = packed_1ATW[0].transpose(0, 1)
        return padded[row_R].transpose(1, 2)

    layers = [(spread(key), spread(value)) for key, value in kept.layers]
    return _Growing(layers, prefix), torch.arange(prefix, device=device) < lengths[row_R][:, None]


def _chain_positions(backbone: Backbone, samples: Sequence[Sample], longest: int) -> Tensor:
    """Positions of the chain tokens of every input, int64 (3, B, L)."""
    width = len(backbone.image_prefix)
    positions = []
    for sample in samples:
        start = len(sample.pictures) * width + len(sample.tokens)
        squares = len(sample.pictures) if backbone.rows_and_columns else 0
        whole = token_positions(start + longest, squares, width - 2)
        positions.append(torch.from_numpy(whole[:, start:].copy()))
    return torch.stack(positions, dim=1).to(backbone.model.device)
