"""A study finds what is best, can be cut anywhere and resumed, and refuses to go on as another one."""

import json
import math
import sys
from dataclasses import replace

import pytest
from ranker_world import Requests, make_world
from typer.testing import CliRunner

from moon import cli
from ranker import train as train_module
from ranker.learner import TrainingError
from ranker.recipes import attention, simtier
from ranker.score import CONFIG, CtrConfig
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from ranker.tuning import rankers
from ranker.tuning.rankers import tune_ctr
from ranker.tuning.space import Between, OneOf, ranker_space
from ranker.tuning.study import JOURNAL, Pruned, Study, TuningError
from ranker.tuning.table import markdown, to_json
from run.sizes import size

pytestmark = [pytest.mark.optuna, pytest.mark.usefixtures("one_thread")]
SPACE = {"rate": Between(1e-4, 1.0, log=True), "depth": OneOf((1, 2, 3)), "idle": Between(0.0, 1.0)}
SHIPPED = {"rate": 0.5, "depth": 1, "idle": 0.0}
TERMS = {"recipe": "cube", "split": "a"}


def valley(values, number, report):
    """Best at a rate of .01 and a depth of 2; every epoch comes closer to what the values are worth."""
    worth = (math.log10(values["rate"]) + 2) ** 2 + 0.3 * (values["depth"] != 2)
    for epoch in (1, 2, 3, 4):
        report(epoch, worth + 1 / epoch)
    return worth + 1 / 4


def study(folder, space=SPACE, terms=TERMS, first=(SHIPPED,), seed=0):
    return Study(folder, space, terms, first, seed)


def test_the_best_of_a_planted_valley_is_found_and_what_matters_is_said(tmp_path):
    found = study(tmp_path)
    found.run(40, valley)
    assert len(found.tried) == 40 and found.tried[0].values == SHIPPED
    best = found.best
    assert best.loss < 1 / 4 + 0.05 < found.tried[0].loss and best.values["depth"] == 2
    assert abs(math.log10(best.values["rate"]) + 2) < 0.25
    assert {one.state for one in found.tried} == {"complete", "pruned"}
    pruned = [one for one in found.tried if one.state == "pruned"]
    assert all(len(one.losses) == 3 for one in pruned), "pruned in the third epoch, not before and not after"
    complete = [one.loss for one in found.tried if one.state == "complete"]
    assert all(one.losses[2] > found.best.losses[2] for one in pruned)
    shares = found.importances()
    assert shares["rate"] > shares["idle"] and sum(shares.values()) == pytest.approx(1, abs=1e-3)
    lines = markdown(found, found.importances(), shipped=1).splitlines()
    assert lines[0].startswith(f"40 trials ({len(complete)} complete, {len(pruned)} pruned)")
    assert f"best: trial {best.number}." in lines[0] and lines[4].startswith(
        f"| {best.number} | {best.loss:.4f} |"
    )
    assert "| 0* |" in "\n".join(lines) and "rate" in lines[-1]
    content = json.loads(to_json(found, found.importances()))
    assert content["best"] == best.number and content["trials"][0]["values"] == SHIPPED


def test_a_study_that_was_cut_proposes_what_it_would_have_proposed(tmp_path):
    whole, cut = study(tmp_path / "whole"), study(tmp_path / "cut")
    whole.run(14, valley)

    def killed(values, number, report):
        if number == 11:
            report(1, 5.0)
            raise KeyboardInterrupt
        return valley(values, number, report)

    with pytest.raises(KeyboardInterrupt):
        cut.run(14, killed)
    assert len(cut.tried) == 11
    with (tmp_path / "cut" / JOURNAL).open("a") as journal:
        journal.write('{"op_code": 8, "wor')  # the event that was being written
    seen = []

    def resumed(values, number, report):
        seen.append(number)
        return valley(values, number, report)

    again = study(tmp_path / "cut")
    again.run(12, resumed)
    again.run(14, resumed)
    assert seen == [11, 12, 13]
    for one, other in zip(whole.tried, again.tried, strict=True):
        assert (one.number, one.values, one.state) == (other.number, other.values, other.state)
    assert again.tried[11].losses[0] == 5.0, "what was reported before the cut is kept"
    again.run(14, lambda *given: pytest.fail("there are fourteen already"))


