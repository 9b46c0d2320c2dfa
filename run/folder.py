"""A run on disk: one journey's folder, the choices it was started with, and which stages are done."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from run.sizes import Size, size

RUNS = Path("runs")
LAST = RUNS / "last.json"
STAMPS = "stages"  # of a run: a file for each finished stage


class JourneyError(ValueError):
    """A stage was asked for before the one it needs, or a run folder holds another run."""


@dataclass(frozen=True)
class Run:
    """One journey: a folder and the four choices everything in it follows from.

    Attributes:
        folder: where every artifact of the run lives.
        data: ``marketplace[:EVENTS]`` or ``FORMAT:FOLDER``.
        size_name: the dial, see ``run.sizes``.
        seed: seed of everything random.
        profile: online store, ``embedded`` (SQLite) or ``redis``.
    """

    folder: Path
    data: str
    size_name: str
    seed: int
    profile: str

    @property
    def size(self) -> Size:
        """The size this run was started with."""
        return size(self.size_name)


def load(folder: Path | None) -> Run:
    """Reopen a run; without a folder, the last one.

    Raises:
        JourneyError: there is none.
    """
    if folder is None:
        if not LAST.exists():
            raise JourneyError("no run yet: start one with 'moon demo'")
        folder = Path(json.loads(LAST.read_text())["folder"])
    record = folder / "run.json"
    if not record.exists():
        raise JourneyError(f"{folder} holds no run: start one with 'moon demo --run {folder}'")
    return Run(folder=folder, **json.loads(record.read_text()))


def timings(run: Run) -> dict[str, float]:
    """Seconds each finished stage took, in the order in which they finished."""
    stamps = sorted((run.folder / STAMPS).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return {path.stem: float(json.loads(path.read_text())["seconds"]) for path in stamps}


def stamp(run: Run, verb: str) -> Path:
    """The file that says a stage is done."""
    return run.folder / STAMPS / f"{verb}.json"


def choices(run: Run) -> dict[str, str | int]:
    """What ``run.json`` says: everything a run follows from."""
    return {key: value for key, value in asdict(run).items() if key != "folder"}
