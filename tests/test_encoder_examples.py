"""What training sees beyond plain pairs: cleaning rules, hard negatives, co-augmentation."""

import doctest
import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from encoder_world import START, event, item_row
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.contracts import EVENTS
from encoder.examples import cleaning
from encoder.examples.cleaning import (
    CatalogueEntities,
    clean,
    enough_entities,
    entity_counts,
    exposures,
    hardest_per_item,
    like_exposure,
    one_per_product,
)
from encoder.examples.corpus import Side
from encoder.examples.negatives import CategoryNegatives, deepest_categories
from encoder.examples.pairs import Pairs


def pairs(*rows):
    array = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return Pairs(array[:, 0], array[:, 1])


def listed(kept):
    return list(zip(kept.anchor.tolist(), kept.item.tolist(), strict=True))


# cleaning rule 1


def test_the_least_similar_query_of_each_item_is_kept_the_first_of_equals():
    given = pairs((0, 7), (1, 7), (2, 7), (3, 9), (4, 5), (5, 5))
    kept = hardest_per_item(given, np.array([0.9, 0.2, 0.4, 0.8, 0.5, 0.5]))
    assert listed(kept) == [(1, 7), (3, 9), (4, 5)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), max_size=30))
@settings(deadline=None)
def test_hardest_per_item_equals_a_plain_loop(rows):
    best = {}
    for place, (_, item, similarity) in enumerate(rows):
        if item not in best or similarity < rows[best[item]][2]:
            best[item] = place
    kept = hardest_per_item(
        pairs(*[row[:2] for row in rows]), np.array([row[2] for row in rows], dtype=float)
    )
    assert listed(kept) == [rows[place][:2] for place in sorted(best.values())]


# rule 2


def test_an_anchor_keeps_the_most_bought_variant_of_a_product():
    spu = np.array([100, 100, 100, 200])
    given = pairs((0, 0), (0, 1), (1, 1), (2, 2), (2, 3), (2, 3), (3, 2), (3, 0))
    # item 1 and 2 have two pairs each, item 0 too, item 3 has two: of equals the lowest row
    assert listed(one_per_product(given, spu)) == [(0, 0), (1, 1), (2, 2), (2, 3), (3, 0)]
    more = pairs((0, 0), (0, 1), (5, 1))
    assert listed(one_per_product(more, spu)) == [(0, 1), (5, 1)]


# rule 3


def test_categories_match_exposure_and_only_shrink():
    rng = np.random.default_rng(0)
    category = np.array([0, 1, 2, 3])  # one item each
    items = rng.permutation(np.repeat([0, 1, 2, 3], [800, 150, 100, 2]))
    given = Pairs(np.arange(len(items)), items)
    kept = like_exposure(given, category, np.array([30.0, 30.0, 39.0, 1.0]), np.random.default_rng(1))
    count = np.bincount(kept.item, minlength=4)
    # 2 pairs of a category with 1 % of exposure are too few to decide: the other three match each other
    assert count.tolist() == [77, 77, 100, 2]
    assert np.isin(kept.anchor, given.anchor).all() and (np.diff(kept.anchor) > 0).all()
    again = like_exposure(given, category, np.array([30.0, 30.0, 39.0, 1.0]), np.random.default_rng(1))
    other = like_exposure(given, category, np.array([30.0, 30.0, 39.0, 1.0]), np.random.default_rng(2))
    assert listed(kept) == listed(again) != listed(other)


def test_what_already_matches_stays_and_what_is_never_shown_goes():
    given, category = pairs(*[(n, n % 4) for n in range(40)]), np.array([0, 0, 1, 2])
    rng = np.random.default_rng(0)
    assert listed(like_exposure(given, category, np.array([2.0, 1.0, 1.0]), rng)) == listed(given)
    assert np.bincount(
        like_exposure(given, category, np.array([0.0, 1.0, 1.0]), rng).item, minlength=4
    ).tolist() == [0, 0, 10, 10]
    assert listed(like_exposure(given, category, np.zeros(3), rng)) == listed(given)  # nothing is known
    assert len(like_exposure(pairs(), category, np.ones(3), rng)) == 0


