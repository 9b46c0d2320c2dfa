"""The comparison trains and examines every recipe once, goes on where it stopped, and refuses other terms."""

import json
from dataclasses import replace

import pytest
from encoder_world import shop

from encoder.recipes import dual, ours
from evaluation.science.encoders.compare import PLAIN, ComparisonError, compare, papers
from evaluation.science.encoders.report import render_encoder_report
from run.sizes import size


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    dataset, _ = shop(folder, items=400)
    terms = {
        "data": dataset.artifact.path,
        "out": folder / "encoders",
        "dial": size("nano"),
        "recipes": {recipe.name: recipe for recipe in (dual(), ours())},
        "sweep": {},
        "seeds": (0, 1),
        "cpu_seconds": 1.0,
        "reasoning": False,
    }
    return dataset, terms, compare(**terms)


@pytest.mark.slow
def test_every_recipe_and_plain_row_is_in_the_table_with_its_seeds(compared):
    _, terms, table = compared
    content = json.loads((terms["out"] / "table.json").read_text())
    assert set(content) == {*PLAIN, "dual", "ours"} == set(table.rows)
    assert content["ours"]["encoder/trained_cpu_seconds"]["seeds"] == 2
    assert content["ours"]["encoder/trained_cpu_seconds"]["mean"] == pytest.approx(1.0, rel=0.8)
    assert "| ours |" in (terms["out"] / "table.md").read_text()


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again(compared):
    _, terms, _ = compared
    files = sorted((terms["out"] / "measurements").glob("*.json"))
    before = [path.stat().st_mtime_ns for path in files]
    lost = next(path for path in files if path.name == "ours.1.json")
    lost.unlink()
    compare(**terms)
    changed = [path.name for path, time in zip(files, before, strict=True) if path.stat().st_mtime_ns != time]
    assert changed == ["ours.1.json"]


@pytest.mark.slow
def test_other_terms_and_the_page(compared):
    dataset, terms, _ = compared
    with pytest.raises(ComparisonError, match="asked for.*Remove it"):
        compare(**{**terms, "cpu_seconds": 2.0})
    page = render_encoder_report(terms["out"], dataset, {"encoder/effective_rank": "effective rank"})
    assert "<html" in page.read_text()[:200]


def test_the_papers_are_all_there():
    assert list(papers()) == ["dual", "moon_embedding", "moon", "moon2", "moon3", "ours"]
    assert all(replace(recipe, name=name) == recipe for name, recipe in papers().items())
