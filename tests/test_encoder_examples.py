"""What training sees beyond plain pairs: cleaning rules, hard negatives, co-augmentation."""

import doctest
import time
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from encoder_world import START, event, item_row
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.contracts import EVENTS
from encoder.backbone.packing import Sample
from encoder.examples import cleaning
from encoder.examples.augment import photographed
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
from encoder.examples.warp import homographies, warped
from encoder.stages.coaugment import (
    Coaugmented,
    ProceduralVariants,
    TemplateEnricher,
    consistent,
    product_opacity,
)


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
        item_row(n, "red", "disc", None, title=f"Cotton tee {n} 50", category=["Women", "Vest top"])
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
    assert finder.entities("plain 50") == set()  # in most titles; a number
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


# co-augmentation


class Finder:
    def entities(self, text):
        return {word for word in ("zip", "hood", "red") if word in text.lower()}


RECORD = item_row(
    1, "red", "x", None, title="Red jacket", description="A red jacket with a zip and a hood.",
    category=["Men", "Coats"], attributes=[("main_colour", "Red"), ("fabric", "Wool")],
)  # fmt: skip


def test_enriched_titles_say_what_is_known_of_the_item_in_changing_words():
    enricher = TemplateEnricher(Finder())
    texts = [enricher.enrich(RECORD, np.random.default_rng(seed)) for seed in range(200)]
    assert texts == [enricher.enrich(RECORD, np.random.default_rng(seed)) for seed in range(200)]
    assert len(set(texts)) > 150
    known = set("red jacket with hood zip men coats main colour: colour red wool fabric: fabric".split())
    spoken = {word.strip(",").lower() for text in texts for word in text.split()}
    assert spoken == known
    assert 0.85 < np.mean(["jacket" in text for text in texts]) < 0.97  # a word is lost one time in ten
    assert 0.4 < np.mean(["hood" in text for text in texts]) < 0.75  # the description is read for entities
    blank = item_row(2, "", "", None, title=None, category=[], attributes=[])
    assert enricher.enrich(blank, np.random.default_rng(0)) == ""


def shirt(surroundings, px=64):
    """A dark product with a hole of the surroundings' colour, and its mask."""
    picture = np.full((px, px, 3), surroundings, dtype=np.uint8)
    picture[16:48, 20:44] = (120, 20, 30)
    picture[28:34, 28:34] = surroundings
    mask = np.zeros((px, px), dtype=bool)
    mask[16:48, 20:44] = True
    return picture, mask


def test_the_product_is_told_from_plain_surroundings_without_holes_and_not_from_clutter():
    clutter = np.random.default_rng(0).integers(0, 255, size=(64, 64, 3), dtype=np.uint8)
    picture, mask = shirt((230, 232, 228))
    opacity = product_opacity(np.stack([picture, clutter, np.full_like(picture, 200)]))
    assert np.array_equal(opacity[0] > 0.5, mask)
    assert (opacity[1] == 1).all() and (opacity[2] == 0).all()


def test_each_edit_changes_what_it_is_for_and_keeps_the_product():
    picture, mask = shirt((230, 232, 228))
    pixels = np.stack([picture] * 80)
    varied = ProceduralVariants().vary(pixels, [""] * 80, np.random.default_rng(5))
    edit = np.random.default_rng(5).integers(4, size=80)
    assert varied.shape == pixels.shape and varied.dtype == np.float32
    assert varied.min() >= 0 and varied.max() <= 255 and np.bincount(edit).min() > 5
    main, background, view, detail = (varied[edit == kind] for kind in range(4))
    body = mask.copy()
    body[28:34, 28:34] = False
    for edited in (main, background):
        np.testing.assert_allclose(
            edited[:, body], np.broadcast_to(picture[body], edited[:, body].shape), atol=1
        )
    assert (main[:, ~mask] == 255).all()
    assert (np.abs(background[:, ~mask] - picture[~mask]).mean((1, 2)) > 10).mean() > 0.9
    assert len({tuple(one[0, 0].round()) for one in background}) > len(background) // 2
    reddish = (detail[..., 0] - detail[..., 1] > 60).mean((1, 2))
    assert (reddish > 1.5 * body.mean()).mean() > 0.8  # magnified
    assert np.ptp(view.mean((1, 2, 3))) > 20  # light
    assert (np.abs(view - picture).mean((1, 2, 3)) > 3).all()
    assert np.array_equal(varied, ProceduralVariants().vary(pixels, [""] * 80, np.random.default_rng(5)))


def test_bars_of_a_squared_picture_become_surroundings():
    tall = np.full((64, 64, 3), 255, dtype=np.uint8)
    tall[:, 11:53] = (200, 205, 210)
    tall[20:40, 24:40] = (10, 60, 20)
    varied = ProceduralVariants().vary(np.stack([tall] * 40), [""] * 40, np.random.default_rng(0))
    edit = np.random.default_rng(0).integers(4, size=40)
    outside = np.abs(varied[edit == 1][:, 30, 2] - varied[edit == 1][:, 30, 14]).max()
    assert outside < 60  # one background across the bar's edge
    assert (varied[edit == 0][:, 30, 14] == 255).all()


