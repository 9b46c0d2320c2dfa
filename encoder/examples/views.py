"""What is shown of an item or a query: its title, its words, its picture, or a mixture.

The modalities of MOON Embedding's pairs (§1.4, Table 2); "richer text" is everything but the title.
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

# Share of the words left out: without it they are learned by heart within a few hundred steps
# (docs/log/encoder.md#words-must-be-thinned).
LEFT_OUT = 0.3


def show(corpus: Corpus, side: Side, rows: np.ndarray, view: View, rng: np.random.Generator) -> list[Sample]:
    """Samples of rows, their pictures augmented and their words thinned.

    Args:
        corpus: where contents come from.
        side: items or queries.
        rows: int64, of the side; each with what the view asks for, see ``can_show``.
        view: title, details (all words but the title), words, image, both of them; "half": every other word
            or so, half of the time with the picture; "any": words, picture or both, a third each.
        rng: the only source of chance.
    """
    count = len(rows)
    yes, no = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    if view == "half":
        return augmented(thinned(corpus.samples(side, rows, yes, rng.random(count) < 0.5), 0.5, rng), rng)
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
    return augmented(thinned(samples, LEFT_OUT, rng), rng)


def can_show(side: Side, view: View) -> np.ndarray:
    """bool (M): rows of the side that have what a view asks for; "any" and "all" need only something."""
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


def thinned(samples: Sequence[Sample], share: float, rng: np.random.Generator) -> list[Sample]:
    """The samples with each token left out with probability ``share``, at least one kept of those with any."""
    kept = []
    for sample in samples:
        shown = rng.random(len(sample.tokens)) >= share
        if len(shown):
            shown[rng.integers(len(shown))] = True
        kept.append(_choose(sample, shown.tolist()))
    return kept


def augmented(
    samples: Sequence[Sample],
    rng: np.random.Generator,
    change: Callable[[np.ndarray, np.random.Generator], np.ndarray] = augment,
) -> list[Sample]:
    """The samples with every picture changed."""
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
