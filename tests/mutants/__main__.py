"""``make mutants``: changes the code in 150 places, one at a time, and counts how many changes a test notices.

Everything is kept under ``.mutants/``: a second run repeats only what is missing or whose code or tests changed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants import page
from tests.mutants.draw import SEED, Mutant, sample
from tests.mutants.forks import Ended, Job, prepare, run_all, say, snapshot, workplaces
from tests.mutants.record import OPTIONS, Recording, digest, record

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / ".mutants"
PAGE = ROOT / "docs" / "mutants.md"
LONGEST = 900.0  # seconds of one mutant: one that never ends must not hold up the others for hours


def main() -> None:
    """Draws, records what is missing, runs what is missing, prints the share caught and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make mutants")
    parser.add_argument("--size", type=int, default=150, help="how many mutants")
    parser.add_argument("--workers", type=int, default=2, help="how many at a time")
    parser.add_argument("--seed", default=SEED, help="of the draw; a new one has not been looked at")
    parser.add_argument(
        "--only", default="", help="only mutants whose key contains this text; writes no page"
    )
    arguments = parser.parse_args()
    commit, tree = page.commit_of(ROOT), snapshot(ROOT, STORE / "snapshot")
    drawn = [
        mutant for mutant in sample(tree, arguments.size, arguments.seed) if arguments.only in mutant.key
    ]
    say(f"{len(drawn)} mutants are drawn; importing the libraries")
    prepare()
    copies = workplaces(tree, arguments.workers)
    fast = record(tree, copies, STORE, slow=False)
    untouched = [mutant for mutant in drawn if not fast.touching(mutant)]
    slow = record(tree, copies, STORE, slow=True) if untouched else Recording({})
    results = Results(STORE / "results.json", tree)
    plans = {mutant.key: plan(mutant, fast, slow) for mutant in drawn}
    while True:
        run_missing(drawn, plans, results, copies)
        unreliable = failing_unchanged(drawn, results, copies)
        if not unreliable:
            break
        say(
            f"{len(unreliable)} tests fail without a mutant too and are left out: {', '.join(sorted(unreliable))}"
        )
        for key, tests in plans.items():
            plans[key] = {name: [t for t in names if t not in unreliable] for name, names in tests.items()}
            if results.get(key).get("by") in unreliable:
                results.forget(key)
    survivors = report(drawn, results)
    if not arguments.only:
        packages = page.by_package(drawn, [mutant for mutant, _ in survivors])
        draws = page.keep(page.kept(), arguments.seed, commit, len(drawn), packages)
        page.write(PAGE, draws, survivors)


def plan(mutant: Mutant, fast: Recording, slow: Recording) -> dict[str, list[str]]:
    """The tests to run, by file; the slow ones only where no other touches the mutant."""
    return fast.touching(mutant) or slow.touching(mutant)


class Results:
    """What became of each mutant, on disk after every one, each with the content of the files it depends on."""

    def __init__(self, path: Path, tree: Path) -> None:
        self._path, self._tree = path, tree
        self._kept: dict[str, dict] = json.loads(path.read_text()) if path.exists() else {}
        self._shared = [
            str(p.relative_to(tree)) for p in (tree / "tests").glob("*.py") if "test_" not in p.name
        ]

    def get(self, key: str) -> dict:
        """The result of a mutant, or an empty one."""
        return self._kept.get(key, {})

    def current(self, mutant: Mutant, tests: dict[str, list[str]]) -> bool:
        """Whether the mutant's result still holds: a caught one while the test that caught it is as it was."""
        result = self.get(mutant.key)
        return bool(result) and result["of"] == self._of(mutant, tests, result)

    def set(self, mutant: Mutant, tests: dict[str, list[str]], result: dict) -> None:
        """Keeps a result."""
        self._kept[mutant.key] = {**result, "of": self._of(mutant, tests, result)}
        self._write()

    def forget(self, key: str) -> None:
        """Drops a result, so that the mutant runs again."""
        self._kept.pop(key, None)
        self._write()

    def _of(self, mutant: Mutant, tests: dict[str, list[str]], result: dict) -> str:
        by = result["by"].split("::")[0]
        names = [by] if by else sorted(tests)
        return digest(self._tree, [mutant.file, *self._shared, *names])

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._kept, indent=1, ensure_ascii=False))
        new.replace(self._path)


