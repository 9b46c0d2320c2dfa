"""``docs/mutants.md``: every draw that was run, and the survivors of the last one with their reasons."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.mutants.draw import Mutant

HERE = Path(__file__).parent
REASONS, DRAWS = HERE / "reasons.json", HERE / "draws.json"


@dataclass(frozen=True)
class Draw:
    """What became of the places of one seed.

    Attributes:
        seed: of the draw.
        date: when it was run.
        commit: of the code and tests; with ``+`` where files had changed since.
        caught: how many of its places a test noticed.
        of: how many of its places were tried.
        places: how many it has; more than were tried if it was stopped.
        looked_at: whether it had been run before, so that tests may have been written for its survivors.
        packages: package -> [caught, of] of the places in it.
    """

    seed: str
    date: str
    commit: str
    caught: int
    of: int
    places: int
    looked_at: bool = False
    packages: Mapping[str, list[int]] = field(default_factory=dict)


def kept() -> list[Draw]:
    """The draws run so far, oldest first."""
    return [Draw(**one) for one in json.loads(DRAWS.read_text())]


def keep(
    draws: Sequence[Draw], seed: str, commit: str, places: int, packages: Mapping[str, list[int]]
) -> list[Draw]:
    """The draws with this one added: the first run of a seed stays, a later one replaces the later one before."""
    looked_at = any(one.seed == seed for one in draws)
    caught, of = (sum(counts) for counts in zip(*packages.values(), strict=True))
    new = Draw(seed, datetime.now(UTC).date().isoformat(), commit, caught, of, places, looked_at, packages)
    return [one for one in draws if (one.seed, one.looked_at) != (seed, True)] + [new]


def by_package(drawn: Sequence[Mutant], survivors: Sequence[Mutant]) -> dict[str, list[int]]:
    """Package -> [places that a test noticed, all places], by name."""
    found: dict[str, list[int]] = {}
    for mutant in sorted(drawn, key=lambda one: one.file):
        counts = found.setdefault(mutant.file.split("/")[0], [0, 0])
        counts[0] += mutant not in survivors
        counts[1] += 1
    return found


def write(page: Path, draws: Sequence[Draw], survivors: Sequence[tuple[Mutant, str]]) -> None:
    """Write the draws and the page.

    Args:
        page: ``docs/mutants.md``.
        draws: all, the last one last.
        survivors: of the last one, each with its reason or ``""``.
    """
    DRAWS.write_text(json.dumps([asdict(one) for one in draws], indent=1) + "\n")
    page.parent.mkdir(exist_ok=True)
    page.write_text(text(draws, survivors))


def text(draws: Sequence[Draw], survivors: Sequence[tuple[Mutant, str]]) -> str:
    """The page; see ``write``."""
    last = draws[-1]
    stopped = f" It was stopped after {last.of} of its {last.places} places." if last.of < last.places else ""
    packages = ", ".join(f"{name} {caught} of {of}" for name, (caught, of) in last.packages.items())
    table = [
        f"| `{one.seed}` | {one.date} | {one.commit} | {_share(one)} | {'yes' if one.looked_at else 'no'} |"
        for one in draws
    ]
    rows = [
        f"| {mutant.file}, `{mutant.inside or 'at import'}` | `{_cell(mutant.change)}` | {reason or 'none yet'} |"
        for mutant, reason in survivors
    ]
    return "\n".join(
        [
            HEAD.format(size=last.places),
            f"The last draw, `{last.seed}`, was run on {last.date} at commit {last.commit}: "
            f"{_share(last)} caught.{stopped}",
            f"By package: {packages}.",
            "",
            "| Seed | Date | Commit | Caught | Looked at before |",
            "|---|---|---|---|---|",
            *table,
            "",
            f"{len(survivors)} places of `{last.seed}` no test noticed, each with the reason why it may live:",
            "",
            "| Where | Change | Reason |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def reasons() -> Mapping[str, str]:
    """Key of a mutant -> why it may live."""
    return json.loads(REASONS.read_text())


def _share(one: Draw) -> str:
    return f"{one.caught} of {one.of} ({one.caught / max(one.of, 1):.1%})"


def commit_of(root: Path) -> str:
    """The commit of a working tree, with ``+`` where files have changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout

    return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain").strip() else "")


def _cell(content: str) -> str:
    return content.replace("|", "\\|").replace("`", "'")


HEAD = """# Mutants: which changes to the code no test notices

`make mutants` changes the code in {size} places, one at a time (an operator swapped, a number raised, an argument
left out, a value replaced by None), runs the tests that touch the line, and counts the changes that make one fail.
The places are drawn with a seed, evenly over the kinds of change, from the ranker, retrieval, serving, the
evaluation's metrics and the training frames.

Left out by rule (`tests/mutants/draw.py`), because no test should notice them: types, documentation, messages, log
and progress lines, imports, decorators; arguments that only assert something about our own code; and the sizes of
the pieces in which work is done, for which any number gives the same answer (a test of each says so).

Only a draw that nobody had looked at before says how much the tests notice: once survivors have been seen, tests are
written for them. `.venv/bin/python -m tests.mutants --seed NAME` makes another draw. This page is written by the
command, from `tests/mutants/draws.json` and the reasons in `tests/mutants/reasons.json`.
"""
