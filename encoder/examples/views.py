"""Views of an item or a query: its title, all its text, its picture, or combinations.

These are the modalities of MOON Embedding's pairs (§1.4, Table 2); "richer text" there is all text but the title.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from encoder.backbone.packing import Sample
from encoder.content import TITLE
from encoder.examples.augment import augment
from encoder.examples.corpus import Corpus, Side

View = Literal["title", "details", "words", "image", "title+image", "details+image", "all", "half", "any"]

# Probability with which each text token is dropped: without it texts are memorised within a few hundred steps
# (docs/log/encoder.md#words-must-be-thinned).
TOKEN_DROPOUT = 0.3


def show(corpus: Corpus, side: Side, rows: np.ndarray, view: View, rng: np.random.Generator) -> list[Sample]:
    """Samples of rows in a view, with augmented pictures and token dropout.

    Args:
        corpus: the corpus.
        side: items or queries.
        rows: int64, rows of the side that have the view, see ``can_show``.
        view: title, details (all text but the title), words (all text), image, or combinations; "half": token
            dropout 0.5, half of the time with the picture; "any": text, picture or both, a third each.
        rng: the only source of randomness.
    """
    count = len(rows)
    yes, no = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    if view == "half":
        samples = corpus.samples(side, rows, yes, rng.random(count) < 0.5)
        return augmented(drop_tokens(samples, 0.5, rng), rng, corpus.change)
    text = no if view == "image" else yes
    image = yes if view == "all" or "image" in view else no
    if view == "any":
        draw = rng.integers(3, size=count)
        text, image = (draw != 1) | ~side.has_image[rows], (draw != 0) | ~side.has_text[rows]
    samples = corpus.samples(side, rows, text, image)
    if view.startswith("title"):
        samples = [_keep(sample, lambda kind: kind == TITLE) for sample in samples]
    elif view.startswith("details"):
        samples = [_keep(sample, lambda kind: kind != TITLE) for sample in samples]
    return augmented(drop_tokens(samples, TOKEN_DROPOUT, rng), rng, corpus.change)


def can_show(side: Side, view: View) -> np.ndarray:
    """bool (M): the rows of the side that have the view; "any" and "all" need text or a picture."""
    title = np.array([TITLE in kinds for kinds in side.kinds], dtype=bool)
    details = np.array([any(kind != TITLE for kind in kinds) for kinds in side.kinds], dtype=bool)
    return {
        "title": title,
        "details": details,
        "words": side.has_text,
        "half": side.has_text,
        "image": side.has_image,
        "title+image": title & side.has_image,
        "details+image": details & side.has_image,
        "all": side.has_text | side.has_image,
        "any": side.has_text | side.has_image,
    }[view]


def drop_tokens(samples: Sequence[Sample], probability: float, rng: np.random.Generator) -> list[Sample]:
    """Token dropout: drop each text token with ``probability``, but keep at least one per text."""
    kept = []
    for sample in samples:
        shown = rng.random(len(sample.tokens)) >= probability
        if len(shown):
            shown[rng.integers(len(shown))] = True
        kept.append(_choose(sample, shown.tolist()))
    return kept


def augmented(
    samples: Sequence[Sample],
    rng: np.random.Generator,
    change: Callable[[np.ndarray, np.random.Generator], np.ndarray] = augment,
) -> list[Sample]:
    """The samples with every picture changed by ``change``."""
    pictures = [picture for sample in samples for picture in sample.pictures]
    changed = iter(change(np.stack(pictures), rng) if pictures else ())
    return [
        replace(s, pictures=tuple(next(changed) for _ in s.pictures)) if s.pictures else s for s in samples
    ]


def _keep(sample: Sample, wanted: Callable[[int], bool]) -> Sample:
    return _choose(sample, [wanted(kind) for kind in sample.kinds or [TITLE] * len(sample.tokens)])


def _choose(sample: Sample, shown: Sequence[bool]) -> Sample:
    kinds = sample.kinds
    return replace(
        sample,
        tokens=[token for token, yes in zip(sample.tokens, shown, strict=True) if yes],
        kinds=None if kinds is None else [kind for kind, yes in zip(kinds, shown, strict=True) if yes],
    )
