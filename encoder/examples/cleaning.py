"""The four cleaning rules of round 2 (MOON Embedding §1.5): which purchase pairs are worth training on.

Each rule takes pairs and returns those it keeps, in the order they came. What the rules look at comes as arrays,
so that the previous model, the log and the entity finder stay outside.

Shapes: P pairs, M items, A anchors (queries or items), C categories.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoder.content import attribute_pairs
from encoder.examples.corpus import Side
from encoder.examples.pairs import Pairs

LEAST_ENTITIES = 2  # §1.5
NO_TEXT = -1  # number of entities of what has no text: the rule is about texts
MATCHED = 0.9  # share of exposure whose categories match it exactly; not recovered
COMMON_ITEMS = 5  # a title word names something when so many items use it; not recovered
WIDESPREAD = 0.2  # ... and no more than this share of them: "with", "and", the shop's own name
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def clean(
    pairs: Pairs,
    similarity_P: np.ndarray,
    spu: np.ndarray,
    category: np.ndarray,
    exposure: np.ndarray,
    anchor_entities: np.ndarray,
    item_entities: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Pairs, dict[str, int]]:
    """All four rules in the paper's order.

    Args:
        pairs: of purchases.
        similarity_P: float (P), cosine of each pair under the model of round 1.
        spu: int64 (M), product code of each item.
        category: int64 (M), 0..C-1, of each item.
        exposure: float (C), see ``exposures``.
        anchor_entities: int64 (A), see ``entity_counts``.
        item_entities: int64 (M), the same of the items' titles.
        rng: draws what rule 3 keeps.

    Returns:
        the pairs kept, and how many were left: given, then after each rule.
    """
    kept = {"given": len(pairs)}
    pairs = hardest_per_item(pairs, similarity_P)
    kept["hardest per item"] = len(pairs)
    pairs = one_per_product(pairs, spu)
    kept["one per product"] = len(pairs)
    pairs = like_exposure(pairs, category, exposure, rng)
    kept["like exposure"] = len(pairs)
    pairs = enough_entities(pairs, anchor_entities, item_entities)
    kept["enough entities"] = len(pairs)
    return pairs, kept


def hardest_per_item(pairs: Pairs, similarity_P: np.ndarray) -> Pairs:
    """Rule 1: of an item's queries keep the one least similar to it under the previous model, the first of equals.

    Args:
        pairs: P of them.
        similarity_P: float (P).
    """
    order = np.lexsort((np.arange(len(pairs)), similarity_P, pairs.item))
    return _take(pairs, order[_first_of_each(pairs.item[order])])


def one_per_product(pairs: Pairs, spu: np.ndarray) -> Pairs:
    """Rule 2: an anchor keeps one SKU of each SPU: the one with most pairs of all, of equals the lowest row.

    Args:
        pairs: repeated pairs count as often as they occur, and are kept once.
        spu: int64 (M).
    """
    count = np.bincount(pairs.item, minlength=len(spu))[pairs.item]
    order = np.lexsort((np.arange(len(pairs)), pairs.item, -count, spu[pairs.item], pairs.anchor))
    return _take(pairs, order[_first_of_each(pairs.anchor[order], spu[pairs.item[order]])])


def like_exposure(
    pairs: Pairs, category: np.ndarray, exposure: np.ndarray, rng: np.random.Generator
) -> Pairs:
    """Rule 3: down-sample dominant categories until the pairs' categories are distributed as exposures are.

    No category is up-sampled, so the one with the fewest pairs per exposure would decide how many survive. Here
    category c keeps min(n_c, s e_c) of its n_c pairs, e_c its share of exposure, and s the largest scale at which
    categories with MATCHED of all exposure reach s e_c. These match exposure among each other; the few rarer ones
    keep all they have. Categories never exposed keep nothing.

    Args:
        pairs: P of them.
        category: int64 (M), 0..C-1.
        exposure: float (C), not negative; only proportions count. All zero: nothing is known, all pairs stay.
        rng: the only source of chance.
    """
    have = np.bincount(category[pairs.item], minlength=len(exposure))
    shown = np.flatnonzero((exposure > 0) & (have > 0))
    if not len(shown):
        return pairs if exposure.sum() == 0 else _take(pairs, np.empty(0, dtype=np.int64))
    share = exposure / exposure[shown].sum()
    fewest_first = shown[np.argsort(have[shown] / share[shown], kind="stable")]
    reached = share[fewest_first][::-1].cumsum()[
        ::-1
    ]  # exposure of a category and all with more pairs for theirs
    decisive = fewest_first[np.flatnonzero(reached >= MATCHED)[-1]]
    wanted = np.round(share * have[decisive] / share[decisive])
    order = rng.permutation(len(pairs))
    order = order[np.argsort(category[pairs.item[order]], kind="stable")]
    label = category[pairs.item[order]]
    place = np.arange(len(order)) - np.searchsorted(label, label)  # within its category, in random order
    return _take(pairs, order[place < wanted[label]])


def exposures(
    log: pa.Table, until: datetime, items: Side, category: np.ndarray, categories: int
) -> np.ndarray:
    """How often items of each category were shown before ``until``.

    A log without impressions tells what was shown only by what was then clicked or bought: all its events count
    instead, and rule 3 then cuts little.

    Args:
        log: EVENTS.
        until: the encoder's cut.
        items: to turn ids into rows; events of unknown items are ignored.
        category: int64 (M), 0..C-1.
        categories: C.

    Returns:
        float64 (C).
    """
    before = log.filter(pc.less(log["available_time"], pa.scalar(until, type=log["available_time"].type)))
    impressions = before.filter(pc.equal(before["type"], "impression"))
    rows = items.rows((impressions if len(impressions) else before)["item_id"].to_numpy())
    return np.bincount(category[rows[rows >= 0]], minlength=categories).astype(np.float64)


def enough_entities(
    pairs: Pairs,
    anchor_entities: np.ndarray,
    item_entities: np.ndarray,
    least: int = LEAST_ENTITIES,
) -> Pairs:
    """Rule 4: drop pairs of which a text names fewer than two things.

    Args:
        pairs: P of them.
        anchor_entities: int64 (A), number in each anchor's text; NO_TEXT passes (a picture).
        item_entities: int64 (M), the same of each item's title.
        least: a text needs so many.
    """
    anchor, item = anchor_entities[pairs.anchor], item_entities[pairs.item]
    enough = ((anchor == NO_TEXT) | (anchor >= least)) & ((item == NO_TEXT) | (item >= least))
    return _take(pairs, np.flatnonzero(enough))


class EntityFinder(Protocol):
    """Named entity recognition; a model implements it where there is one."""

    def entities(self, text: str) -> set[str]:
        """The distinct things that ``text`` names."""
        ...


class CatalogueEntities:
    """Entities without a model: the catalogue's own terms, found in a text word for word.

    Terms are category names, attribute values, and title words that COMMON_ITEMS items or more use and no more than
    WIDESPREAD of them. Case is ignored. The longest term that starts at a word is taken, and the next is looked for
    behind it.

    >>> rows = [{"title": "Strap top", "category": ["Women", "Vest top"], "attributes": {"colour": "Light blue"}}]
    >>> sorted(CatalogueEntities(rows).entities("A light blue vest top, size M"))
    ['light blue', 'vest top']

    Args:
        records: rows of ITEMS as Python values.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        terms: set[tuple[str, ...]] = set()
        titles: Counter[str] = Counter()
        count = 0
        for record in records:
            count += 1
            names = [*(record["category"] or []), *(value for _, value in attribute_pairs(record))]
            terms.update(words for name in names if (words := _words(name)))
            titles.update(set(_words(record["title"] or "")))
        terms.update(
            (word,)
            for word, items in titles.items()
            if COMMON_ITEMS <= items <= WIDESPREAD * count and not word.isdigit()
        )
        self._terms = terms
        self._longest = max((len(term) for term in terms), default=0)

    def entities(self, text: str) -> set[str]:
        """The distinct catalogue terms in ``text``, in lower case."""
        words, found, at = _words(text), set(), 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                if words[at : at + length] in self._terms:
                    found.add(" ".join(words[at : at + length]))
                    at += length - 1
                    break
            at += 1
        return found


def entity_counts(texts: Sequence[str | None], finder: EntityFinder) -> np.ndarray:
    """How many things each text names, int64; NO_TEXT where there is none."""
    return np.array(
        [len(finder.entities(text)) if text and text.strip() else NO_TEXT for text in texts], dtype=np.int64
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in WORD.findall(text))


def _first_of_each(*ordered: np.ndarray) -> np.ndarray:
    """Whether each row differs from the one before it, in any of the sorted columns."""
    first = np.ones(len(ordered[0]), dtype=bool)
    first[1:] = np.any([column[1:] != column[:-1] for column in ordered], axis=0)
    return first


def _take(pairs: Pairs, chosen: np.ndarray) -> Pairs:
    chosen = np.sort(chosen)
    return Pairs(pairs.anchor[chosen], pairs.item[chosen])
