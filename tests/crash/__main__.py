"""``make crashes``: kills every stage and the service's writes at every change to a file, and fills their disk."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork

import test_generations  # noqa: E402
import torch  # noqa: E402

from tests.crash import watched  # noqa: E402
from tests.crash.matrix import Outcome, examine  # noqa: E402
from tests.crash.service import SERVICE  # noqa: E402
from tests.crash.stages import STAGES  # noqa: E402
from tests.crash.watched import KILL, TEAR  # noqa: E402
from tests.crash.worlds import ITEMS, made  # noqa: E402
from tests.promises import FAULTS, KILLS, record  # noqa: E402


def main() -> None:
    """Prints a line for each job, and what went wrong; exit code 1 if something did."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make crashes")
    parser.add_argument("--most", type=int, help="points per job, drawn with the seed; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", action="append", help="a job of this name; again for another; default: all")
    parser.add_argument("--json", type=Path, help="also write the outcomes here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    test_generations.ITEMS = ITEMS
    if not watched.possible():
        sys.exit("needs Linux on x86-64 with seccomp notifications, see tests/crash/watched.py")
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for job in (*STAGES, *SERVICE):
            if arguments.only is None or job.name in arguments.only:
                began = time.monotonic()
                base = made(job.base, scratch)
                outcome = examine(job, base, scratch / "job", arguments.most, arguments.seed)
                found.append(outcome)
                killed = [one for one in outcome.wrong if one.startswith((KILL, TEAR))]
                record(KILLS, job.name, outcome.kills, len(killed))
                record(FAULTS, job.name, outcome.faults, len(outcome.wrong) - len(killed))
                say(outcome, time.monotonic() - began)
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(one) for one in found], indent=1) + "\n")
    wrong = sum(len(one.wrong) for one in found)
    kills, faults = sum(one.kills for one in found), sum(one.faults for one in found)
    sys.stdout.write(f"{len(found)} jobs, {kills} kills, {faults} faults of the disk, {wrong} went wrong\n")
    sys.exit(1 if wrong else 0)


def say(outcome: Outcome, seconds: float) -> None:
    """Print what became of one job."""
    sys.stdout.write(
        f"{outcome.job:24} {outcome.points:5} changes  {outcome.kills:4} kills  {outcome.faults:4} faults  "
        f"{len(outcome.wrong):3} wrong  {seconds:5.0f} s\n"
    )
    for one in outcome.wrong:
        first, *_, last = (
            [*one.strip().splitlines(), ""] if "\n" not in one.strip() else one.strip().splitlines()
        )
        sys.stdout.write(f"    {first}\n        {last}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
