"""Run a job, kill it or take its disk away at one of the points that were found, heal it, and compare."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from moon.failures import told
from tests.crash import watched
from tests.crash.job import Job, plain
from tests.crash.watched import GO, KILL, SYNCS, TAKES_SPACE, TEAR, WRITES, Operation

FAULTS = {"disk full": errno.ENOSPC, "read-only": errno.EROFS, "not permitted": errno.EACCES}


@dataclass(frozen=True)
class Try:
    """One point at which a job is disturbed.

    Attributes:
        at: number of the operation.
        how: ``KILL`` before it, ``TEAR``: killed halfway through a write, or one of FAULTS from it on.
    """

    at: int
    how: str


@dataclass
class Outcome:
    """What became of one job.

    Attributes:
        job: its name.
        points: changes to files that it makes.
        kills, faults: how often it was killed, and how often its disk was taken away.
        wrong: what went wrong, in words.
    """

    job: str
    points: int = 0
    kills: int = 0
    faults: int = 0
    wrong: list[str] = field(default_factory=list)


class Bench:
    """Runs one job again and again, each time in a fresh copy of the folder and in a fork of this process.

    Args:
        job: the job.
        base: the folder of its world.
        scratch: an empty folder for the copies.
    """

    def __init__(self, job: Job, base: Path, scratch: Path) -> None:
        self.job, self._scratch = job, scratch
        self._base = scratch / "base" / "run"
        shutil.copytree(base, self._base, symlinks=True)
        self._do(lambda: job.prepare(self._base))
        self.before = self._value(self._base, job.look)
        whole = self._copy("place")
        ended = watched.run(lambda: job.work(whole), whole, lambda _: GO)
        if ended.error:
            raise RuntimeError(f"{job.name}: fails undisturbed\n{ended.error}")
        self.operations = ended.operations
        self.after, self.state = self._value(whole, job.look), self._value(whole, job.state)

    def disturb(self, one: Try) -> str:
        """Disturb the job at one point and heal it; what is wrong then, empty if nothing is.

        Raises:
            Missed: the job ended before the point.
        """
        place = self._copy("place")
        try:
            self._disturbed(place, one)
        except Wrong as wrong:
            operation = self.operations[one.at - 1]
            return f"{one.how} at {one.at} ({operation.call} {operation.path}): {wrong}"
        return ""

    def _disturbed(self, place: Path, one: Try) -> None:
        fault = FAULTS.get(one.how)
        if fault is None:
            ended = watched.run(lambda: self.job.work(place), place, _killer(one))
            if ended.error:
                raise Wrong(ended.error[-2000:])
        else:
            ended = watched.run(lambda: _complaining(self.job, place), place, _taker(one.at, fault))
            if ended.error:
                raise Wrong(ended.error[-2000:])
        if len(ended.operations) < one.at:
            raise Missed
        self._do(lambda: self._heal(place))

    def _heal(self, place: Path) -> None:
        found = plain(self.job.look(place))
        assert found in (self.before, self.after), (
            f"a reader finds neither the old nor the new: {_short(found)}"
        )
        self.job.heal(place)
        state = plain(self.job.state(place))
        assert state == self.state, f"does not end as an undisturbed one: {_differences(self.state, state)}"

    def _copy(self, name: str) -> Path:
        place = self._scratch / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        shutil.copytree(self._base, place / "run", symlinks=True)
        for beside in self._base.parent.iterdir():
            if beside.is_file():
                shutil.copy2(beside, place)
        return place / "run"

    def _do(self, work: Callable[[], object]) -> None:
        if error := watched.run(work, self._scratch / "nowhere", lambda _: GO).error:
            raise Wrong(error[-3000:])

    def _value(self, place: Path, of: Callable[[Path], object]) -> object:
        answer = self._scratch / "answer.json"
        copy = self._scratch / "looked at"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(place.parent, copy, symlinks=True)
        self._do(lambda: answer.write_text(json.dumps(of(copy / "run"))))
        return json.loads(answer.read_text())


class Wrong(AssertionError):
    """What must not happen has happened."""


class Missed(Exception):
    """A job made fewer changes this time than when it was watched: this point does not exist."""


def _complaining(job: Job, place: Path) -> None:
    """In a child whose disk is taken away: it may finish, or it must say what to do."""
    try:
        job.work(place)
    except BaseException as error:
        said = told(error)
        assert said is not None, "a traceback"
        assert str(place.parent) in said or "run" in said, f"names no path: {said}"
        assert "run the same command again" in said, f"does not say what to do: {said}"


def _killer(one: Try) -> Callable[[Operation], watched.Verdict]:
    return lambda operation: one.how if operation.number == one.at else GO


def _taker(at: int, fault: int) -> Callable[[Operation], watched.Verdict]:
    """A full disk takes nothing more, but lets go of files; an unwritable one allows no change at all."""

    def decide(operation: Operation) -> watched.Verdict:
        if operation.number < at or (fault == errno.ENOSPC and operation.call not in TAKES_SPACE):
            return GO
        return GO if fault != errno.ENOSPC and operation.call in SYNCS else fault

    return decide


def tries(operations: Sequence[Operation], seed: int = 0) -> Iterator[Try]:
    """Every point worth a try.

    A sync changes nothing that a kill could leave behind. Of consecutive writes to one file the first, the last and
    one between are torn: what lies between two of them is a torn write, too. A fault repeats for every call on every
    path once: the second write to a file fails where the first one does.
    """
    draw = random.Random(seed)
    changes = [one for one in operations if one.call not in SYNCS]
    for (call, _), group in groupby(changes, key=lambda one: (one.call, one.path)):
        some = list(group)
        if call in WRITES:
            yield Try(some[0].number, KILL)
            torn = {some[0].number, draw.choice(some).number, some[-1].number}
            yield from (Try(one.number, TEAR) for one in some if one.number in torn and one.size > 1)
        else:
            yield from (Try(one.number, KILL) for one in some)
    seen = set()
    for one in operations:
        if (one.call, one.path) not in seen:
            seen.add((one.call, one.path))
            yield from (Try(one.number, fault) for fault in _faults(one))


def _faults(operation: Operation) -> list[str]:
    full = ["disk full"] if operation.call in TAKES_SPACE else []
    # Whether it is the folder or the whole disk that may not be written makes no difference to the program.
    closed = ["read-only", "not permitted"][operation.number % 2]
    return full + ([closed] if operation.call not in (*SYNCS, *WRITES) else [])


def examine(job: Job, base: Path, scratch: Path, most: int | None = None, seed: int = 0) -> Outcome:
    """Disturb a job at every point, or at ``most`` points drawn with a seed."""
    bench = Bench(job, base, scratch)
    found = Outcome(job.name, len(bench.operations))
    chosen = list(tries(bench.operations, seed))
    if most is not None and most < len(chosen):
        chosen = random.Random(f"{seed} {job.name}").sample(chosen, most)
    for one in chosen:
        try:
            wrong = bench.disturb(one)
        except Missed:
            continue
        found.wrong += [wrong] if wrong else []
        if one.how in FAULTS:
            found.faults += 1
        else:
            found.kills += 1
    shutil.rmtree(scratch)
    return found


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 500 else f"{text[:500]}…"


def _differences(expected: object, found: object) -> str:
    if not (isinstance(expected, dict) and isinstance(found, dict)):
        return f"expected {_short(expected)}, found {_short(found)}"
    names = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
    return "; ".join(
        f"{name}: expected {_short(expected.get(name, 'nothing'))}, found {_short(found.get(name, 'nothing'))}"
        for name in names[:6]
    )
