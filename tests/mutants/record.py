"""Which tests touch which lines, recorded once per test file and kept until a file it read changes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.draw import Mutant, files
from tests.mutants.forks import Job, run_all, say
from tests.mutants.reach import reaching

SLOWEST = 1500.0  # seconds a test file may take with coverage
PATIENCE = 20.0  # seconds of a test that is run only where no faster one touches the mutant


def digest(root: Path, names: list[str]) -> str:
    """The content of some files in one word."""
    whole = hashlib.sha256()
    for name in sorted(names):
        path = root / name
        whole.update(f"{name}\0".encode() + (path.read_bytes() if path.exists() else b"") + b"\0")
    return whole.hexdigest()


@dataclass(frozen=True)
class Recording:
    """Per test file: its tests with their seconds, the lines each touched, and what files it read."""

    files: dict[str, dict]

    def touching(self, mutant: Mutant) -> dict[str, list[str]]:
        """The tests that touch a mutant, fastest first, by test file, quickest file first.

        What runs at import is touched by every test of a file that imports it, tests that run lines of the same file
        first. Tests that take longer than PATIENCE are left out where a faster one touches the mutant.
        """
        every = self._touching(mutant)
        closest = set(every)
        if not mutant.inside:
            every = {
                test_file: {name: test["seconds"] for name, test in record["tests"].items()}
                for test_file, record in self.files.items()
                if mutant.file in record["read"] and record["tests"]
            }
        fast = {
            test_file: {name: seconds for name, seconds in tests.items() if seconds <= PATIENCE}
            for test_file, tests in every.items()
        }
        found = {test_file: tests for test_file, tests in fast.items() if tests} or every
        quickest = sorted(found, key=lambda name: (name not in closest, sum(found[name].values()), name))
        return {name: sorted(found[name], key=found[name].__getitem__) for name in quickest}

    def _touching(self, mutant: Mutant) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for test_file, record in self.files.items():
            lines = record["lines"].get(mutant.file, {})
            if mutant.inside:
                lines = {n: lines.get(str(n), []) for n in range(mutant.first, mutant.last + 1)}
            contexts = {context for names in lines.values() for context in names}
            tests = {
                name: test["seconds"]
                for name, test in record["tests"].items()
                if name in contexts or contexts & set(test["fixtures"])
            }
            if tests:
                found[test_file] = tests
        return found


def record(root: Path, copies: list[Path], store: Path, slow: bool) -> Recording:
    """Runs every test file that can touch a mutant and whose recording is missing or stale; returns all of them.

    ``slow`` records the tests marked slow instead of the others.
    """
    folder = store / ("slow" if slow else "fast")
    folder.mkdir(parents=True, exist_ok=True)
    scope = [str(path.relative_to(root)) for path in files(root)]
    tests = reaching(root, sorted((root / "tests").glob("test_*.py")), files(root))
    names = [str(path.relative_to(root)) for path in tests if not slow or "mark.slow" in path.read_text()]
    stale = [name for name in names if _load(root, folder, name) is None]
    jobs = [Job(name, measure, (name, scope, slow), SLOWEST) for name in stale]
    for number, ended in enumerate(run_all(jobs, copies), 1):
        answer = ended.answer or {"tests": {}, "lines": {}, "read": [ended.job.name]}
        answer["digest"] = digest(root, answer["read"])
        (folder / f"{Path(ended.job.name).stem}.json").write_text(json.dumps(answer))
        note = f"{len(answer['tests'])} tests pass" if ended.answer else "died or took too long: left out"
        say(f"[{number}/{len(stale)}] recorded {ended.job.name}: {note}, {ended.seconds:.0f} s")
    loaded = {name: _load(root, folder, name) for name in names}
    return Recording({name: kept for name, kept in loaded.items() if kept})


def _load(root: Path, folder: Path, name: str) -> dict | None:
    path = folder / f"{Path(name).stem}.json"
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    return kept if kept["digest"] == digest(root, kept["read"]) else None


def measure(copy: Path, name: str, scope: list[str], slow: bool) -> dict:
    """In a child: runs one test file under coverage."""
    import coverage

    measured = coverage.Coverage(
        data_file=None, include=[str(copy / file) for file in scope], config_file=False
    )
    plugin = _Contexts(measured)
    measured.start()
    pytest.main([name, "-m", "slow" if slow else "not slow", *OPTIONS], plugins=[plugin])
    measured.stop()
    data = measured.get_data()
    lines = {
        str(Path(file).relative_to(copy)): {
            line: named
            for line, names in data.contexts_by_lineno(file).items()
            if (named := [n for n in names if n])
        }
        for file in data.measured_files()
    }
    # A map of the imported files, the test's own helpers included.
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    read = {str(Path(file).relative_to(copy)) for file in files if file and file.startswith(f"{copy}/")}
    tests = {test: kept for test, kept in plugin.tests.items() if kept["passed"]}
    return {"tests": tests, "lines": lines, "read": sorted({r for r in read if ".venv" not in r} | {name})}


OPTIONS = ("-p", "no:cacheprovider", "--hypothesis-seed=0", "--tb=line")


class _Contexts:
    """A pytest plugin: names the test, or the shared fixture, that each line runs for.

    What a module's fixture runs counts for every test that asks for the fixture, not only for the first.
    """

    def __init__(self, measured: Any) -> None:
        self.tests: dict[str, dict] = {}
        self._measured = measured
        self._current = ""

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        before, self._current = self._current, name
        self._measured.switch_context(name)
        try:
            yield
        finally:
            self._current = before
            self._measured.switch_context(before)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Any:
        fixtures = [
            f"fixture {name}"
            for name, definitions in item._fixtureinfo.name2fixturedefs.items()
            if definitions[-1].scope != "function"
        ]
        self.tests[item.nodeid] = {"seconds": 0.0, "passed": False, "fixtures": fixtures}
        with self._named(item.nodeid):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        if fixturedef.scope == "function":
            return (yield)
        with self._named(f"fixture {fixturedef.argname}"):
            return (yield)

    def pytest_runtest_logreport(self, report: Any) -> None:
        test = self.tests[report.nodeid]
        test["seconds"] += report.duration
        if report.when == "call":
            test["passed"] = report.passed
