"""The README's first command, small: the whole journey runs, ends in numbers and a page, and resumes."""

import json
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_journey_ends_in_metrics_an_answer_and_a_page(finished_run):
    folder, first, _ = finished_run
    assert first.returncode == 0, first.stderr[-3000:]
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in (
        "retrieval/moon/recall@20",
        "retrieval/mix/recall@20",
        "ctr/full/auc",
        "ctr/id_only/auc",
        "ctr/truth/auc",
        "daily/ranker/auc",
        "daily/first/ne",
        "daily/logistic/auc",
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
def test_nothing_but_ours_reaches_the_terminal(finished_run):
    _, first, _ = finished_run
    for noise in ("Warning", "WARNING", "nanobind", "Traceback", "leaked"):
        assert noise not in first.stderr, [line for line in first.stderr.splitlines() if noise in line][:3]


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(finished_run):
    _, first, again = finished_run
    assert again.returncode == 0
    assert again.stderr.count("already done") == 11
    assert again.stdout == first.stdout