@given(
    have=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    weight=st.lists(st.integers(0, 9), min_size=6, max_size=6),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_rebalancing_never_invents_and_comes_closer_to_exposure(have, weight, seed):
    exposure = np.array(weight[: len(have)], dtype=float)
    items = np.repeat(np.arange(len(have)), have)
    kept = like_exposure(
        Pairs(np.arange(len(items)), items), np.arange(len(have)), exposure, np.random.default_rng(seed)
    )
    count = np.bincount(kept.item, minlength=len(have))
    assert (count <= have).all() and len(np.unique(kept.anchor)) == len(kept)
    if exposure.sum() and len(kept) > 20 and all(have):
        target = exposure / exposure.sum()

        def distance(n):
            return np.abs(n / n.sum() - target).sum() / 2

        assert distance(count) <= distance(np.array(have)) + 0.1


def test_exposures_are_impressions_where_there_are_any_and_all_events_otherwise():
    items = Side(ids=np.array([10, 20, 30]), tokens=[[]] * 3, kinds=[[]] * 3, image=np.full(3, -1))
    category, late = np.array([0, 1, 1]), START + timedelta(days=9)
    bought = [event(n, 1, item, START) for n, item in enumerate((10, 10, 20, 99))]
    later = [event(8, 1, 30, late)]
    shown = [event(20 + n, 1, item, START, type="impression") for n, item in enumerate((30, 20, 20, 10))]

    def count(rows):
        log = pa.Table.from_pylist(rows, EVENTS)
        return exposures(log, START + timedelta(days=1), items, category, 3).tolist()

    assert count(bought + later) == [2, 1, 0]
    assert count(bought + shown + later) == [1, 3, 0]


# rule 4


def rows_of_a_shop():
    rows = [
        item_row(n, "red", "disc", None, title=f"Cotton tee {n}", category=["Women", "Vest top"])
        for n in range(6)
    ]
    rows += [
        item_row(
            10 + n, "x", "x", None, title="Plain", category=["Men", "Hat"], attributes=[("c", "Light blue")]
        )
        for n in range(24)
    ]
    return rows


def test_entities_are_catalogue_terms_found_word_for_word_longest_first():
    finder = CatalogueEntities(rows_of_a_shop())
    assert finder.entities("LIGHT-BLUE light blue vest top, vest") == {"light blue", "vest top"}
    assert finder.entities("cotton tee for women") == {"cotton", "tee", "women"}
    assert finder.entities("light hat. Hat") == {"hat"}
    assert finder.entities("plain 3") == set()  # in most titles; a number
    assert CatalogueEntities([]).entities("anything") == set()


def test_pairs_with_a_text_of_one_entity_go_and_pictures_pass():
    counts = entity_counts(["red hat", "hat", None, " "], CatalogueEntities(rows_of_a_shop()))
    assert counts.tolist() == [2, 1, -1, -1]
    given = pairs((0, 0), (1, 0), (2, 0), (0, 1), (0, 2))
    assert listed(enough_entities(given, counts, np.array([2, 1, -1]))) == [(0, 0), (2, 0), (0, 2)]


def test_entity_docstring():
    assert doctest.testmod(cleaning).failed == 0


def test_clean_applies_all_four_in_order_and_counts():
    """Each rule removes what only it objects to; without any one of them the answer would differ."""
    given = pairs((0, 0), (1, 0), (1, 1), (1, 2), *[(2, n) for n in range(3, 9)], (3, 9), (4, 10))
    similarity = np.array([0.9, 0.1, 0.2, 0.2, *[0.5] * 6, 0.5, 0.5])
    spu = np.array([0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 10])
    category = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0])
    kept, counts = clean(
        given,
        similarity,
        spu,
        category,
        np.array([2.0, 1.0]),
        anchor_entities=np.array([2, 2, 2, 1, 2]),
        item_entities=np.full(11, 2),
        rng=np.random.default_rng(0),
    )
    assert counts == {
        "given": 12,
        "hardest per item": 11,
        "one per product": 10,
        "like exposure": 6,
        "enough entities": 5,
    }
    assert set(listed(kept)) > {(1, 0), (1, 1), (4, 10)} and sum(a == 2 for a, _ in listed(kept)) == 2