def test_another_space_or_other_terms_are_refused_by_name(tmp_path):
    study(tmp_path).run(2, valley)
    wider = SPACE | {"rate": Between(1e-4, 2.0, log=True), "width": OneOf((1,))}
    with pytest.raises(TuningError) as refused:
        study(tmp_path, space=wider)
    said = str(refused.value)
    assert "space.rate.high was 1.0, is 2.0" in said and "space.width was None" in said
    assert "remove the folder" in said and "idle" not in said
    with pytest.raises(TuningError, match="split was a, is b"):
        study(tmp_path, terms=TERMS | {"split": "b"})
    assert len(study(tmp_path).tried) == 2


def test_trials_that_diverge_are_counted_and_if_all_do_the_reason_is_said(tmp_path):
    def diverging(values, number, report):
        if number:
            raise TrainingError("loss is nan")
        return valley(values, number, report)

    found = study(tmp_path / "some")
    found.run(3, diverging)
    assert [one.state for one in found.tried] == ["complete", "failed", "failed"] and found.best.number == 0
    assert (found.tried[1].why, found.importances()) == ("loss is nan", {})
    assert "2 failed" in markdown(found, found.importances())
    none = study(tmp_path / "none")
    none.run(2, lambda values, number, report: diverging(values, 1, report))
    with pytest.raises(TuningError, match="completed, found none of 2: loss is nan"):
        _ = none.best


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(TuningError, match="not installed. Run 'make setup-tune'"):
        study(tmp_path)


NANO = replace(size("nano"), id_width=4, ranker_slots=256)
WORLDS = [make_world(requests=r, items=60, seed=s, memory=8) for r, s in ((60, 0), (40, 1))]
FRAMES = (*(Requests(one.frame) for one in WORLDS), "pointwise")
VECTORS = WORLDS[0].vectors


@pytest.mark.parametrize("loss", train_module.LEARNING_RATES)
def test_what_is_shipped_is_in_the_space(loss):
    """But for tables that do not learn at all: they are tried at the least rate."""
    space = ranker_space(16)
    assert set(space) == set(Settings(16, 1.0, 1.0).settings())
    for rates in train_module.LEARNING_RATES[loss]:
        shipped = Settings(16, *rates).settings()
        tried = {name: one.nearest(shipped[name]) for name, one in space.items()}
        assert tried == shipped | ({"table_learning_rate": 1e-6} if rates[1] == 0 else {})
    assert (space["dropout"].nearest(0.7), space["depth"].nearest(9)) == (0.5, 3)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train_module, "EPOCHS", 3)
    monkeypatch.setattr(train_module, "PATIENCE", (2, 2))


def tuned(out, trials, seed=0, recipe=None, **how):
    return tune_ctr(out, trials, FRAMES, VECTORS, NANO, {}, recipe or simtier(), seed, **how)


def test_a_ranker_is_tuned_by_its_validation_requests_and_its_best_can_be_made_again(tmp_path, quick):
    settings = tuned(tmp_path / "study", 4)
    content = json.loads((tmp_path / "study" / "table.json").read_text())
    trials, best = content["trials"], content["trials"][content["best"]]
    shipped = [Settings(4, *rates).settings() for rates in train_module.LEARNING_RATES["pointwise"]]
    assert [one["values"] for one in trials[:2]] == shipped and len(trials) == 4
    assert min(best["losses"]) == min(min(one["losses"]) for one in trials)
    assert settings == Settings.read(tmp_path / "study" / "best.json") == Settings(**best["values"])
    assert not list((tmp_path / "study").glob("trial_*")), "no trial's weights are kept"
    training = Training(recipe=simtier(), settings=settings)
    made = train_ctr(*FRAMES[:2], VECTORS, NANO, tmp_path / "r", {}, training)
    assert made.config["outcome"]["valid_loss"] == pytest.approx(best["losses"], rel=1e-6)
    assert CtrConfig.read(made.file(CONFIG)).settings() == settings.settings()
    assert not list(tmp_path.glob("r.*")), "no other rates were tried"


def test_a_study_of_more_trials_gives_a_comparison_the_best_of_as_many_as_the_others_have(tmp_path, quick):
    """Planted: the fourth trial is better than any before it."""
    long = tuned(tmp_path / "study", 4)
    content = json.loads((tmp_path / "study" / "table.json").read_text())
    losses = [min(one["losses"]) for one in content["trials"]]
    for budget in (1, 2, 3):
        chosen = content["trials"][losses.index(min(losses[:budget]))]["values"]
        assert tuned(tmp_path / "study", budget) == Settings(**chosen)
    assert content["best"] == 3 and Settings(**content["trials"][3]["values"]) == long
    assert Settings.read(tmp_path / "study" / "best.json") == long


