"""The journey resumes where it stopped, refuses what does not fit, and says what to run."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from moon import journey, summary
from moon.cli import app
from moon.journey import Stage
from run.artifacts import ArtifactError
from run.folder import JourneyError
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

    stages = tuple(Stage(verb, verb, work(verb)) for verb in ("dataset", "split", "store"))
    monkeypatch.setattr(journey, "stages", lambda: stages)
    return ran, fail


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


def test_redoing_a_stage_undoes_what_came_after(walked):
    ran, _ = walked
    journey.travel(begin())
    journey.redo(journey.load(None), "split")
    assert ran == ["dataset", "split", "store", "split"]
    journey.travel(begin())
    assert ran[-1] == "store" and len(ran) == 5


def test_a_stage_without_its_predecessor_says_which_command_to_run(walked):
    run = begin()
    with pytest.raises(JourneyError, match="'store' needs 'dataset' first. Run 'moon dataset'"):
        journey.redo(run, "store")


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


def test_stage_commands_are_the_stages():
    verbs = {stage.verb for stage in journey.stages()}
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


def test_shards_are_joined_when_none_is_missing(walked, monkeypatch):
    from moon import stages as work

    ran, _ = walked
    run = begin()
    later = (Stage(verb, verb, lambda run, verb=verb: ran.append(verb)) for verb in ("encoder", "embed"))
    stages = (*journey.stages(), *later)
    monkeypatch.setattr(journey, "stages", lambda: stages)
    done = []
    monkeypatch.setattr(work, "embed_shard", lambda run, shard: done.append(shard) or 2 - len(done))
    with pytest.raises(JourneyError, match="'dataset' is not done"):
        journey.embed(run, "1/2")
    for verb in ("dataset", "split", "store", "encoder"):
        journey.redo(run, verb)
    journey.embed(run, "1/2")
    assert "embed" not in ran
    journey.embed(run, "2/2")
    assert ran[-1] == "embed" and done == ["1/2", "2/2"]


def test_a_changed_dataset_is_embedded_with_the_encoder_that_is_there(walked, monkeypatch, capsys):
    from moon import stages as work

    ran, _ = walked
    run = begin()
    later = (Stage(verb, verb, lambda run, verb=verb: ran.append(verb)) for verb in ("encoder", "embed"))
    stages = (*journey.stages(), *later)
    monkeypatch.setattr(journey, "stages", lambda: stages)
    journey.travel(run)
    for verb in ("dataset", "split", "store"):
        journey.redo(run, verb)
    with pytest.raises(ArtifactError, match="Run 'moon encoder train'"):
        journey.embed(run, None)  # there is none
    monkeypatch.setattr(work, "keep_encoder", lambda run: "abc")
    ran.clear()
    journey.embed(run, None)
    assert ran == ["embed"] and "with encoder abc as it is" in capsys.readouterr().err
    journey.travel(run)
    assert ran == ["embed"]
