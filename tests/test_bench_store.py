"""The benchmark of the store: both sides give one answer, and a lost process is an error, not a number."""

import os

import pytest

from evaluation.apart import apart
from evaluation.bench import line_below, ratio, worst
from evaluation.bench_faults import bench_faults
from evaluation.bench_frame import bench_frame
from evaluation.bench_join import bench_join
from evaluation.bench_materialize import bench_materialize
from evaluation.bench_read import bench_read
from evaluation.local_redis import local_redis


def test_the_join_is_measured_on_both_sides(tmp_path):
    lines = list(bench_join(tmp_path, rows=200, events=2000, repeats=1))
    assert [one.goal for one in lines] == [None, None, 20.0, None, 1024.0]
    assert all(one.value > 0 for one in lines)
    stock, ours, times = (one.value for one in lines[:3])
    assert times == pytest.approx(stock / ours)


def test_frames_are_measured_and_agree_with_feasts_plan(tmp_path):
    lines = list(bench_frame(tmp_path, clicks=3000, sizes=(100, 3000)))
    assert [one.goal for one in lines if one.goal] == [60.0, 6144.0, 1.3]
    assert all(one.value > 0 for one in lines)


@pytest.mark.redis
def test_reads_are_measured_beside_feasts_client_and_the_floor(tmp_path, redis_server):
    lines = list(bench_read(tmp_path, redis_server.port, items=600, repeats=2))
    assert [one.goal for one in lines] == [None, None, 20.0, None, None, 2.0, None, None, 1.5]
    assert all(one.value > 0 for one in lines)


@pytest.mark.redis
def test_materialization_is_measured_on_three_sides_that_store_the_same(tmp_path):
    with local_redis() as port:
        lines = list(bench_materialize(tmp_path, port, rows=400, repeats=1))
    assert [one.goal for one in lines] == [None, None, None, 8.0, 3.5, None, 1.25]
    assert all(one.value > 0 for one in lines)


@pytest.mark.redis
def test_faults_are_measured_through_the_whole_service(tmp_path):
    with local_redis() as port:
        if port is None:
            pytest.skip("redis-server is not installed: see .ci/run")
    lines = list(bench_faults(tmp_path, clicks=300, rounds=1))
    assert [one.goal for one in lines] == [None, 150.0, 150.0, None, 300.0, 150.0, 20.0, 150.0]
    assert all(one.value > 0 for one in lines)


def test_less_is_better_where_the_goal_is_a_limit():
    assert line_below("memory", [3.0, 1.0, 2.0], 2.0).met
    assert not line_below("memory", [3.0, 1.0, 2.0], 1.9).met
    assert worst("wait", [3.0, 1.0], 3.0).met and not worst("wait", [3.0, 1.0], 2.9).met
    assert ratio("times", [6.0, 1.0, 8.0], [2.0], 3.0).met


def _dies():
    return lambda: os._exit(7)


def _answers(value):
    return lambda: value + 1


def test_a_call_apart_gives_its_answer_or_says_that_it_died():
    cost = apart(_answers, 4)
    assert cost.answer == 5 and cost.peak_mb > 1
    held = b"x" * (1 << 30)  # a gigabyte of the parent is none of the child's
    assert apart(_answers, 4).peak_mb < 1024 and len(held) == 1 << 30
    with pytest.raises(RuntimeError, match="_dies: the process ended with code 7"):
        apart(_dies)
