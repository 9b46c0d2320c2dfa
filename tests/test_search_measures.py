"""Searches are judged by what the catalogue says and, in the simulated shop, by what is so."""

import numpy as np
import pytest

from dataset.marketplace.catalogue import FACETS
from dataset.marketplace.simulate import simulate
from dataset.tables import Dataset, write_dataset
from evaluation.search import searches
from evaluation.truth import Judge


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.open(write_dataset(tmp_path_factory.mktemp("shop") / "dataset", *simulate(2_500, 5)))


def test_right_by_the_truth_is_what_has_the_values_whether_listed_or_not(dataset):
    catalogue = Judge.of(dataset).world.catalogue
    values = list(FACETS.values())
    truly = {
        int(item): {values[column][number] for column, number in enumerate(row)}
        for item, row in zip(catalogue.item_id.tolist(), catalogue.facet.tolist(), strict=True)
    }
    asked = searches(dataset, np.random.default_rng(0))
    unlisted = 0
    for one in asked["one_word"]:
        word = {
            item
            for item, own in truly.items()
            if one.text in {w.lower() for value in own for w in value.split()}
        }
        assert set(one.true) == word
        unlisted += len(word - set(one.grades))
    assert unlisted > 20, "the catalogue leaves attributes out"
    for one in asked["values"]:
        words = set(one.text.split())
        having = {
            item
            for item, own in truly.items()
            if words <= {w.lower() for value in own for w in value.split()}
        }
        assert set(one.true) <= having and (one.true or not having)
    assert any(one.true for one in asked["values"])
    assert not any(one.true for one in asked["title"]), "a title is of one item"