def test_a_trial_that_was_cut_goes_on_after_its_last_epoch(tmp_path, quick, monkeypatch):
    whole = tuned(tmp_path / "whole", 3)
    real, epochs = rankers.train_ctr, []

    def cut(*given, after, **how):
        def watched(epoch, loss):
            epochs.append((given[4].name, epoch))
            after(epoch, loss)
            if epochs[-1] == ("trial_2", 2) and epochs.count(("trial_2", 2)) == 1:
                raise KeyboardInterrupt

        return real(*given, after=watched, **how)

    monkeypatch.setattr(rankers, "train_ctr", cut)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "cut", 3)
    assert (tmp_path / "cut" / "trial_2.partial").exists()
    assert tuned(tmp_path / "cut", 3) == whole
    assert [epoch for name, epoch in epochs if name == "trial_2"] == [1, 2, 2, 3]
    read = [json.loads((tmp_path / name / "table.json").read_text())["trials"] for name in ("whole", "cut")]
    for one, other in zip(*read, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-6)


def test_what_was_pruned_or_diverged_leaves_nothing_behind(tmp_path, quick, monkeypatch):
    real = rankers.train_ctr

    def ended(*given, after, **how):
        def watched(epoch, loss):
            if given[4].name == "trial_1" and epoch == 2:
                raise Pruned
            if given[4].name == "trial_2" and epoch == 2:
                raise TrainingError("loss is nan")
            after(epoch, loss)

        return real(*given, after=watched, **how)

    monkeypatch.setattr(rankers, "train_ctr", ended)
    tuned(tmp_path / "s", 3)
    read = json.loads((tmp_path / "s" / "table.json").read_text())["trials"]
    assert [one["state"] for one in read] == ["complete", "pruned", "failed"]
    assert not list((tmp_path / "s").glob("trial_*"))


def test_a_study_of_another_recipe_data_or_space_is_refused_and_one_without_validation_too(tmp_path, quick):
    tuned(tmp_path, 1)
    with pytest.raises(TuningError, match=r"another search: recipe.name was simtier, is attention"):
        tuned(tmp_path, 1, recipe=attention())
    with pytest.raises(TuningError, match=r"space.dropout.high was 0.5, is 0.4"):
        tuned(tmp_path, 2, space=ranker_space(4) | {"dropout": Between(0.0, 0.4)})
    with pytest.raises(TuningError, match="expected validation requests"):
        empty = Requests(FRAMES[0].take(0, 0))
        tune_ctr(tmp_path / "n", 1, (FRAMES[0], empty, "pointwise"), VECTORS, NANO, {}, simtier())


def test_the_command_tunes_compares_or_trains_with_settings(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(cli, "_do", lambda verb, run, **options: seen.append((verb, options)))
    best = str(tmp_path / "best.json")
    given = (["--tune", "9"], ["--tune", "9", "--recipe", "muse"], ["--compare", "3", "--tune", "9"],
             ["--settings", best], ["--tune", "9", "--history", "500"])  # fmt: skip
    for words in given:
        assert CliRunner().invoke(cli.app, ["ranker", *words]).exit_code == 0
    assert seen == [
        ("ranker --tune", {"trials": 9, "recipe": None, "history": None}),
        ("ranker --tune", {"trials": 9, "recipe": "muse", "history": None}),
        ("ranker --compare", {"seeds": 3, "recipe": None, "trials": 9, "requests": None, "history": None}),
        (
            "ranker",
            {
                "recipe": None,
                "ranks": None,
                "settings": tmp_path / "best.json",
                "calibrate": None,
                "stream": False,
                "history": None,
            },
        ),
        ("ranker --tune", {"trials": 9, "recipe": None, "history": 500}),
    ]
    for words in (["--ranks", "2"], ["--without", "price"], ["--settings", best]):
        assert CliRunner().invoke(cli.app, ["ranker", "--tune", "9", *words]).exit_code == 2
    for wrong in (["--tune", "0"], ["--history", "0"], ["--history", "10001"]):
        assert CliRunner().invoke(cli.app, ["ranker", *wrong]).exit_code == 2