# hard negatives


def test_the_category_is_the_deepest_with_enough_items_what_is_left_moves_up():
    paths = [
        *[("w", "dress", "maxi")] * 3,
        *[("w", "dress", "mini")] * 1,
        *[("w", "dress")] * 2,
        ("w", "hat"),
        (),
    ]
    code = deepest_categories(paths, least=3).tolist()
    assert code == [0, 0, 0, 1, 1, 1, 2, 2]  # maxi; rest of dress; a hat and nothing at all: the whole shop
    assert deepest_categories([], least=3).tolist() == []
    assert deepest_categories([None, ["a"], ["a"]], least=2).tolist() == [0, 1, 1]


def world(seed=0, items=60):
    rng = np.random.default_rng(seed)
    category, spu = rng.integers(5, size=items), rng.integers(25, size=items)
    return category, spu, (rng.integers(items, size=90), rng.integers(items, size=90))


def slow_allowed(category, spu, related, item, anchor):
    """The definition, one item at a time."""
    together = {frozenset(pair) for pair in zip(*(side.tolist() for side in related), strict=True)}
    return {
        other
        for other in range(len(spu))
        if category[other] == category[item]
        and all(spu[other] != spu[p] and frozenset((other, p)) not in together for p in (item, anchor))
    }


@pytest.mark.parametrize("with_anchor", [True, False])
def test_negatives_are_exactly_the_allowed_items_equally_often(with_anchor):
    category, spu, related = world()
    negatives = CategoryNegatives(category, spu, related)
    item = np.arange(60)
    anchor = np.roll(item, 7) if with_anchor else item
    drawn = negatives.draw(item, np.random.default_rng(0), 300, anchor if with_anchor else None)
    assert drawn.shape == (60, 300)
    for row in range(60):
        allowed = slow_allowed(category, spu, related, row, anchor[row])
        assert set(drawn[row].tolist()) == (allowed or {-1})
        if allowed:
            share = np.bincount(drawn[row], minlength=60)[sorted(allowed)] / 300
            assert np.abs(share - 1 / len(allowed)).max() < 5 * np.sqrt(1 / len(allowed) / 300)


def test_an_item_alone_in_its_category_or_among_its_variants_has_no_negative():
    negatives = CategoryNegatives(
        np.array([0, 1, 1, 2, 2]), np.array([0, 1, 1, 3, 4]), (np.array([3]), np.array([4]))
    )
    assert (negatives.draw(np.arange(5), np.random.default_rng(0), 3) == -1).all()
    free = CategoryNegatives(np.array([2, 2]), np.array([3, 4]), (np.empty(0, int), np.empty(0, int)))
    assert free.draw(np.array([0, 1]), np.random.default_rng(0)).tolist() == [[1], [0]]


def test_the_same_seed_draws_the_same_negatives_fast():
    rng = np.random.default_rng(0)
    items = 20_000
    negatives = CategoryNegatives(
        rng.integers(200, size=items),
        rng.integers(10_000, size=items),
        (rng.integers(items, size=400_000), rng.integers(items, size=400_000)),
    )
    batch = rng.integers(items, size=128)
    assert np.array_equal(*(negatives.draw(batch, np.random.default_rng(3), 2) for _ in range(2)))
    times = []
    for _ in range(50):
        started = time.perf_counter()
        negatives.draw(batch, rng)
        times.append(time.perf_counter() - started)
    assert min(times) < 2e-3  # 1 ms on an idle core