def run_missing(drawn: list[Mutant], plans: dict, results: Results, copies: list[Path]) -> None:
    """Runs every mutant without a current result."""
    by_name = {mutant.key: mutant for mutant in drawn}
    missing = [mutant for mutant in drawn if not results.current(mutant, plans[mutant.key])]
    for number, ended in enumerate(run_all(_jobs(missing, plans), copies), 1):
        mutant, result = by_name[ended.job.name], outcome(ended)
        results.set(mutant, plans[mutant.key], result)
        say(
            f"[{number}/{len(missing)}] {result['outcome']:9} {ended.seconds:5.1f} s  "
            f"{mutant.file}:{mutant.first}  {mutant.change[:90]}  {result['by'] or result.get('how', '')}",
        )


def _jobs(missing: list[Mutant], plans: dict) -> Iterator[Job]:
    for mutant in missing:
        tests = plans[mutant.key]
        limit = min(60 + 30 * sum(map(len, tests.values())), LONGEST)
        yield Job(mutant.key, attack, (tests,), limit, {mutant.file: mutant.code})


def attack(copy: Path, tests: dict[str, list[str]]) -> dict:
    """In a child: runs the tests that touch the mutant until one fails."""
    plugin = _Failures()
    names = [name for of_file in tests.values() for name in of_file]
    code = pytest.main([*names, "-x", *OPTIONS], plugins=[plugin]) if names else 0
    return {"exit": int(code), "by": plugin.names[0] if plugin.names else ""}


def outcome(ended: Ended) -> dict:
    """``caught`` by a test or by the limit, ``survived``, or ``untouched`` where no test runs the line."""
    (tests,) = ended.job.arguments
    if not any(tests.values()):
        return {"outcome": "untouched", "by": ""}
    if ended.answer is None:
        return {"outcome": "caught", "by": "", "how": "stopped at its limit, or ended the process"}
    code, by = ended.answer["exit"], ended.answer["by"]
    if code and not by:  # no test failed: pytest itself did, which says nothing about the mutant
        raise RuntimeError(f"pytest ended with {code} and no failing test for {ended.job.name}")
    return {"outcome": "caught" if code else "survived", "by": by}


def failing_unchanged(drawn: list[Mutant], results: Results, copies: list[Path]) -> set[str]:
    """The tests that caught a mutant but fail on the code as it is, when they run alone."""
    killers = sorted({by for mutant in drawn if "::" in (by := results.get(mutant.key)["by"])})
    by_file: dict[str, list[str]] = {}
    for name in killers:
        by_file.setdefault(name.split("::")[0], []).append(name)
    jobs = [Job(name, passing, (names,), 600) for name, names in by_file.items()]
    ended = list(run_all(jobs, copies))
    return set(killers) - {name for end in ended for name in end.answer or []}


def passing(copy: Path, names: list[str]) -> list[str]:
    """In a child: which of these tests pass."""
    plugin = _Failures()
    pytest.main([*names, *OPTIONS], plugins=[plugin])
    return sorted(set(names) - set(plugin.names))


class _Failures:
    """A pytest plugin that keeps the names of the tests, or files, that fail, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps a failed test."""
        self._keep(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keeps a file that cannot be imported."""
        self._keep(report)

    def _keep(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            self.names.append(report.nodeid)


def report(drawn: list[Mutant], results: Results) -> list[tuple[Mutant, str]]:
    """Prints the share caught and the survivors; returns these with their reasons."""
    known = page.reasons()
    survivors = sorted(
        (m for m in drawn if results.get(m.key)["outcome"] != "caught"), key=lambda m: (m.file, m.first)
    )
    caught = len(drawn) - len(survivors)
    say(f"\n{caught} of {len(drawn)} mutants are caught: {caught / max(len(drawn), 1):.1%}")
    for mutant in survivors:
        say(f"{results.get(mutant.key)['outcome']:9} {mutant.file}:{mutant.first} in {mutant.inside}")
        say(f"          {mutant.statement[:150]}\n          {mutant.change[:150]}")
        say(f"          {known.get(mutant.key, 'no reason')}")
    return [(mutant, known.get(mutant.key, "")) for mutant in survivors]


if __name__ == "__main__":
    main()
