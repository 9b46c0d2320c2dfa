"""``make promises``: try to break what docs/promises.md promises, and write there what was tried, how often, in vain.

A test or a command that tries many things calls ``record``; it does nothing unless ``make promises`` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "promises.md"
BEGIN, END = "<!-- written by make promises -->", "<!-- end -->"
FOLDER = "MOON_PROMISES"  # names the folder of the records while make promises runs

DOORS = "malformed records at the doors"
KILLS = "killed before or in the middle of a write"
FAULTS = "disk full, read-only or forbidden at a write"
DAMAGE = "files cut off, swapped, removed, or with a flipped bit"
REQUESTS = "hostile and made-up requests to the service"
# What must hold each time; and the tests that record it, besides the crash matrix.
MEANS = {
    DOORS: ("refused or set aside, by every door alike", ("test_every_door.py",)),
    KILLS: ("healed by the next run; nothing acknowledged lost, counted twice or read half", ()),
    FAULTS: ("path, reason and remedy are said; what was there stays; answers go on", ("test_disk.py",)),
    DAMAGE: ("refused by name or made again", ("test_damage.py",)),
    REQUESTS: ("the documented status, in time", ("test_service_hostile.py", "test_service_fuzzed.py")),
}


def record(what: str, where: str, tried: int, wrong: int = 0) -> None:
    """Keep what was tried for the table; tried at the same place again, it replaces the earlier record.

    Args:
        what: a key of MEANS.
        where: a door, a stage, a kind of file, an address.
        tried: how often.
        wrong: how often it went wrong.
    """
    if what not in MEANS:
        raise ValueError(f"what: expected one of {list(MEANS)}, found {what!r}")
    if FOLDER in os.environ:
        name = re.sub(r"\W+", "-", f"{what} {where}")
        content = {"what": what, "where": where, "tried": tried, "wrong": wrong}
        (Path(os.environ[FOLDER]) / f"{name}.json").write_text(json.dumps(content))


def table(records: list[dict], commit: str, day: str, most: int | None = None) -> str:
    """The part of the page between the markers; ``most``: how many points of each job were drawn."""
    drawn = "" if most is None else f", with at most {most} points drawn of each job of the crash matrix"
    lines = [
        f"Written by `make promises` on {day} at commit {commit}{drawn}.",
        "",
        "| tried | each time | places | times | went wrong |",
        "|---|---|---|---|---|",
    ]
    for what, (means, _) in MEANS.items():
        found = [one for one in records if one["what"] == what]
        if found:
            tried, wrong = (sum(one[name] for one in found) for name in ("tried", "wrong"))
            lines.append(f"| {what} | {means} | {len(found)} | {tried:,} | {wrong:,} |")
    return "\n".join(lines)


def written(page: str, part: str) -> str:
    """The page with this part between its markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


def main() -> None:
    """Runs everything that records, and writes the table; exit code 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make promises")
    parser.add_argument("--most", type=int, help="points per job of the crash matrix; default: all")
    most = parser.parse_args().most
    tests = [f"tests/{name}" for _, names in MEANS.values() for name in names]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {FOLDER: folder, "OMP_NUM_THREADS": "1"}
        commands = (
            [sys.executable, "-m", "pytest", *tests],
            [sys.executable, "-m", "tests.crash", *([] if most is None else ["--most", str(most)])],
        )
        codes = [subprocess.run(one, cwd=ROOT, env=environment, check=False).returncode for one in commands]
        records = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    asked = ["git", "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    PAGE.write_text(written(PAGE.read_text(), table(records, commit, f"{datetime.now(UTC):%Y-%m-%d}", most)))
    sys.exit(1 if any(codes) else 0)


if __name__ == "__main__":
    main()
