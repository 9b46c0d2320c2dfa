"""The README's first command, small: the whole journey runs, ends in numbers and a page, and resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINK = ROOT / "feature_repo" / "data"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a small shop, what it printed, and what the same command printed again."""
    active = os.readlink(LINK) if LINK.is_symlink() else None
    folder = tmp_path_factory.mktemp("journey")
    command = [
        sys.executable,
        "-c",
        "from moon.cli import main; main()",
        "demo",
        "--data",
        "marketplace:3000",
    ]
    try:
        done = [
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)
            for _ in range(2)
        ]
    finally:
        LINK.unlink(missing_ok=True)
        if active is not None:
            LINK.symlink_to(active, target_is_directory=True)
    return folder / "runs" / "marketplace", *done


@pytest.mark.slow
def test_the_journey_ends_in_metrics_an_answer_and_a_page(run):
    folder, first, _ = run
    assert first.returncode == 0, first.stderr[-3000:]
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in (
        "retrieval/moon/recall@20",
        "retrieval/mix/recall@20",
        "ctr/full/auc",
        "ctr/id_only/auc",
        "ctr/truth/auc",
    ):
        assert set(metrics[name]) == {"value", "n", "split"} and metrics[name]["n"] > 0
    assert metrics["ctr/truth/auc"]["value"] > max(
        metrics[f"ctr/{c}/auc"]["value"] for c in ("full", "id_only")
    )
    example = json.loads((folder / "example.json").read_text())
    assert len(example["recommended"]) == 5 and set(example["timings_ms"]) >= {"features", "retrieve", "rank"}
    assert (
        "served example: user" in first.stdout and str(Path("runs/marketplace/report.html")) in first.stdout
    )
    page = (folder / "report.html").read_text()
    assert page.count("data:image/") > 20 and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_nothing_but_ours_reaches_the_terminal(run):
    _, first, _ = run
    for noise in ("Warning", "WARNING", "nanobind", "Traceback", "leaked"):
        assert noise not in first.stderr, [line for line in first.stderr.splitlines() if noise in line][:3]


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(run):
    _, first, again = run
    assert again.returncode == 0
    assert again.stderr.count("already done") == 10
    assert again.stdout == first.stdout
