"""Every encoder recipe keeps the contract of ``contracts.encoder_recipe``, and none is without it."""

import inspect
from typing import get_type_hints

import pytest
from contracts.encoder_recipe import EncoderRecipeContract, contents, photo_shop

from encoder import recipes
from encoder.recipes import (
    Recipe,
    RecipeError,
    dual,
    moon,
    moon2,
    moon3,
    moon_embedding,
    ours,
    photos,
    recipe,
)

__all__ = ["contents", "photo_shop"]


class TestMoonEmbedding(EncoderRecipeContract):
    recipe, budget = staticmethod(moon_embedding), 0.8  # three stages, one of them of questions


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


def recipes_of(module):
    """The functions of a module that return a recipe and take nothing."""
    functions = dict(inspect.getmembers(module, inspect.isfunction)).values()
    return {
        one
        for one in functions
        if get_type_hints(one).get("return") is Recipe and not inspect.signature(one).parameters
    }


def test_no_recipe_is_without_the_contract():
    assert {suite.recipe for suite in EncoderRecipeContract.__subclasses__()} == recipes_of(recipes)


def test_every_recipe_is_found_by_its_name():
    for one in recipes_of(recipes):
        assert one().name == one.__name__ and recipe(one.__name__) == one()
    with pytest.raises(RecipeError, match="expected one of moon_embedding, moon"):
        recipe("moon4")
