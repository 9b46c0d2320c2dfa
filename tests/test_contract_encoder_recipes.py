"""Every encoder recipe keeps the contract of ``contracts.encoder_recipe``, and none is without it."""

import inspect
from typing import get_type_hints

import pytest
from contracts.encoder_recipe import EncoderRecipeContract, contents, photo_shop
from towers_world import tiny_towers

from encoder import recipes
from encoder.recipes import (
    RECIPES,
    Recipe,
    RecipeError,
    dual,
    moon,
    moon2,
    moon3,
    moon_embedding,
    ours,
    photos,
    pretrained,
    recipe,
    unfrozen,
)

__all__ = ["contents", "photo_shop"]


class TestMoonEmbedding(EncoderRecipeContract):
    recipe, budget = staticmethod(moon_embedding), 1.0  # three stages, one of them of questions


class TestMoon(EncoderRecipeContract):
    recipe = staticmethod(moon)


class TestMoon2(EncoderRecipeContract):
    recipe = staticmethod(moon2)


class TestMoon3(EncoderRecipeContract):
    recipe = staticmethod(moon3)


class TestDual(EncoderRecipeContract):
    recipe = staticmethod(dual)


class TestOurs(EncoderRecipeContract):
    recipe = staticmethod(ours)


class TestPhotos(EncoderRecipeContract):
    recipe = staticmethod(photos)


class TestPretrained(EncoderRecipeContract):
    recipe = staticmethod(pretrained)

    @pytest.fixture(scope="class")
    def checkpoint(self, tmp_path_factory):
        return tiny_towers(tmp_path_factory.mktemp("towers"))


class TestUnfrozen(EncoderRecipeContract):
    recipe = staticmethod(unfrozen)

    @pytest.fixture(scope="class")
    def checkpoint(self, tmp_path_factory):
        return tiny_towers(tmp_path_factory.mktemp("towers"))


def test_no_recipe_is_without_the_contract():
    assert {suite.recipe for suite in EncoderRecipeContract.__subclasses__()} == set(RECIPES.values())


def test_every_recipe_written_is_found_by_its_name():
    written = {
        name: one
        for name, one in inspect.getmembers(recipes, inspect.isfunction)
        if get_type_hints(one).get("return") is Recipe and not inspect.signature(one).parameters
    }
    assert written == RECIPES
    for name, one in written.items():
        assert one().name == name and recipe(name) == one()
    with pytest.raises(RecipeError, match="expected one of moon_embedding, moon"):
        recipe("moon4")
