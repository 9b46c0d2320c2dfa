"""The benchmark of the store: both sides give one answer, and a lost process is an error, not a number."""

import json

import pytest
from markupsafe import escape
from subprocess_calls import answers, dies
from typer.testing import CliRunner

from evaluation.bench.lines import Drawn, line, line_below, ratio, worst
from evaluation.bench.report import comparisons, growths, render_store_report, times
from evaluation.bench.subprocess_cost import measure_in_subprocess
from moon.cli import app


def test_the_join_is_measured_on_both_sides(measured):
    lines = measured("bench_join").lines
    assert [one.goal for one in lines] == [None, None, 20.0, None, 1024.0]
    assert all(one.value > 0 for one in lines)
    stock, ours, times = (one.value for one in lines[:3])
    assert times == pytest.approx(stock / ours)


def test_frames_are_measured_and_agree_with_feasts_plan(tmp_path, measured):
    lines = measured("bench_frame").lines
    assert [one.goal for one in lines if one.goal] == [60.0, 6144.0, 1.3]
    assert "1,000" in next(one.name for one in lines if one.goal)
    assert all(one.value > 0 for one in lines)
    points = [(one.drawn.x, one.value) for one in lines if one.drawn and one.drawn.x]
    assert [x for x, _ in points] == [100, 1000, 3000]
    ((plot, _),) = growths(lines)
    assert plot.curves[0].y == [value for _, value in points]
    assert [(one.n, len(one.baselines)) for one in comparisons(lines)] == [(1, 1), (1, 1)]
    page = render_store_report(tmp_path / "runs" / "store.html", lines).read_text()
    assert page.count("<svg") == 1 and all(str(escape(one.name)) in page for one in lines)


def test_making_batches_is_measured_beside_training_on_them(measured):
    lines = measured("bench_batches").lines
    assert [one.n for one in lines] == [3] * 4 and all(one.value > 0 for one in lines)


SIDES = ("ours", "Feast", "MGET, the floor")
LINES = [
    *(
        line(f"frame of {x}", [cost], drawn=Drawn("frame, s", "ours", x))
        for x, cost in ((1e6, 3.0), (3e6, 7.0))
    ),
    *(
        line(f"read, {s}", [v], drawn=Drawn("read, ms", s))
        for s, v in zip(SIDES, (2.0, 60.0, 1.0), strict=True)
    ),
    line("rows, ours", [9.0], drawn=Drawn("rows a second", "ours", higher_is_better=True)),
    line("rows, Feast", [3.0], drawn=Drawn("rows a second", "Feast", higher_is_better=True)),
    line("times <less>", [0.5], goal=20.0),
    line_below("peak", [0.5], 1.0),
]


def test_the_page_holds_every_line_the_curve_with_its_line_and_the_bars(tmp_path):
    page = render_store_report(tmp_path / "runs" / "store.html", LINES).read_text()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["store.html"]
    for one in LINES:
        assert f"<td>{escape(one.name)}</td>" in page
    assert '<span class="badge good">yes</span>' in page and '<span class="badge bad">no</span>' in page
    assert "1 of 2" in page and "<less>" not in page
    assert (
        page.count("<svg") == 1 and page.count('class="track ours"') == 2 and page.count('class="track"') == 3
    )
    ((plot, said),) = growths(LINES)
    measured, fitted = plot.curves
    assert (measured.x, measured.y) == ([1.0, 3.0], [3.0, 7.0]) and fitted.fitted
    assert fitted.y == pytest.approx([0, 3 * 2.4])  # (1 * 3 + 3 * 7) / (1 + 9)
    assert "2.4 per million" in said and "+0.6 at 1,000,000" in said
    read, rows = comparisons(LINES)
    assert (read.best, read.better, times(read)) == ("MGET, the floor", False, "2 times more")
    assert (rows.best, rows.better, times(rows)) == ("Feast", True, "3 times more")


def test_the_command_prints_the_lines_and_leaves_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evaluation.bench.store.bench_store", lambda: iter(LINES))
    shown = CliRunner().invoke(app, ["bench", "store", "--json"])
    assert [one["name"] for one in json.loads(shown.stdout)] == [one.name for one in LINES]
    assert json.loads(shown.stdout)[0]["drawn"]["x"] == 1e6
    assert (
        "runs/store.html" in shown.stderr and "read, Feast" in (tmp_path / "runs" / "store.html").read_text()
    )
    shown = CliRunner().invoke(app, ["bench", "store"])
    assert len(shown.stdout.splitlines()) == len(LINES) + 1 and "runs/store.html" in shown.stderr


@pytest.mark.redis
def test_reads_are_measured_beside_feasts_client_and_the_floor(measured):
    lines = measured("bench_read").lines
    assert [one.goal for one in lines] == [None, None, 20.0, None, None, 2.0, None, None, 1.5]
    assert all(one.value > 0 for one in lines)


def test_joins_with_a_time_to_live_and_small_ones_are_measured_on_both_sides(measured):
    lines = measured("bench_other_joins").lines
    assert [one.goal for one in lines] == [None, None, 15.0, None, None, 1.0]
    assert lines[2].value == pytest.approx(lines[0].value / lines[1].value)


@pytest.mark.redis
def test_feasts_front_door_is_measured_for_each_kind_of_key_and_for_its_server(measured):
    lines = measured("bench_front_door").lines
    assert [one.goal for one in lines] == [None, None, 5.0] * 4
    assert lines[2].value > 1 and lines[5].value == pytest.approx(lines[3].value / lines[4].value)


@pytest.mark.redis
def test_text_keys_are_loaded_alike_on_both_sides(measured):
    lines = measured("bench_text_keys").lines
    assert [one.goal for one in lines] == [None, None, 10.0]


@pytest.mark.redis
def test_materialization_is_measured_on_three_sides_that_store_the_same(measured):
    lines = measured("bench_materialize").lines
    assert [one.goal for one in lines] == [None, None, None, 8.0, 3.5, None, 1.25]
    assert all(one.value > 0 for one in lines)


@pytest.mark.redis
def test_faults_are_measured_through_the_whole_service(measured):
    lines = measured("bench_faults").lines
    assert [one.goal for one in lines] == [None, 150.0, 150.0, None, 300.0, 150.0, 20.0, 150.0]
    assert all(one.value > 0 for one in lines)


@pytest.mark.redis
def test_events_are_measured_until_they_are_online(measured):
    lines = measured("bench_ingest").lines
    assert [one.goal for one in lines] == [None, 100.0, None]
    assert all(one.value > 0 for one in lines)


def test_less_is_better_where_the_goal_is_a_limit():
    assert line_below("memory", [3.0, 1.0, 2.0], 2.0).met
    assert not line_below("memory", [3.0, 1.0, 2.0], 1.9).met
    assert worst("wait", [3.0, 1.0], 3.0).met and not worst("wait", [3.0, 1.0], 2.9).met
    assert ratio("times", [6.0, 1.0, 8.0], [2.0], 3.0).met


def test_a_call_apart_gives_its_answer_or_says_that_it_died():
    cost = measure_in_subprocess(answers, 4)
    assert cost.answer == 5 and cost.peak_mb > 1
    held = b"x" * (1 << 30)  # a gigabyte of the parent is none of the child's
    assert measure_in_subprocess(answers, 4).peak_mb < 1024 and len(held) == 1 << 30
    with pytest.raises(RuntimeError, match="dies: the process ended with code 7"):
        measure_in_subprocess(dies)
