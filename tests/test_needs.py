"""What a test needs beyond the lock is said by a marker, and only there: a bare machine passes.

Run: pytest tests/test_needs.py
"""

import ast
import re
import tomllib

import pytest
from conftest import ROOT
from needs import NEEDS, missing

from evaluation.bench import local_redis

TESTS = sorted((ROOT / "tests").glob("*.py"))
OTHER_WAYS = {"skip", "skipif", "importorskip", "SkipTest", "skipUnless", "skipIf"}


def test_tests_are_skipped_in_one_place():
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in OTHER_WAYS and path.name != "conftest.py":
                of = ast.unparse(node.value)
                assert not re.match(r"pytest|unittest", of), f"{path.name}:{node.lineno}: {of}.{node.attr}"


def test_every_need_is_a_documented_marker():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = {re.match(r"\w+", line).group() for line in options["markers"]}
    assert markers == set(NEEDS) | {"slow"}


@pytest.mark.parametrize(
    "name, arguments, says",
    [
        ("redis", (), "redis-server is not installed: 'apt-get install redis-server'"),
        ("openssl", (), "openssl is not installed: 'apt-get install openssl'"),
        ("ray", (), "Ray is not installed: 'make setup-ray'"),
        ("optuna", (), "Optuna is not installed: 'make setup-tune'"),
        ("peer", ("fuxictr",), "fuxictr is not installed: 'moon bench ranker' says how"),
        ("real", ("no_such_pack",), "no data pack no_such_pack in .*: set MOON_DATA"),
    ],
)
def test_what_is_missing_is_named_with_what_to_install(name, arguments, says, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("needs.find_spec", lambda _: None)
    assert re.search(says, missing(name, *arguments))


def test_what_is_there_is_not_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("redis-server", "openssl"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(local_redis, "BINARY", "redis-server")
    assert missing("redis") is None and missing("openssl") is None


def test_a_test_without_the_marker_does_not_find_redis():
    assert not local_redis.installed()


@pytest.mark.redis
def test_a_test_with_the_marker_does():
    assert local_redis.installed()


def test_a_test_that_takes_a_server_by_its_fixture_is_marked(request, redis_server):
    assert request.node.get_closest_marker("redis") is not None
