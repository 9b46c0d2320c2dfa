"""A benchmark beside somebody's Redis cannot touch it: it asks only servers that it started itself.

Run: pytest tests/test_benchmarks_leave_others_alone.py
"""

import ast
import inspect
import re

import pytest
import redis
from bench_world import BENCHMARKS, SMALL, starts_redis, watched
from subprocess_calls import connects
from test_architecture import PACKAGES, files
from typer.testing import CliRunner

from evaluation.bench import local_redis
from evaluation.bench import store as bench_store
from evaluation.bench.local_redis import RedisServer, free_port, start_redis
from evaluation.bench.subprocess_cost import measure_in_subprocess
from moon.cli import app

SLOW = {"bench_serving"}  # it needs a finished run


def each_benchmark():
    for name in BENCHMARKS:
        marks = [pytest.mark.redis] * starts_redis(name) + [pytest.mark.slow] * (name in SLOW)
        yield pytest.param(name, marks=marks)


def test_every_benchmark_is_found_and_has_a_small_size_here():
    assert {"bench_store", "bench_materialize", "bench_serving", "bench_encoder"} <= BENCHMARKS.keys()
    assert BENCHMARKS.keys() == SMALL.keys(), "say in bench_world.SMALL what makes the new one small"


@pytest.mark.parametrize("name", list(each_benchmark()))
def test_a_benchmark_connects_to_no_server_that_it_did_not_start(name, measured):
    found = measured(name)
    assert found.connected <= found.started
    assert bool(found.redis) == starts_redis(name)


def test_who_connects_elsewhere_is_seen_also_in_a_process_of_its_own(tmp_path):
    port = free_port()

    def ask():
        with pytest.raises(redis.exceptions.ConnectionError):
            redis.Redis(port=port, retry=None).ping()
        yield from ()

    def ask_apart():
        measure_in_subprocess(connects, port)
        yield from ()

    for number, call in enumerate((ask, ask_apart)):
        assert watched(call, tmp_path / f"{number}.jsonl").connected == {str(port)}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_handed_no_address(name):
    for parameter in inspect.signature(BENCHMARKS[name], eval_str=True).parameters.values():
        assert parameter.name not in {"port", "host", "address", "url", "server", "client"}
        assert parameter.annotation is not str


@pytest.mark.redis
def test_a_server_that_took_our_port_is_left_alone(monkeypatch):
    """Between finding a port free and starting on it, somebody else's Redis may start there."""
    with RedisServer() as others:
        others.client().set("key", "value")
        monkeypatch.setattr(local_redis, "free_port", lambda: others.port)
        with pytest.raises(RuntimeError, match=f"port {others.port}"):
            RedisServer()
        with pytest.raises(RuntimeError, match=f"port {others.port}"):
            start_redis(others.port)
        assert others.client().get("key") == b"value"


METHODS = r"flush(all|db)|config_(set|get|rewrite|resetstat)"
# As a word of its own CONFIG is the key of many a dictionary, so that only the command's spelling counts.
WORDS = rb"(?i:flush(all|db))\b|(SHUTDOWN|CONFIG)\b"


def destructive(text):
    """The lines of a program that spell FLUSHALL, FLUSHDB, SHUTDOWN or CONFIG, as a method or as a command."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            redis_shutdown = node.attr == "shutdown" and "redis" in text
            if redis_shutdown or re.fullmatch(METHODS, node.attr):
                yield node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            said = node.value if isinstance(node.value, bytes) else node.value.encode(errors="replace")
            if re.match(WORDS, said.strip()):
                yield node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_no_destructive_command_is_spelled_in_what_we_ship(package):
    """Whoever wants an empty server starts one: there is no exception."""
    found = {path.name: list(destructive(path.read_text())) for path in files(package)}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "redis.Redis().flushall()",
        "client.flushdb()",
        "redis_client.shutdown()",
        "client.config_set('save', '')",
        "client.execute_command('flushall')",
        "wire.ask(command(b'FLUSHDB'))",
        "client.execute_command('CONFIG SET', 'save', '')",
        "client.execute_command('SHUTDOWN', 'NOSAVE')",
    ],
)
def test_each_spelling_is_found(line):
    assert list(destructive(f"x = 1\n{line}")) == [2]


def test_without_redis_server_the_store_is_measured_without_its_lines_and_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    for name in BENCHMARKS.keys() & vars(bench_store).keys() - {"bench_store"}:
        monkeypatch.setattr(bench_store, name, lambda folder, name=name: asked.append(name) or iter(()))
    shown = CliRunner().invoke(app, ["bench", "store"])
    assert shown.exit_code == 0 and sorted(asked) == [
        "bench_batches",
        "bench_frame",
        "bench_join",
        "bench_other_joins",
    ]
    assert "not measured: loads into Redis" in shown.stderr and "apt-get install redis-server" in shown.stderr
    assert not any(starts_redis(name) for name in asked)
    monkeypatch.setattr(bench_store, "installed", lambda: True)
    asked.clear()
    shown = CliRunner().invoke(app, ["bench", "store"])
    assert shown.exit_code == 0 and "not measured" not in shown.stderr
    assert set(asked) == BENCHMARKS.keys() & vars(bench_store).keys() - {"bench_store"}


def test_without_redis_server_nothing_is_started_and_the_error_says_what_to_install():
    with pytest.raises(FileNotFoundError, match="redis-server is not installed.*apt-get install"):
        RedisServer()
