"""A run on disk: its folder, the choices it was started with, and its finished stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from run.artifacts import read_json
from run.sizes import Size, size

RUNS = Path("runs")
LAST = RUNS / "last.json"
STAMPS = "stages"  # folder in a run: one file per finished stage
CHOICES, STAMPED = ("data", "size_name", "seed", "profile"), ("key", "seconds")  # keys of both records
REPEATS = ("yes", "no")
CHOSEN = ("split", "repeats")  # keys that a record has where there was a choice
STAMPED_AGAIN = "Remove it: the stage is then done again."


class JourneyError(ValueError):
    """A stage was requested before one it needs, or the folder holds another run."""


@dataclass(frozen=True)
class Run:
    """A folder and the choices that determine everything in it.

    Attributes:
        folder: holds every artifact of the run.
        data: ``marketplace[:EVENTS]``, ``FORMAT:FOLDER``, or an absolute path.
        size_name: size of all models, see ``run.sizes``.
        seed: random seed of every stage.
        profile: online store, ``embedded`` (SQLite) or ``redis``.
        split: protocol of the split, see ``dataset.protocols``; None: chosen from the data.
        repeats: whether what a user likes again is asked for, one of REPEATS, see ``dataset.repeats``; None: chosen
            from the data.
    """

    folder: Path
    data: str
    size_name: str
    seed: int
    profile: str
    split: str | None = None
    repeats: str | None = None

    @property
    def size(self) -> Size:
        """The size named ``size_name``."""
        return size(self.size_name)


def load(folder: Path | None) -> Run:
    """Open the run in ``folder``; None: the last run.

    Raises:
        JourneyError: there is no run.
        ArtifactError: its record is damaged.
    """
    if folder is None:
        if not LAST.exists():
            raise JourneyError("no run yet: start one with 'moon demo'")
        folder = Path(read_json(LAST, "Name the run with --run.", ("folder",))["folder"])
    record = folder / "run.json"
    if not record.exists():
        raise JourneyError(f"{folder} holds no run: start one with 'moon demo --run {folder}'")
    again = f"Remove it and run 'moon demo --run {folder}' with the choices that the run was started with."
    return Run(folder=folder, **read_json(record, again, CHOICES, CHOSEN))


def timings(run: Run) -> dict[str, float]:
    """Seconds per finished stage, in order of completion."""
    stamps = sorted((run.folder / STAMPS).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return {path.stem: float(read_json(path, STAMPED_AGAIN, STAMPED)["seconds"]) for path in stamps}


def stamp(run: Run, verb: str) -> Path:
    """The file that marks a stage as finished."""
    return run.folder / STAMPS / f"{verb}.json"


def choices(run: Run) -> dict[str, str | int]:
    """The content of ``run.json``: what was chosen."""
    return {key: value for key, value in asdict(run).items() if key != "folder" and value is not None}
