"""The journey resumes where it stopped, refuses what does not fit, and says what to run."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from moon import journey, summary
from moon.cli import app
from moon.journey import Stage
from run.artifacts import ArtifactError, open_artifact, write_artifact
from run.folder import JourneyError, timings
from run.sizes import SizeError


@pytest.fixture
def walked(tmp_path, monkeypatch):
    """Three stages that note that they ran; the second fails once when told to."""
    monkeypatch.chdir(tmp_path)
    ran, fail = [], set()

    def work(verb):
        def stage(run):
            if verb in fail:
                fail.discard(verb)
                raise RuntimeError("killed")
            ran.append(verb)

        return stage

    needs = {"dataset": None, "split": "dataset", "store": "split"}
    stages = tuple(Stage(verb, needs[verb], work(verb), verb) for verb in needs)
    monkeypatch.setattr(journey, "STAGES", stages)
    return ran, fail


@pytest.fixture
def embedding(walked, monkeypatch):
    """After the three stages an encoder, which embedding takes as it is; the first of two shards is not the last."""
    ran, _ = walked
    missing = ["1 shards are missing"]

    def embed(run, shard=None):
        ran.append("embed")
        return missing.pop() if shard is not None and missing else None

    def encoder(run):
        ran.append("encoder")

    later = (Stage("encoder", "store", encoder, ""), Stage("embed", "store", embed, ""))
    monkeypatch.setattr(journey, "STAGES", (*journey.STAGES, *later))
    return ran


def begin(**changes):
    choices = {"data": "marketplace", "folder": None, "size_name": None, "seed": 0, "profile": "embedded"}
    return journey.start(**{**choices, **changes})


def test_a_finished_stage_is_not_repeated_and_an_interrupted_one_is(walked):
    ran, fail = walked
    fail.add("split")
    with pytest.raises(RuntimeError):
        journey.travel(begin())
    assert ran == ["dataset"]
    journey.travel(begin())
    assert ran == ["dataset", "split", "store"]
    journey.travel(begin())
    assert ran == ["dataset", "split", "store"]


def test_another_way_to_ask_undoes_the_stages_from_the_split_on_and_is_kept(walked):
    ran, _ = walked
    journey.travel(begin(repeats="yes"))
    journey.travel(begin())  # as it was asked for
    assert ran == ["dataset", "split", "store"] and journey.load(None).repeats == "yes"
    journey.travel(begin(repeats="no"))
    assert ran == ["dataset", *2 * ["split", "store"]]
    changed = journey.resplit(journey.load(None), by="last", repeats="yes")
    assert journey.load(None) == changed and (changed.split, changed.repeats) == ("last", "yes")
    assert journey.resplit(changed, None, None) == changed
    with pytest.raises(JourneyError, match="repeats 'maybe': expected yes or no"):
        begin(repeats="maybe")
    with pytest.raises(JourneyError, match="unknown protocol 'chance'"):
        journey.resplit(changed, "chance", None)


def test_redoing_a_stage_undoes_what_came_after(walked):
    ran, _ = walked
    journey.travel(begin())
    journey.do(journey.load(None), "split")
    assert ran == ["dataset", "split", "store", "split"]
    journey.travel(begin())
    assert ran[-1] == "store" and len(ran) == 5


def test_a_stage_that_others_do_not_need_may_be_missing(walked, monkeypatch):
    """A run of an earlier release lacks it; done anew, it undoes no other; what it is made of undoes it."""
    ran, _ = walked
    first, second, third = journey.STAGES
    aside = Stage("aside", "dataset", lambda run: ran.append("aside"), "", is_read=False, is_needed=False)
    journey.travel(begin())
    monkeypatch.setattr(
        journey, "STAGES", (first, second, aside, third, Stage("embed", "store", second.work, ""))
    )
    journey.do(journey.load(None), "store")
    journey.do(journey.load(None), "embed")
    assert ran[3:] == ["store", "split"], "both ran without it"
    journey.do(journey.load(None), "aside")
    journey.travel(begin())
    assert ran[5:] == ["aside"]
    journey.do(journey.load(None), "split")
    journey.travel(begin())
    assert ran[6:] == ["split", "aside", "store", "split"]


def test_a_stage_without_its_predecessor_says_which_command_to_run(walked):
    run = begin()
    with pytest.raises(JourneyError, match="'store' needs 'dataset' first. Run 'moon dataset'"):
        journey.do(run, "store")


def test_a_folder_holds_one_run_only(walked):
    begin(seed=5)
    journey.travel(begin())  # nothing had been made with the other seed
    with pytest.raises(JourneyError, match="Choose another folder"):
        begin(folder=journey.RUNS / "marketplace", seed=1)


def test_the_online_store_of_a_run_can_be_switched(walked):
    run = begin()
    assert begin(profile="redis").profile == "redis" == journey.load(run.folder).profile


def test_unknown_choices_are_refused(walked):
    with pytest.raises(JourneyError, match="unknown profile 'sqlite'"):
        begin(profile="sqlite")
    with pytest.raises(JourneyError, match="expected marketplace or marketplace:EVENTS"):
        begin(data="marketplace:many")
    with pytest.raises(SizeError, match="unknown size 'huge': expected one of nano, small, base"):
        begin(size_name="huge")
    with pytest.raises(JourneyError, match="no run yet: start one with 'moon demo'"):
        journey.LAST.unlink(missing_ok=True)
        journey.load(None)


def test_the_size_follows_the_data(walked):
    assert begin().size_name == "nano"
    assert begin(data="hm_fashion:somewhere").size_name == "small"


def test_a_run_keeps_the_size_that_it_was_begun_with(walked):
    journey.travel(begin(size_name="base"))
    assert begin().size_name == "base"
    with pytest.raises(JourneyError, match="holds the run .*base.*, asked for .*nano"):
        begin(size_name="nano")


def test_the_summary_shows_what_was_measured_and_nothing_else(tmp_path):
    metrics = {
        "retrieval/moon/recall@20": {"value": 0.25, "n": 10, "split": "test"},
        "retrieval/mix/recall@20": {"value": 0.125, "n": 10, "split": "test"},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    text = summary.text(tmp_path)
    lines = text.splitlines()
    assert lines[0].split() == ["retrieval", "recall@20"]
    assert [line.split() for line in lines[1:3]] == [["mix", "0.1250"], ["moon", "0.2500"]]
    assert "auc" not in text and "served example" not in text


def test_the_truth_comes_first_with_its_intervals_and_recall_is_labelled(tmp_path):
    interval = {"value": 1.25, "low": 1.0, "high": 1.5, "n": 10, "split": "test"}
    metrics = {
        "retrieval/moon/recall@20": {"value": 0.25, "n": 10, "split": "test"},
        "truth/served/clicks_per_slate": interval,
        "truth/oracle/clicks_per_slate": {**interval, "value": 4.0},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    lines = summary.text(tmp_path).splitlines()
    assert lines[0].startswith("by the truth: ")
    assert lines[1].split() == ["truth", "clicks_per_slate"]
    assert lines[2].split() == ["served", "1.250", "[1.000,", "1.500]"]
    assert lines[3].split()[:2] == ["oracle", "4.000"]
    assert lines[5].startswith("by the log: of what the shop chose to show")
    assert lines[6].split() == ["retrieval", "recall@20"]


def test_stage_commands_are_the_stages():
    verbs = {stage.command.split()[1] for stage in journey.STAGES}
    result = CliRunner().invoke(app, ["--help"])
    assert all(verb in result.output for verb in verbs | {"demo", "serve", "seeds"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split"], "JourneyError: no run yet: start one with 'moon demo'"),
        (["demo", "--size", "huge"], "SizeError: unknown size 'huge': expected one of nano, small, base"),
        (
            ["demo", "--data", "hm_fashion:nowhere"],
            "DataError: nowhere: expected a folder with items.parquet",
        ),
    ],
)
def test_a_wrong_command_gets_one_message_and_no_traceback(tmp_path, arguments, message):
    program = [sys.executable, "-m", "moon", *arguments]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_whoever_interrupts_a_command_is_told_how_to_go_on():
    """Ctrl-C inside a command, which the library of commands catches first."""
    program = """
