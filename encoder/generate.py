"""Writing attribute chains: batched decoding behind one reading of each input (MOON3.0 §4.1, §4.2).

The picture and the words of an input see each other and never the chain, so their keys and values are computed
once, copied to every rollout of the input, and extended by one token per step.

Shapes: B inputs, G rollouts of each, R = B * G rollouts, L tokens of the longest chain, T packed tokens,
P tokens of the longest prefix, A key heads, W head width.
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

AT_ONCE = 512  # rollouts decoded together: bounds memory, changes no chain of a greedy policy


@dataclass(frozen=True)
class Rollouts:
    """R chains that the model wrote; those of one input are neighbours, in the order of the inputs.

    Attributes:
        inputs: which input each chain is of.
        chains: token ids from ``<think>``, which is given, to ``<|emb|>``, or to where the chain was cut.
        log_probability_RL: float, of each token drawn, under the policy that drew it; 0 elsewhere.
        drawn_RL: bool, true on drawn tokens: column t is token t + 1 of the chain.
    """

    inputs: list[int]
    chains: list[list[int]]
    log_probability_RL: Tensor
    drawn_RL: Tensor

    def chained(self, samples: Sequence[Sample], marks: Marks) -> list[Sample]:
        """The input of each chain followed by it; a chain that was cut gets ``<|emb|>``, to be embedded there."""
        return [
            replace(samples[row], chain=chain if chain[-1] == marks.emb else [*chain, marks.emb])
            for row, chain in zip(self.inputs, self.chains, strict=True)
        ]


def policy_logits(backbone: Backbone, hidden: Tensor) -> Tensor:
    """Logits (..., vocabulary) of the next token of a chain, float32; a picture is never an answer."""
    config = backbone.config
    unsayable = [config.image_token_id, config.video_token_id, config.vision_start_token_id]
    logits = backbone.logits(hidden).float()
    return logits.index_fill(-1, torch.tensor(unsayable, device=logits.device), float("-inf"))


@torch.no_grad()
def write_chains(
    backbone: Backbone,
    samples: Sequence[Sample],
    marks: Marks,
    longest: int,
    copies: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Let the model write chains, greedily or by chance.

    Args:
        backbone: the policy; read as it is, at temperature 1.
        samples: with a picture, words or both; chains they may have are ignored.
        marks: of the tokenizer.
        longest: most tokens to draw; a chain that has not ended by then is cut.
        copies: chains of each sample; None writes one of each.
        generator: of the chance; None takes the likeliest token at every step.
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
    """Log-probability of each token of each chain but its first, from one packed reading, with gradient.

    Args:
        backbone: that read.
        packed: sequences with chains.
        hidden_TH: their last hidden states.

    Returns:
        float (B, L) in the order of the samples; column t is token t + 1 of the chain, 0 where there is none.
    """
    chained = (packed.part == CHAIN).nonzero()[:, 0]
    owner = packed.sequence[chained]
    first = torch.full((len(packed),), len(packed.ids), device=chained.device)
    first = first.scatter_reduce(0, owner, chained, "amin")
    column = chained - first[owner] - 1
    told, row, column = chained[column >= 0], packed.order[owner[column >= 0]], column[column >= 0]
    chance = policy_logits(backbone, hidden_TH[told - 1]).log_softmax(-1).gather(1, packed.ids[told][:, None])
    width = int(column.max()) + 1 if len(column) else 0
    return chance.new_zeros(len(packed), width).index_put((row, column), chance[:, 0])


class _Kept:
    """Takes the place of a transformers cache while prefixes are read: keeps keys and values by layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keep what a layer computed, (1, A, T, W) each."""
        self.layers.append((key, value))
        return key, value


class _Growing:
    """Takes the place of a transformers cache while chains grow by one token per step."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], filled: int) -> None:
        self.layers, self.filled = layers, filled

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write a layer's new key and value (R, A, 1, W); return all so far."""
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
    seen_RP = F.pad(seen_RP, (0, longest), value=True)  # a chain sees all of itself so far
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
    """One token of each row: where a random height falls on the summed probabilities."""
    summed_RY = chance_RY.exp().cumsum(-1)
    height = torch.rand(len(chance_RY), 1, generator=generator, device=chance_RY.device) * summed_RY[:, -1:]
    return torch.searchsorted(summed_RY, height, right=True)[:, 0]


def _read_prefixes(
    backbone: Backbone, samples: Sequence[Sample], room: int, inputs_R: Tensor
) -> tuple[_Growing, Tensor]:
    """Keys and values of every rollout's prefix, with room for its chain; and which are real, bool (R, P)."""
    device = inputs_R.device
    bare = [replace(s, chain=()) for s in samples]
    packed = pack(bare, backbone.image_prefix, device, rows_and_columns=backbone.rows_and_columns)
    x_TH, seen, places = backbone.model.get_input_embeddings()(packed.ids), None, None
    if packed.pixels is not None:
        seen = backbone.see(packed.pixels)
        places = (packed.ids == backbone.config.image_token_id).nonzero()[:, 0]
        x_TH = x_TH.index_copy(0, places, seen.tokens.to(x_TH.dtype))
    kept = _Kept()
    backbone.run(
        x_TH[None],
        backbone.rotary(packed.positions[:, None]),
        packed.kinds,
        seen,
        places,
        groups=packed.groups,
        past_key_values=kept,
    )
    lengths = torch.bincount(packed.sequence, minlength=len(packed))
    place = torch.arange(len(packed.ids), device=device) - (lengths.cumsum(0) - lengths)[packed.sequence]
    row_R = torch.argsort(packed.order)[inputs_R]
    prefix = int(lengths.max())

    def spread(packed_1ATW: Tensor) -> Tensor:
        heads, width = packed_1ATW.shape[1], packed_1ATW.shape[3]
        padded = packed_1ATW.new_zeros(len(packed), prefix + room, heads, width)
        padded[packed.sequence, place] = packed_1ATW[0].transpose(0, 1)
        return padded[row_R].transpose(1, 2)

    layers = [(spread(key), spread(value)) for key, value in kept.layers]
    return _Growing(layers, prefix), torch.arange(prefix, device=device) < lengths[row_R][:, None]


def _chain_positions(backbone: Backbone, samples: Sequence[Sample], longest: int) -> Tensor:
    """Rotary positions of the tokens of every input's chain, int64 (3, B, L)."""
    width = len(backbone.image_prefix)
    positions = []
    for sample in samples:
        start = len(sample.pictures) * width + len(sample.tokens)
        squares = len(sample.pictures) if backbone.rows_and_columns else 0
        whole = token_positions(start + longest, squares, width - 2)
        positions.append(torch.from_numpy(whole[:, start:].copy()))
    return torch.stack(positions, dim=1).to(backbone.model.device)