def test_maps_move_pictures_as_they_say():
    picture = torch.zeros(1, 3, 8, 8)
    picture[0, :, 2, 5] = 9
    still = homographies(np.zeros(1), np.ones((1, 2)), np.zeros(1), np.zeros((1, 2)), np.zeros((1, 2)))
    assert torch.allclose(warped(picture, still), picture, atol=1e-4)
    moved = homographies(np.zeros(1), np.ones((1, 2)), np.zeros(1), np.array([[0.5, 0.25]]), np.zeros((1, 2)))
    wanted = torch.zeros(1, 3, 8, 8)
    wanted[0, :, 1, 3] = 9  # two columns and one row up: -1..1 is eight pixels
    assert torch.allclose(warped(picture, moved), wanted, atol=1e-4)
    mirrored = homographies(
        np.zeros(1), np.array([[-1.0, 1.0]]), np.zeros(1), np.zeros((1, 2)), np.zeros((1, 2))
    )
    assert torch.allclose(warped(picture, mirrored), picture.flip(-1), atol=1e-4)


def test_another_photo_differs_follows_its_seed_and_keeps_its_colour():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, size=(60, 32, 32, 3), dtype=np.uint8)
    changed = photographed(pixels, np.random.default_rng(1))
    assert changed.shape == pixels.shape and changed.dtype == np.float32
    assert changed.min() >= 0 and changed.max() <= 255
    assert (np.abs(changed - pixels).mean((1, 2, 3)) > 10).all()
    assert np.array_equal(changed, photographed(pixels, np.random.default_rng(1)))
    assert not np.array_equal(changed, photographed(pixels, np.random.default_rng(2)))
    grey = photographed(np.full((200, 32, 32, 3), 128, dtype=np.uint8), np.random.default_rng(3))
    pieces = np.array([len(np.unique(one.reshape(-1, 3).round(), axis=0)) for one in grey])
    assert set(pieces.tolist()) == {1, 2} and 0.35 < (pieces == 2).mean() < 0.65  # half of them are covered
    plain = grey[pieces == 1][:, 0, 0]
    ratio = plain[:, 0] / plain[:, 1]  # 8 % up of one and 8 % down of the other at most
    assert 0.85 <= ratio.min() < 0.95 and 1.05 < ratio.max() <= 1.18
    assert 0.69 <= plain.mean(1).min() / 128 < 0.85


@pytest.mark.parametrize("count", range(4))
def test_a_few_pictures_or_none_are_no_special_case(count):
    pixels = np.stack([shirt((230, 232, 228), px=64)[0]] * 3)[:count]
    for seed in range(8):
        rng = np.random.default_rng(seed)
        assert ProceduralVariants().vary(pixels, [""] * count, rng).shape == pixels.shape
        assert photographed(pixels, rng).shape == pixels.shape


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.05, 0.5]))
@settings(max_examples=30, deadline=None)
def test_consistency_is_the_loss_of_cosine_in_a_plain_loop(seed, tolerance):
    variant, original, title = np.random.default_rng(seed).normal(size=(3, 9, 5))

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    wanted = [
        cosine(v, t) >= cosine(o, t) - tolerance for v, o, t in zip(variant, original, title, strict=True)
    ]
    assert consistent(variant, original, title, tolerance).tolist() == wanted


def test_products_carry_an_enriched_title_and_the_variants_their_title_agrees_with():
    class Words:
        pad_token_id, eos_token_id = 0, 0

        def __call__(self, texts, **_):
            return {"input_ids": [[100 + len(word) for word in text.split()] for text in texts]}

    class Enricher:
        def enrich(self, record, rng):
            return "rich " + record["title"]

    class Darken:
        """Every second variant is black: nothing like a bright title."""

        def vary(self, pixels, titles, rng):
            assert pixels.dtype == np.uint8 and titles == ["rich a", "rich b", "rich c"]
            return pixels * np.array([1.0, 0.0, 0.0], dtype=np.float32)[:, None, None, None]

    class Model:
        """Bright pictures and words point one way, dark pictures another."""

        def vectors(self, samples):
            bright = [bool(s.tokens) or s.pictures[0].mean() > 50 for s in samples]
            return torch.tensor([[1.0, 0.0] if one else [0.0, 1.0] for one in bright])

    side = Side(
        ids=np.arange(4),
        tokens=[[1, 2], [3], [], [4]],
        kinds=[[1, 0], [2], [], [0]],
        image=np.array([0, 1, 2, -1]),
    )
    records = [{"title": title} for title in "abcd"]
    pixels = np.full((3, 8, 8, 3), 200, dtype=np.uint8)
    learner = SimpleNamespace(
        corpus=SimpleNamespace(items=side, records=records, pixels=pixels),
        tokenizer=Words(),
        size=SimpleNamespace(text_tokens=16),
        model=Model(),
    )
    coaugmented = Coaugmented(learner, Enricher(), Darken())
    given = [
        Sample(side.tokens[row], (pixels[row],) if row < 3 else (), side.kinds[row] if row else None)
        for row in range(4)
    ]
    out = coaugmented(np.arange(4), given, np.random.default_rng(0))
    assert [list(s.tokens) for s in out] == [[1, 2, 104, 101], [3, 104, 101], [104, 101], [4, 104, 101]]
    assert [list(s.kinds) for s in out] == [[0, 0, 0, 0], [2, 0, 0], [0, 0], [0, 0, 0]]
    assert [len(s.pictures) for s in out] == [2, 1, 2, 0]  # b's variant contradicts its words; c has none
    assert (out[0].pictures[0] == 200).all() and (out[2].pictures[1] == 0).all()
    assert (coaugmented.made, coaugmented.kept) == (3, 2)
