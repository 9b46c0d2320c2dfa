"""The comparison trains every recipe once with each seed, measures all alike, and goes on where it stopped."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from ranker_world import Requests, auc, make_world
from typer.testing import CliRunner

from evaluation.science.rankers import compare as module
from evaluation.science.rankers.compare import COLUMNS, ComparisonError, compare
from moon.cli import app
from ranker import recipes
from ranker.modules.numbers import Numbers
from ranker.recipes import attention, recipe, simtier
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(size("nano"), id_width=4, history=50, ranker_slots=512)
OLD = np.arange(240)
TRAIN, VALID, TEST = (make_world(requests=r, old_items=OLD, seed=s) for r, s in ((200, 0), (40, 1), (120, 2)))
LABEL = TEST.frame.candidates["label"].to_numpy()
ITEM = TEST.frame.candidates["item_id"].to_numpy()
USER = np.repeat(TEST.frame.requests["user_id"].to_numpy(), np.diff(TEST.frame.offsets))
COLD = TEST.vectors.ids[200:240]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A run whose frames are a planted world: its plain control knows the truth."""
    artifact = SimpleNamespace(id="a")
    retriever = SimpleNamespace(artifacts={"embedding": artifact}, vectors=TRAIN.vectors)
    trained = []

    def scored(folder, split, size, retriever, rankers):
        logits = {name: one.score(TEST.frame) for name, one in rankers.items()}
        return SimpleNamespace(label=LABEL, item_id=ITEM, user_id=USER, logits=logits)

    def train(*given, seed, recipe, **rest):
        trained.append((recipe.name, seed))
        assert not list((tmp_path / "recipes").glob(f"{recipe.name}_{seed}*.partial")), (
            "it would not be timed whole"
        )
        return real(*given, seed=seed, recipe=recipe, epochs=2, **rest)

    real = module.train_ctr
    truth = SimpleNamespace(
        probabilities=lambda *shown: {"logistic": TEST.probability, "boosting": TEST.probability}
    )
    for name, what in {
        "open_retrieval": lambda *where, **how: {},
        "as_stored": lambda vectors, store: vectors,
        "ranker_frames": lambda *run: (Requests(TRAIN.frame), Requests(VALID.frame), "pointwise"),
        "score_impressions": scored,
        "item_slices_of": lambda *run: {"cold": COLD},
        "answerable": lambda *run: None,
        "train_ctr": train,
    }.items():
        monkeypatch.setattr(module, name, what)
    monkeypatch.setattr(module.Retriever, "open", lambda artifacts: retriever)
    monkeypatch.setattr(module.PlainContent, "of", lambda *tables: None)
    monkeypatch.setattr(module.PlainControls, "fit", lambda *given: truth)
    monkeypatch.setattr(module.Examples, "of", lambda rows: SimpleNamespace(asked=0, offsets=0, item_id=0))
    split = SimpleNamespace(
        artifact=artifact, shows=True, ranking=pa.table({"part": ["test"]}), test_log=None
    )
    dataset = SimpleNamespace(items=None, images=None)
    chosen = {one.name: one for one in (attention(), simtier())}
    return SimpleNamespace(
        trained=trained, run=lambda seeds, recipes=chosen: compare(tmp_path, dataset, split, TINY, recipes, seeds),
        folder=tmp_path / "recipes", split=split,
    )  # fmt: skip


def test_recipes_and_plain_controls_are_measured_on_the_same_impressions(shop):
    table = shop.run(2)
    assert shop.trained == [(name, seed) for seed in (0, 1) for name in ("attention", "simtier")]
    found = json.loads((shop.folder / "table.json").read_text())
    assert list(found) == ["logistic", "boosting", "attention", "simtier"]
    best, ids, content = (found[name]["ctr/auc"] for name in ("logistic", "attention", "simtier"))
    assert best["mean"] == pytest.approx(auc(LABEL, TEST.probability)) and best["n"] == len(LABEL)
    assert content["mean"] > ids["mean"] + 0.05, "tastes of this world are cosines"
    assert (content["seeds"], best["seeds"]) == (2, 1) and content["sd"] > 0
    cold = np.isin(ITEM, COLD)
    for name, mask in (("cold", cold), ("warm", ~cold)):
        assert found["logistic"][f"ctr/{name}/auc"]["n"] == mask.sum()
        assert found["logistic"][f"ctr/{name}/auc"]["mean"] == pytest.approx(
            auc(LABEL[mask], TEST.probability[mask])
        )
    costs = found["simtier"]
    assert (
        costs["ranker/parameters"]["mean"]
        == found["attention"]["ranker/parameters"]["mean"] + 20 + 20 * 8 * 4
    )
    assert costs["ranker/cpu_seconds"]["mean"] > 0 and "ranker/cpu_seconds" not in found["logistic"]
    assert (shop.folder / "table.md").read_text() == table.markdown(COLUMNS, "ranker")
    assert "| ranker | AUC | GAUC | NE |" in table.markdown(COLUMNS, "ranker")


def test_what_was_trained_and_measured_is_not_done_again(shop):
    first = shop.run(1)
    shop.trained.clear()
    (shop.folder / "simtier_0.costs.json").unlink()  # as if the training had been cut
    (shop.folder / "simtier_0.json").unlink()
    (shop.folder / "simtier_0.partial").mkdir()
    assert shop.run(1).rows["attention"] == first.rows["attention"]
    assert shop.trained == [("simtier", 0)] and not (shop.folder / "simtier_0.partial").exists()
    shop.trained.clear()
    assert len(shop.run(2).rows["simtier"]) == 2
    assert shop.trained == [("attention", 1), ("simtier", 1)]


def test_a_recipe_that_has_changed_is_trained_and_measured_again_and_no_other(shop, monkeypatch):
    first = shop.run(1)
    shop.trained.clear()
    changed = replace(simtier(), modules={**attention().modules, **simtier().modules, "more": Numbers})
    monkeypatch.setitem(recipes.RECIPES, "simtier", lambda: changed)
    table = shop.run(1, {"attention": attention(), "simtier": changed})
    assert shop.trained == [("simtier", 0)] and table.rows["attention"] == first.rows["attention"]
    parameters = "ranker/parameters"
    assert table.rows["simtier"][0][parameters] != first.rows["simtier"][0][parameters]


def test_a_comparison_of_another_run_is_refused(shop):
    shop.run(1, {"lr": recipe("lr")})
    shop.split.artifact = SimpleNamespace(id="b")
    with pytest.raises(ComparisonError, match="holds a comparison of .*'split': 'a'.* Remove it and run"):
        shop.run(1)


@pytest.mark.parametrize("given", [[], ["--recipe", "muse"]])
def test_the_command_compares_all_recipes_or_one(monkeypatch, given):
    seen = []
    monkeypatch.setattr("moon.journey.load", lambda folder: "a run")
    monkeypatch.setattr("moon.journey.do", lambda run, verb, **options: seen.append((verb, options)))
    done = CliRunner().invoke(app, ["ranker", "--compare", "3", *given])
    assert done.exit_code == 0
    assert seen == [("ranker --compare", {"seeds": 3, "recipe": "muse" if given else None, "trials": None})]
    assert CliRunner().invoke(app, ["ranker", "--compare", "0"]).exit_code == 2
