"""The comparison trains every recipe once with each seed, measures all alike, and goes on where it stopped."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from ranker_world import Requests, auc, make_world
from typer.testing import CliRunner

from evaluation.science.rankers import compare as module
from evaluation.science.rankers import measured
from evaluation.science.rankers.compare import COLUMNS, ComparisonError, compare
from moon.cli import app
from ranker import recipes
from ranker.modules.numbers import Numbers
from ranker.recipes import attention, recipe, simtier
from retrieval.jagged import stack
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(size("nano"), id_width=4, history=50, ranker_slots=512)
OLD = np.arange(240)
TRAIN, VALID, TEST = (make_world(requests=r, old_items=OLD, seed=s) for r, s in ((200, 0), (40, 1), (120, 2)))
LABEL = TEST.frame.candidates["label"].to_numpy()
ITEM = TEST.frame.candidates["item_id"].to_numpy()
USER = np.repeat(TEST.frame.requests["user_id"].to_numpy(), np.diff(TEST.frame.offsets))
COLD = TEST.vectors.ids[200:240]
KNOWN = USER % 3 > 0


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A run whose frames are a planted world: its plain control knows the truth."""
    artifact = SimpleNamespace(id="a")
    retriever = SimpleNamespace(artifacts={"embedding": artifact}, vectors=TRAIN.vectors)
    trained, drawn = [], []

    def scored(folder, split, size, retriever, rankers):
        logits = {name: one.score(TEST.frame) for name, one in rankers.items()}
        return SimpleNamespace(label=LABEL, item_id=ITEM, user_id=USER, logits=logits, known_user=KNOWN)

    def train(*given):
        *rest, out, parents, training = given
        trained.append((training.recipe.name, training.seed))
        assert not list(out.parent.glob(f"{out.name}*.partial")), "it would not be timed whole"
        return real(*rest, out, parents, replace(training, epochs=3))

    real = module.train_ctr
    truth = SimpleNamespace(
        probabilities=lambda *shown: {"logistic": TEST.probability, "boosting": TEST.probability}
    )

    def frames(*run, most):
        drawn.append(most)
        return Requests(TRAIN.frame), Requests(VALID.frame), "pointwise"

    for place, name, what in (
        (module, "open_retrieval", lambda *where, **how: {}),
        (module, "as_stored", lambda vectors, store: vectors),
        (module, "ranker_frames", frames),
        (module, "train_ctr", train),
        (measured, "open_retrieval", lambda *where: {}),
        (measured, "score_impressions", scored),
        (measured, "item_slices_of", lambda *run: {"cold": COLD}),
        (measured, "answerable", lambda *run: None),
    ):
        monkeypatch.setattr(place, name, what)
    monkeypatch.setattr(module.Retriever, "open", lambda artifacts: retriever)
    monkeypatch.setattr(measured.PlainContent, "of", lambda *tables: None)
    monkeypatch.setattr(measured.PlainControls, "fit", lambda *given: truth)
    monkeypatch.setattr(measured.Examples, "of", lambda rows: SimpleNamespace(asked=0, offsets=0, item_id=0))
    split = SimpleNamespace(
        artifact=artifact, shows=True, ranking=pa.table({"part": ["test"]}), test_log=None
    )
    dataset = SimpleNamespace(items=None, images=None)
    chosen = {one.name: one for one in (attention(), simtier())}
    return SimpleNamespace(
        trained=trained, drawn=drawn,
        run=lambda seeds, recipes=chosen, **more: compare(tmp_path, dataset, split, TINY, recipes, seeds, **more),
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
    for name, mask in (("cold", cold), ("warm", ~cold), ("new_user", ~KNOWN)):
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


def test_every_recipe_learns_from_so_many_requests_and_from_no_other_number(shop):
    only = {"lr": recipe("lr")}
    shop.run(1, only, requests=300)
    assert shop.run(2, only, requests=300).rows["lr"][1]["ctr/auc"].n == len(LABEL), "all are measured"
    assert shop.drawn == [300, 300] and shop.trained == [("lr", 0), ("lr", 1)]
    for other in ({"requests": 200}, {}):
        with pytest.raises(ComparisonError, match="holds a comparison of .*'requests': '300'"):
            shop.run(1, only, **other)


TESTED, CATALOGUE = 60, np.arange(100, 190)
RARE = CATALOGUE[::6]


@pytest.fixture
def bought(monkeypatch):
    """Sixty test requests with one item bought, twelve candidates each, and scores that are planted."""
    draw = np.random.default_rng(0)
    wanted = draw.choice(CATALOGUE, TESTED)
    proposed = [np.sort(draw.choice(CATALOGUE, 12, replace=False)) for _ in range(TESTED)]
    found = stack([(ids, np.linspace(1, 0, 12, dtype=np.float32)) for ids in proposed])
    test = pa.table(
        {
            "request_id": pa.array(range(TESTED)), "user_id": pa.array(range(TESTED)),
            "time": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * TESTED), "part": ["test"] * TESTED,
            "relevant": [[int(item)] for item in wanted],
        }
    )  # fmt: skip
    scored = []

    def scores(rows, retriever, rankers):
        scored.extend(dict.fromkeys(rows["request_id"].to_pylist()))
        return {name: rows["item_id"].to_numpy() * sign for name, sign in rankers.items()}

    def chances(asked, offsets, item_id):
        assert len(asked) == len(offsets) - 1 and offsets[-1] == len(item_id)
        return {"logistic": item_id * 1.0}

    def frame_of(folder, asked, size):
        return asked["request_id"].to_numpy()

    for name, what in {
        "ASKED": 40,
        "DEPTH": 50,
        "answerable": lambda *run: CATALOGUE,
        "item_slices_of": lambda *run: {"cold": RARE},
        "open_retrieval": lambda folder: {},
        "requests_frame": frame_of,
        "candidates": lambda rows, retriever: stack([found[row] for row in rows]),
        "training_frame": lambda store, rows, history: rows,
        "scores_of": scores,
        "with_mix": lambda *given, seed: {"mix": None},
        "requests_of": lambda log, asked: len(asked),
        "rank": lambda mix, requests, k, repeats: np.tile(CATALOGUE[:k], (requests, 1)),
    }.items():
        monkeypatch.setattr(measured, name, what)
    monkeypatch.setattr(measured.Retriever, "open", lambda artifacts, only: None)
    monkeypatch.setattr(measured.PlainContent, "of", lambda *tables: None)
    monkeypatch.setattr(measured.PlainControls, "fit", lambda *given: SimpleNamespace(probabilities=chances))
    dataset, split = (
        SimpleNamespace(items=None, images=None),
        SimpleNamespace(retrieval=test, test_log=None, log=None, repeats=False),
    )

    def measure(plain=True):
        rankers = {"high_0": 1.0, "low_0": -1.0}
        found = measured.by_lists(Path(), dataset, split, TINY, rankers, plain)
        return {name: {one.name: one for one in values} for name, values in found}

    return SimpleNamespace(measure=measure, wanted=wanted, proposed=proposed, scored=scored)


