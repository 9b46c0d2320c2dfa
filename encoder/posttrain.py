"""Stage 2a: contrastive post-training, any-modality query to full item (MOON Embedding §1.4).

Each step draws one kind of pair, so that the negatives in its batch are of the same modality as the positive:

- own: an item's picture to its own words;
- part: half of an item's words, with or without its picture, to the full item;
- query: a query to an item clicked or bought from it, or judged relevant;
- item: an item, shown as words, picture or both, to the full item a user took on the same trip.

The paper's nine kinds (Table 2) differ by modality; how it mixes them is not recovered, the mix here is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from encoder.examples.augment import augment
from encoder.examples.corpus import Corpus, Side
from encoder.examples.pairs import Pairs
from encoder.losses.info_nce import false_negatives, matryoshka_info_nce
from encoder.model import EncoderModel, Sample

# Shares of steps, renormalised over the kinds that have pairs.
MIX = {"own": 0.35, "part": 0.2, "query": 0.25, "item": 0.2}
# What users took together is a weak sign of likeness: at the temperature of an item's own halves the loss is
# least when all vectors lie together, and the space collapses (LOG.md). A higher one asks for less contrast.
TEMPERATURE = {"own": 0.05, "part": 0.05, "query": 0.1, "item": 0.2}


@dataclass(frozen=True)
class Positives:
    """Pairs of each kind, see the module's docstring; ``own`` and ``part`` pair items with themselves."""

    own: Pairs
    part: Pairs
    query: Pairs
    item: Pairs

    def kinds(self) -> list[str]:
        """Kinds with at least two pairs: fewer have no negatives."""
        return [kind for kind in MIX if len(getattr(self, kind)) > 1]


def own_pairs(corpus: Corpus) -> Pairs:
    """Every item with both a picture and words, paired with itself."""
    rows = np.flatnonzero(corpus.items.has_image & corpus.items.has_text)
    return Pairs(rows, rows)


def part_pairs(corpus: Corpus) -> Pairs:
    """Every item with words, paired with itself."""
    rows = np.flatnonzero(corpus.items.has_text)
    return Pairs(rows, rows)


def posttrain_loss(
    model: EncoderModel,
    corpus: Corpus,
    positives: Positives,
    batch: int,
    widths: Sequence[int],
    rng: np.random.Generator,
) -> Tensor:
    """Matryoshka InfoNCE of one random batch of one random kind.

    Args:
        model: trained whole: vision, projector, language and head.
        corpus: where contents come from.
        positives: at least one kind with two pairs.
        batch: pairs per step; fewer when a kind has fewer.
        widths: Matryoshka prefixes.
        rng: the only source of chance.
    """
    kinds = positives.kinds()
    share = np.array([MIX[kind] for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=share / share.sum()))]
    pairs: Pairs = getattr(positives, kind)
    chosen = rng.choice(len(pairs), size=min(batch, len(pairs)), replace=False)
    anchor, item = pairs.anchor[chosen], pairs.item[chosen]
    if kind == "item":
        swap = rng.random(len(anchor)) < 0.5
        anchor, item = np.where(swap, item, anchor), np.where(swap, anchor, item)
    yes, no = np.ones(len(item), dtype=bool), np.zeros(len(item), dtype=bool)
    if kind == "own":
        left = corpus.samples(corpus.items, anchor, text=no, image=yes)
        right = corpus.samples(corpus.items, item, text=yes, image=no)
    elif kind == "part":
        left = halved(
            corpus.samples(corpus.items, anchor, text=yes, image=rng.random(len(anchor)) < 0.5), rng
        )
        right = corpus.samples(corpus.items, item, text=yes, image=yes)
    else:
        side = corpus.queries if kind == "query" else corpus.items
        text, image = shown_modalities(side, anchor, rng) if kind == "item" else (yes, yes)
        left = corpus.samples(side, anchor, text=text, image=image)
        right = corpus.samples(corpus.items, item, text=yes, image=yes)
    vectors = model(augmented([*left, *right], rng))
    masked = false_negatives(
        *(torch.from_numpy(key).to(vectors.device) for key in _keys(corpus, kind, anchor, item))
    )
    return matryoshka_info_nce(
        vectors[: len(left)], vectors[len(left) :], masked, widths, temperature=TEMPERATURE[kind]
    )


def halved(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """The samples with every other word or so left out, at least one kept."""
    kept = []
    for sample in samples:
        shown = rng.random(len(sample.tokens)) < 0.5
        shown[rng.integers(len(shown))] = True
        kept.append(replace(sample, tokens=[t for t, yes in zip(sample.tokens, shown, strict=True) if yes]))
    return kept


def shown_modalities(side: Side, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Show each row as words, picture or both, a third each; as what it has when it has only one of them.

    Returns:
        two bool arrays: text shown, image shown; never both false for a row that has content.
    """
    draw = rng.integers(3, size=len(rows))
    has_text, has_image = side.has_text[rows], side.has_image[rows]
    return (draw != 1) | ~has_image, (draw != 0) | ~has_text


def augmented(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """The samples with every picture augmented."""
    pictures = [sample.pixels for sample in samples if sample.pixels is not None]
    changed = iter(augment(np.stack(pictures), rng) if pictures else ())
    return [s if s.pixels is None else replace(s, pixels=next(changed)) for s in samples]


def _keys(corpus: Corpus, kind: str, anchor: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arguments of ``false_negatives``. Of an item's own halves, equal words are equal items."""
    if kind in ("own", "part"):
        words: dict[tuple[int, ...], int] = {}
        text = np.array([words.setdefault(tuple(corpus.items.tokens[row]), row) for row in item.tolist()])
        return anchor, text, corpus.spu[item], corpus.spu[anchor]
    if kind == "query":
        return anchor, item, corpus.spu[item], -1 - np.arange(len(anchor))
    return anchor, item, corpus.spu[item], corpus.spu[anchor]
