"""``moon ranker --ranks`` and ``make ranks``: every step of training on GPUs but the device."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ranker_world import Requests, full_frame, make_vectors
from typer.testing import CliRunner

from evaluation.bench import ranks as bench
from moon import cli
from run.sizes import size

ROOT = Path(__file__).resolve().parents[1]


def test_the_command_hands_the_number_on_and_refuses_it_where_it_means_nothing(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_do", lambda verb, run, **options: seen.append((verb, options)))
    for words in ([], ["--ranks", "4", "--recipe", "muse"]):
        assert CliRunner().invoke(cli.app, ["ranker", *words]).exit_code == 0
    assert seen == [
        (
            "ranker",
            {
                "recipe": None,
                "ranks": None,
                "settings": None,
                "calibrate": None,
                "stream": False,
                "history": None,
            },
        ),
        (
            "ranker",
            {
                "recipe": "muse",
                "ranks": 4,
                "settings": None,
                "calibrate": None,
                "stream": False,
                "history": None,
            },
        ),
    ]
    for words in (["--compare", "3"], ["--without", "price"]):
        refused = CliRunner().invoke(cli.app, ["ranker", "--ranks", "2", *words])
        told = f"Invalid value for --ranks: expected without {words[0]}"
        assert refused.exit_code == 2 and told in refused.output
    assert CliRunner().invoke(cli.app, ["ranker", "--ranks", "0"]).exit_code == 2


def test_the_check_before_a_training_finds_ranks_that_train_as_one_process():
    found = bench.compare(Requests(full_frame(40)), make_vectors(24), size("nano"), ranks=2)
    assert found.difference < 1e-5 and min(found.alone_s, found.ranks_s) > 0


def test_the_check_finds_ranks_that_do_not(monkeypatch):
    """A share that counts for more than it is moves the weights."""
    monkeypatch.setattr("ranker.ranks.Share.weigh", lambda share, mean, count: mean * (1 + share.rank))
    found = bench.compare(Requests(full_frame(40)), make_vectors(24), size("nano"), ranks=2)
    assert found.difference > bench.TOLERANCE


@pytest.mark.parametrize(
    "difference, said", [(5e-4, ""), (2e-3, "at most 0.001, found 0.002. Train without")]
)
def test_it_ends_the_launch_where_they_do_not(monkeypatch, capsys, tmp_path, difference, said):
    run = type("Run", (), {"folder": tmp_path, "size": None, "seed": 0})
    monkeypatch.setattr(bench, "load", lambda folder: run)
    for name in ("open_retrieval", "open_artifact", "as_stored"):
        monkeypatch.setattr(bench, name, lambda *given, **options: None)
    monkeypatch.setattr(bench.Retriever, "open", lambda found: type("R", (), {"vectors": None}))
    monkeypatch.setattr(bench.Split, "open", lambda found: None)
    monkeypatch.setattr(bench, "ranker_frames", lambda *given: ([], [], "pointwise"))
    monkeypatch.setattr(bench, "compare", lambda *given: bench.Compared(1.0, 0.5, difference))
    monkeypatch.setattr(sys, "argv", ["ranks", "8"])
    if said:
        with pytest.raises(SystemExit, match=re.escape(said)):
            bench.main()
    else:
        bench.main()
    assert json.loads(capsys.readouterr().out) == {"alone_s": 1.0, "ranks_s": 0.5, "difference": difference}


def test_make_checks_before_it_trains():
    words = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/ready", "ranks", "RANKS=8"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        ".venv/bin/python -m evaluation.bench.ranks 8",
        ".venv/bin/moon ranker --ranks 8",
    ]


def test_the_lock_of_a_gpu_is_that_of_the_cpu_but_for_what_knows_of_the_device():
    cpu, gpu = (
        dict(
            line.split("==")
            for line in (ROOT / f"requirements/{name}.lock").read_text().split("\n")
            if "==" in line
        )
        for name in ("cpu", "gpu")
    )
    device = ("cuda-", "nvidia-", "triton", "fbgemm-gpu")
    assert {n: v for n, v in gpu.items() if not n.startswith(device)} == {
        n: v for n, v in cpu.items() if n != "fbgemm-gpu-cpu"
    }
    assert gpu["fbgemm-gpu"] == cpu["fbgemm-gpu-cpu"]


@pytest.mark.slow
def test_a_run_is_trained_in_ranks_to_what_one_process_makes_of_it(finished_run, tmp_path):
    run = shutil.copytree(finished_run[0], tmp_path / "run", symlinks=True)
    outcomes = {
        path: json.loads(path.read_text())["config"]["outcome"] for path in run.glob("ranker_*/manifest.json")
    }
    assert len(outcomes) == 4
    words = [sys.executable, "-m", "moon", "ranker", "--ranks", "2", "--run", str(run)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 and "2 ranks on cpu; this machine has 0 GPUs" in done.stderr, done.stderr
    for path, outcome in outcomes.items():
        found = json.loads(path.read_text())["config"]["outcome"]
        assert found["train_loss"][:3] == pytest.approx(outcome["train_loss"][:3], abs=1e-4), path
