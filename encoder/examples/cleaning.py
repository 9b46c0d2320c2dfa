"""The four cleaning rules of round 2 (MOON Embedding §1.5): which purchase pairs are worth training on.

Each rule takes pairs and returns those it keeps, in their original order. The rules take arrays, so that they do not
depend on the previous model, the log or the entity finder.

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
NO_TEXT = -1  # entity count where there is no text, to which the rule does not apply
MATCHED = 0.9  # fraction of exposure whose categories match it exactly; not recovered
COMMON_ITEMS = 5  # a title word counts as an entity if at least this many items use it; not recovered
WIDESPREAD = 0.2  # ... and at most this fraction of items, which excludes "with", "and", the shop's own name
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
    """Apply all four rules in the paper's order.

    Args:
        pairs: purchase pairs.
        similarity_P: float (P), cosine of each pair under the model of round 1.
        spu: int64 (M), product code of each item.
        category: int64 (M), 0..C-1, of each item.
        exposure: float (C), see ``exposures``.
        anchor_entities: int64 (A), see ``entity_counts``.
        item_entities: int64 (M), the same for the items' titles.
        rng: for the sampling of rule 3.

    Returns:
        the pairs kept, and the number of pairs before the first rule and after each.
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
    """Rule 1: of each item's queries keep the one least similar to it under the previous model; ties: the first.

    Args:
        pairs: P pairs.
        similarity_P: float (P).
    """
    order = np.lexsort((np.arange(len(pairs)), similarity_P, pairs.item))
    return _take(pairs, order[_first_of_each(pairs.item[order])])


def one_per_product(pairs: Pairs, spu: np.ndarray) -> Pairs:
    """Rule 2: each anchor keeps one SKU per SPU, the one that occurs in most pairs; ties: the lowest row.

    Args:
        pairs: repeated pairs are counted each time, and kept once.
        spu: int64 (M).
    """
    count = np.bincount(pairs.item, minlength=len(spu))[pairs.item]
    order = np.lexsort((np.arange(len(pairs)), pairs.item, -count, spu[pairs.item], pairs.anchor))
    return _take(pairs, order[_first_of_each(pairs.anchor[order], spu[pairs.item[order]])])


def like_exposure(
    pairs: Pairs, category: np.ndarray, exposure: np.ndarray, rng: np.random.Generator
) -> Pairs:
    """Rule 3: down-sample dominant categories until the pairs' categories are distributed like exposures.

    No category is up-sampled, so an exact match would let the category with the fewest pairs per exposure decide how
    many pairs survive. Instead category c keeps min(n_c, s e_c) of its n_c pairs, where e_c is its fraction of
    exposure and s the largest scale at which categories with MATCHED of all exposure reach s e_c. These match
    exposure exactly; the others keep all their pairs. Categories without exposure keep none.

    Args:
        pairs: P pairs.
        category: int64 (M), 0..C-1.
        exposure: float (C), not negative; only proportions matter. All zero: unknown, and all pairs stay.
        rng: the only source of randomness.
    """
    have = np.bincount(category[pairs.item], minlength=len(exposure))
    shown = np.flatnonzero((exposure > 0) & (have > 0))
    if not len(shown):
        return pairs if exposure.sum() == 0 else _take(pairs, np.empty(0, dtype=np.int64))
    fraction = exposure / exposure[shown].sum()
    fewest_first = shown[np.argsort(have[shown] / fraction[shown], kind="stable")]
    # Exposure of a category and of all that have more pairs per exposure.
    reached = fraction[fewest_first][::-1].cumsum()[::-1]
    decisive = fewest_first[np.flatnonzero(reached >= MATCHED)[-1]]
    wanted = np.round(fraction * have[decisive] / fraction[decisive])
    order = rng.permutation(len(pairs))
    order = order[np.argsort(category[pairs.item[order]], kind="stable")]
    label = category[pairs.item[order]]
    place = np.arange(len(order)) - np.searchsorted(label, label)  # random rank within its category
    return _take(pairs, order[place < wanted[label]])


def exposures(
    log: pa.Table, until: datetime, items: Side, category: np.ndarray, categories: int
) -> np.ndarray:
    """How often items of each category were shown before ``until``.

    In a log without impressions all events are counted instead, as only items that were shown can be clicked or
    bought; rule 3 then removes little.

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
    """Rule 4: drop pairs in which a text names fewer than ``least`` entities.

    Args:
        pairs: P pairs.
        anchor_entities: int64 (A), number of entities in each anchor's text; NO_TEXT (a picture) passes.
        item_entities: int64 (M), the same for each item's title.
        least: entities that a text needs.
    """
    anchor, item = anchor_entities[pairs.anchor], item_entities[pairs.item]
    enough = ((anchor == NO_TEXT) | (anchor >= least)) & ((item == NO_TEXT) | (item >= least))
    return _take(pairs, np.flatnonzero(enough))


class EntityFinder(Protocol):
    """Named entity recognition, for example by a model."""

    def entities(self, text: str) -> set[str]:
        """The distinct entities that ``text`` names."""
        ...


class CatalogueEntities:
    """Entity recognition without a model: terms of the catalogue, found in a text word for word.

    Terms are category names, attribute values, and title words that at least COMMON_ITEMS items and at most
    WIDESPREAD of all items use. Case is ignored. Matching is greedy: the longest term that starts at a word is
    taken, and the search continues after it.

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
    """Number of entities in each text, int64; NO_TEXT where there is no text."""
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