def test_all_recipes_order_the_same_candidates_and_cold_items_are_asked_for_whoever_was_drawn(bought):
    found = bought.measure()
    drawn = np.random.default_rng(0).permutation(TESTED)[:40]
    cold = np.isin(bought.wanted, RARE)

    def recall(order, which):
        places = []
        for row in which:
            listed = order(bought.proposed[row])[:10]
            places.append(bought.wanted[row] in listed)
        return np.mean(places)

    orders = {
        "high_0": lambda ids: ids[::-1],
        "low_0": np.sort,
        "logistic": lambda ids: ids[::-1],
        "fused": np.sort,
    }
    for name, order in orders.items():
        for metric, which in (
            ("retrieval/recall@10", drawn),
            ("retrieval/warm/recall@10", drawn[~cold[drawn]]),
            ("retrieval/cold/recall@10", np.flatnonzero(cold)),
        ):
            one = found[name][metric]
            assert one.n == len(which) and one.value == pytest.approx(recall(order, which)), (name, metric)
    assert found["mix"]["retrieval/recall@10"].value == pytest.approx(
        np.isin(bought.wanted[drawn], CATALOGUE[:10]).mean()
    )
    assert set(found) == {*orders, "mix"} and set(bought.measure(plain=False)) == {"high_0", "low_0"}


def test_only_requests_with_an_answer_among_their_candidates_are_scored(bought):
    bought.measure()
    asked = {
        *np.random.default_rng(0).permutation(TESTED)[:40],
        *np.flatnonzero(np.isin(bought.wanted, RARE)),
    }
    answered = [row for row in sorted(asked) if bought.wanted[row] in bought.proposed[row]]
    assert 0 < len(answered) < len(asked) and bought.scored == answered


@pytest.mark.parametrize("given", [[], ["--recipe", "muse", "--requests", "5000"]])
def test_the_command_compares_all_recipes_or_one(monkeypatch, given):
    seen = []
    monkeypatch.setattr("moon.journey.load", lambda folder: "a run")
    monkeypatch.setattr("moon.journey.do", lambda run, verb, **options: seen.append((verb, options)))
    done = CliRunner().invoke(app, ["ranker", "--compare", "3", *given])
    assert done.exit_code == 0
    recipe, requests = ("muse", 5000) if given else (None, None)
    options = {"seeds": 3, "recipe": recipe, "trials": None, "requests": requests, "history": None}
    assert seen == [("ranker --compare", options)]
    for wrong in (["--compare", "0"], ["--compare", "1", "--requests", "0"], ["--requests", "9"]):
        assert CliRunner().invoke(app, ["ranker", *wrong]).exit_code == 2
