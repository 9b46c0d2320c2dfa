"""What is shown of an item or a query: its title, its words, its picture, or a mixture.

The modalities of MOON Embedding's pairs (§1.4, Table 2); "richer text" is everything but the title.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from encoder.content import TITLE
from encoder.examples.augment import augment
from encoder.examples.corpus import Corpus, Side
from encoder.packing import Sample

View = Literal["title", "details", "words", "image", "title+image", "details+image", "all", "half", "any"]


def show(corpus: Corpus, side: Side, rows: np.ndarray, view: View, rng: np.random.Generator) -> list[Sample]:
    """Samples of rows, their pictures augmented.

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
        return augmented(halved(corpus.samples(side, rows, yes, rng.random(count) < 0.5), rng), rng)
    if view == "any":
        draw = rng.integers(3, size=count)
        text = (draw != 1) | ~side.has_image[rows]
        return augmented(corpus.samples(side, rows, text, (draw != 0) | ~side.has_text[rows]), rng)
    samples = corpus.samples(side, rows, no if view == "image" else yes, yes if "image" in view else no)
    if view == "all":
        samples = corpus.samples(side, rows, yes, yes)
    if view.startswith("title"):
        samples = [_keep(sample, lambda kind: kind == TITLE) for sample in samples]
    elif view.startswith("details"):
        samples = [_keep(sample, lambda kind: kind != TITLE) for sample in samples]
    return augmented(samples, rng)


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


def halved(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """The samples with every other word or so left out, at least one kept."""
    kept = []
    for sample in samples:
        shown = rng.random(len(sample.tokens)) < 0.5
        shown[rng.integers(len(shown))] = True
        kept.append(_choose(sample, shown.tolist()))
    return kept


def augmented(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """The samples with every picture augmented."""
    pictures = [picture for sample in samples for picture in sample.pictures]
    changed = iter(augment(np.stack(pictures), rng) if pictures else ())
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