import os, signal, sys
from moon import cli
cli._do = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["moon", "evaluate"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip() == "interrupted: run the same command again to go on"


@pytest.mark.parametrize(
    ("verb", "needs", "options"),
    [
        ("frame", ["dataset", "split", "store"], {"shard": None, "by": "users"}),
        ("ingest", ["dataset", "split", "store"], {"source": "none.jsonl", "consumer": None, "clock": "log"}),
        ("fold", ["dataset", "split", "store"], {}),
        ("encoder compare", ["dataset"], {"seconds": 1.0, "ablated": False}),
        ("seeds", [stage.verb for stage in journey.STAGES[:-1] if stage.is_needed], {}),
        ("embed", ["dataset", "split", "store"], {"shard": None}),
    ],
)
def test_a_command_names_the_first_stage_it_lacks_and_how_to_run_it(
    tmp_path, monkeypatch, verb, needs, options
):
    monkeypatch.chdir(tmp_path)
    run = begin()
    for stage in journey.STAGES:
        if not stage.is_needed:
            continue
        if stage.verb not in needs:
            break
        says = (
            f"'{verb}' needs '{stage.verb}' first. Run '{stage.command}', or 'moon demo --data marketplace'"
        )
        with pytest.raises(JourneyError, match=says):
            journey.do(run, verb, **options)
        journey._note(run, stage, 0.0)
    with pytest.raises(Exception) as nothing_there:  # the work begins, and finds no artifact
        journey.do(run, verb, **options)
    assert not isinstance(nothing_there.value, JourneyError)


def test_a_stage_is_not_done_while_shards_of_it_are_missing(embedding):
    run = begin()
    journey.travel(run)
    assert embedding[-1] == "embed"
    assert journey.do(run, "embed", shard="1/2") == "1 shards are missing"
    assert timings(run).keys() == {"dataset", "split", "store", "encoder"}
    assert journey.do(run, "embed", shard="2/2") is None
    assert "embed" in timings(run)


def test_a_changed_dataset_is_embedded_with_the_encoder_that_is_there(embedding, capsys):
    run = begin()
    journey.travel(run)
    for verb in ("dataset", "split", "store"):
        journey.do(run, verb)
    with pytest.raises(ArtifactError, match="Run 'moon encoder train'"):
        journey.do(run, "embed")  # there is none
    with write_artifact(run.folder / "encoder", "encoder", {}, {}) as folder:
        (folder / "weights").write_text("trained")
    made = open_artifact(run.folder / "encoder", "encoder", "moon encoder train")
    embedding.clear()
    journey.do(run, "embed")
    assert embedding == ["embed"] and f"with encoder {made.id} as it is" in capsys.readouterr().err
    journey.travel(run)
    assert embedding == ["embed"]
