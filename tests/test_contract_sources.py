"""Every candidate source keeps the contract of ``contracts.source``, and none is without it."""

import importlib
import inspect
import pkgutil
from typing import get_type_hints

from contracts.source import SourceContract, shop

import retrieval
from retrieval.repeats import RepeatsSource
from retrieval.sources import (
    CooccurrenceSource,
    PopularSource,
    SimilarSource,
    Source,
    profile_source,
    query_source,
    two_tower_source,
)
from retrieval.taste_source import TasteSource
from retrieval.words_source import WordsSource

__all__ = ["shop"]


class TestSimilar(SourceContract):
    source = SimilarSource


class TestProfile(SourceContract):
    source = staticmethod(profile_source)


class TestCooccurrence(SourceContract):
    source = CooccurrenceSource


class TestWords(SourceContract):
    source = WordsSource


class TestTaste(SourceContract):
    source = TasteSource


class TestRepeats(SourceContract):
    source = RepeatsSource


class TestTwoTower(SourceContract):
    source = staticmethod(two_tower_source)


class TestQuery(SourceContract):
    source = staticmethod(query_source)


class TestPopular(SourceContract):
    source = PopularSource
    personal = False


def sources_of(package):
    """The classes of sources in a package, and the functions that say they return one."""
    modules = [
        importlib.import_module(one.name)
        for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    classes = {
        one
        for module in modules
        for _, one in inspect.getmembers(module, inspect.isclass)
        if Source in one.__mro__ and one is not Source
    }
    functions = {
        one
        for module in modules
        for _, one in inspect.getmembers(module, inspect.isfunction)
        if one.__module__ == module.__name__
    }
    returned = {one: get_type_hints(one).get("return") for one in functions}
    return classes, {one: kind for one, kind in returned.items() if kind in classes}


def test_no_source_of_the_product_is_without_the_contract():
    classes, factories = sources_of(retrieval)
    under = {suite.source for suite in SourceContract.__subclasses__()}
    assert factories.keys() - under == set(), (
        "give each a line here: class TestIt(SourceContract): source = ..."
    )
    assert classes - under - set(factories.values()) == set()
    assert under == (classes | factories.keys()) - set(factories.values())
