"""The probe of what vectors remember gives what was planted: all of it, none of it, or the share that was put in."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from dataset.marketplace.catalogue import FACET_START, FACETS, make_catalogue
from dataset.marketplace.rules import DEFAULT, Rules
from dataset.marketplace.shoppers import make_shoppers
from evaluation.facets import Facets, Tastes, linear_share, reduced, remembered

RNG = np.random.default_rng(0)


def rows(count, rng):
    """Items whose brand is one of four, whose colour one of three, and whose price follows from both."""
    brand, colour = rng.integers(4, size=count), rng.integers(3, size=count)
    return (
        brand,
        colour,
        [
            {
                "category": ["all"],
                "attributes": [("brand", f"b{b}"), ("colour", f"c{c}")],
                "price": float(np.expm1(1 + b + 0.5 * c)),
            }
            for b, c in zip(brand.tolist(), colour.tolist(), strict=True)
        ],
    )


def hot(numbers, classes):
    return np.eye(classes, dtype=np.float32)[numbers]


def measured(train, test):
    rng = np.random.default_rng(1)
    sides = [rows(count, rng) for count in (400, 200)]
    facets = Facets.of(*(one[2] for one in sides))
    vectors = [make(brand, colour) for make, (brand, colour, _) in zip((train, test), sides, strict=True)]
    return {one.name: one for one in remembered(facets, *vectors, "planted", "e")}


def test_what_is_in_the_vectors_is_read_and_what_is_not_is_guessed():
    def both(brand, colour):
        return np.concatenate([hot(brand, 4), hot(colour, 3)], axis=1)

    def only_brand(brand, colour):
        return np.concatenate([hot(brand, 4), np.zeros((len(brand), 3), np.float32)], axis=1)

    found = measured(both, both)
    assert found["e/facets/brand/accuracy"].value == found["e/facets/colour/accuracy"].value == 1
    assert found["e/facets/accuracy"].value == 1 and found["e/facets/price/r2"].value > 0.999
    assert "e/facets/category_1/accuracy" not in found, "one class is no question"
    less = measured(only_brand, only_brand)
    assert less["e/facets/brand/accuracy"].value == 1
    usual = less["e/chance/facets/colour/accuracy"].value
    assert less["e/facets/colour/accuracy"].value == pytest.approx(usual, abs=0.1) and usual < 0.5
    # Prices vary by the brand with a standard deviation of sqrt(5 / 4), by the colour with half of sqrt(2 / 3).
    assert less["e/facets/price/r2"].value == pytest.approx(1.25 / (1.25 + 1 / 6), abs=0.03)


def test_items_without_a_vector_are_neither_learned_from_nor_asked_for():
    def every_second(brand, colour):
        out = np.concatenate([hot(brand, 4), hot(colour, 3)], axis=1)
        out[::2] = 0
        return out

    found = measured(every_second, every_second)
    assert found["e/facets/brand/accuracy"].n == found["e/facets/price/r2"].n == 100
    assert found["e/facets/brand/accuracy"].value == 1


def test_linear_share_is_the_share_that_was_planted():
    x = RNG.normal(size=(3000, 8)).astype(np.float32)
    heard = x @ RNG.normal(size=(8, 5)) / np.sqrt(8)
    noise = RNG.normal(size=heard.shape) * heard.std()
    learn, ask = slice(0, 2000), slice(2000, None)
    assert linear_share(x[learn], heard[learn], x[ask], heard[ask]) > 0.999
    half = heard + noise
    assert linear_share(x[learn], half[learn], x[ask], half[ask]) == pytest.approx(0.5, abs=0.05)
    assert linear_share(x[learn], noise[learn], x[ask], noise[ask]) == pytest.approx(0, abs=0.02)


def a_world(rules: Rules):
    rng = np.random.default_rng(3)
    catalogue = make_catalogue(800, rng, circles=rules.behaviour > 0)
    world = SimpleNamespace(catalogue=catalogue, shoppers=make_shoppers(120, rng, rules))
    return SimpleNamespace(world=world, items=catalogue.item_id)


def shares(tastes, vectors):
    learn = np.arange(len(vectors)) % 4 > 0
    return {one.name: one.value for one in tastes.linear(vectors, learn, ~learn, "planted", "e")}


def test_the_true_properties_hold_all_tastes_and_without_the_brand_those_of_words_suffer():
    judge = a_world(DEFAULT)
    tastes, by_id = Tastes.of(judge), np.argsort(judge.items)
    properties = judge.world.catalogue.properties()[by_id]
    found = shares(tastes, properties)
    assert set(found) == {
        f"e/taste/{where}/linear" for where in ("pixels", "words", "both", "behaviour", "content")
    }
    assert min(found.values()) > 0.999
    brandless = properties.copy()
    brandless[:, FACET_START["brand"] : FACET_START["brand"] + len(FACETS["brand"])] = 0
    less = shares(tastes, brandless)
    assert less["e/taste/pixels/linear"] > 0.999 and less["e/taste/both/linear"] > 0.999
    assert less["e/taste/words/linear"] < less["e/taste/content/linear"] < 0.95
    columns = np.delete(
        np.arange(properties.shape[1]), FACET_START["brand"] + np.arange(len(FACETS["brand"]))
    )
    interest = judge.world.shoppers.interest
    kept, every = (
        properties[:, one] @ interest[:, one].T for one in (columns, np.arange(properties.shape[1]))
    )
    assert np.var(kept, axis=0).sum() < np.var(every, axis=0).sum(), "the brand is a part of the taste"


def test_a_taste_that_nobody_has_is_not_asked_for():
    tastes = Tastes.of(a_world(Rules(users=100, pixels=0)))
    assert set(tastes.likes) == {"words", "both"}


def test_reduced_rows_of_full_rank_keep_every_cosine():
    wide = RNG.normal(size=(40, 6)) @ RNG.normal(size=(6, 30))
    project = reduced(sparse.csr_array(wide.astype(np.float32)), 7)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    vectors = project(sparse.csr_array(wide.astype(np.float32)))
    np.testing.assert_allclose(vectors @ vectors.T, unit @ unit.T, atol=1e-4)
    assert not project(sparse.csr_array(np.zeros((1, 30), np.float32))).any(), "nothing said, no vector"
