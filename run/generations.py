"""Generations: immutable sets of artifacts that serve together, and the file that names the active one.

``<run>/generations/<number>/`` holds an encoder, its vectors and everything trained on them, as hard links to the
run's artifacts: retraining writes new files into the run folder and leaves these unchanged. ``current.json`` names
the active generation and those active before it; replacing that file switches. Knows artifacts, but no models.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moonstore.disk import writing
from moonstore.files import link, write_json
from run.artifacts import (
    MADE_BY,
    MANIFEST,
    Artifact,
    ArtifactError,
    open_artifact,
    read_json,
    require_agreement,
)

FOLDER, RECORD, CURRENT, LAST = "generations", "generation.json", "current.json", "last.json"


class GenerationError(RuntimeError):
    """The generation does not exist, or must not be removed; names the next command where there is one."""


@dataclass(frozen=True)
class Part:
    """One artifact of a generation.

    Attributes:
        role: name under which other artifacts record it as their parent.
        kind: kind of artifact.
        needed: false if a generation may lack it: not every dataset has events or judgements.
    """

    role: str
    kind: str
    needed: bool = True


KEYS = ("number", "artifacts", "published", "figures")  # of a generation's record
PARTS = {  # by folder name
    "encoder": Part("encoder", "encoder"),
    "embedding": Part("embedding", "embedding"),
    "index": Part("index", "index"),
    "cooccurrence": Part("cooccurrence", "cooccurrence"),
    "words": Part("words", "words", needed=False),
    "search": Part("search", "search", needed=False),
    "picture_index": Part("picture_index", "index", needed=False),
    "taste": Part("taste", "taste", needed=False),
    "lifts": Part("lifts", "lifts", needed=False),
    "word_vectors": Part("word_vectors", "word_vectors", needed=False),
    "two_tower": Part("two_tower", "two_tower", needed=False),
    "two_tower_index": Part("two_tower_index", "index", needed=False),
    "taken": Part("taken", "taken", needed=False),
    "fusion": Part("fusion", "fusion", needed=False),
    "ranker_full": Part("ranker", "ranker", needed=False),
    "relevance": Part("relevance", "relevance", needed=False),
}
REQUIRED_PARENTS = (("embedding", "encoder"), ("index", "embedding"))


@dataclass(frozen=True)
class Generation:
    """The record of one generation.

    Attributes:
        number: from 1.
        artifacts: folder name -> artifact id.
        published: time of publishing, ISO 8601 in UTC.
        figures: measurements taken when it was published.
    """

    number: int
    artifacts: dict[str, str]
    published: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Current:
    """The active generation, which services load.

    Attributes:
        generation: its number.
        before: numbers of the generations active before it, oldest first; ``rollback`` returns to the last.
        since: time of activation, ISO 8601 in UTC.
    """

    generation: int
    before: tuple[int, ...]
    since: str


def open_parts(folder: Path) -> dict[str, Artifact]:
    """The verified artifacts of a run or of a generation, by role.

    Raises:
        ArtifactError: one is missing or damaged.
    """
    return {
        part.role: open_artifact(folder / name, part.kind)
        for name, part in PARTS.items()
        if part.needed or (folder / name).exists()
    }


def require_whole(artifacts: Mapping[str, Artifact], data: Mapping[str, Artifact]) -> None:
    """Refuse artifacts that were not made from one another, or not from the run's data.

    Only the encoder may come from earlier data: it can embed a changed catalogue without retraining.

    Args:
        artifacts: by role.
        data: the dataset and the split that are served, by role.

    Raises:
        ArtifactError: naming the first pair that disagrees.
    """
    require_agreement(artifacts, REQUIRED_PARENTS)
    if "ranker" in artifacts:
        require_agreement(artifacts, [("ranker", "embedding")])
    elif data["split"].config.get(
        "ranks", True
    ):  # a split says if it has nothing that a ranker could learn from
        raise ArtifactError(
            f"expected ranker_full beside {sorted(artifacts)}, found none. Run '{MADE_BY['ranker']}'."
        )
    trained = {role: artifact for role, artifact in artifacts.items() if role != "encoder"}
    require_agreement(trained | dict(data))


def folder_of(run: Path, number: int) -> Path:
    """Folder of a generation's artifacts."""
    return run / FOLDER / str(number)


def generations(run: Path) -> list[Generation]:
    """All generations, by number."""
    records = (run / FOLDER).glob(f"[0-9]*/{RECORD}")
    again = "Move that folder away and run 'moon embeddings publish'."
    found = [Generation(**read_json(path, again, KEYS)) for path in records if path.parent.name.isdigit()]
    return sorted(found, key=lambda one: one.number)


def find(run: Path, number: int) -> Generation:
    """The generation with this number.

    Raises:
        GenerationError: it does not exist.
    """
    known = {one.number: one for one in generations(run)}
    if number not in known:
        raise GenerationError(f"{run}: no generation {number}; there are {sorted(known) or 'none'}.")
    return known[number]


def current(run: Path) -> Current | None:
    """The active generation; None before the first activation.

    Raises:
        ArtifactError: the file that names it is damaged.
    """
    again = "Remove it and run 'moon embeddings activate' with the number of a generation."
    try:
        content = read_json(run / FOLDER / CURRENT, again, ("generation", "before", "since"))
    except FileNotFoundError:
        return None
    return Current(**{**content, "before": tuple(content["before"])})


def serving(run: Path) -> Current:
    """The active generation.

    Raises:
        GenerationError: none is active yet.
    """
    found = current(run)
    if found is None:
        raise GenerationError(
            f"{run}: no generation is active. Run 'moon demo', or 'moon embeddings publish --activate'."
        )
    return found


def published(run: Path, artifacts: Mapping[str, Artifact]) -> Generation | None:
    """The generation that consists of these artifacts, if any."""
    ids = _ids(artifacts)
    return next((one for one in generations(run) if one.artifacts == ids), None)


def seal(run: Path, artifacts: Mapping[str, Artifact], figures: Mapping[str, Any]) -> Generation:
    """Link artifacts of the run folder into its next generation, atomically.

    Args:
        run: the run folder.
        artifacts: by role.
        figures: their measurements.
    """
    last = run / FOLDER / LAST
    number = 1 + _highest(run)
    generation = Generation(
        number, _ids(artifacts), datetime.now(UTC).isoformat(timespec="seconds"), dict(figures)
    )
    building = run / FOLDER / "building"
    shutil.rmtree(building, ignore_errors=True)
    with writing(run / FOLDER):
        building.mkdir(parents=True)
        write_json(last, {"number": number})  # first, so that no number is used twice
        for name, part in PARTS.items():
            if part.role in artifacts:
                shutil.copytree(
                    artifacts[part.role].path,
                    building / name,
                    copy_function=lambda a, b: link(Path(a), Path(b)),
                )
        write_json(building / RECORD, asdict(generation))
        building.rename(folder_of(run, number))
    return generation


def point(run: Path, number: int) -> Current:
    """Make a generation the active one; idempotent.

    Raises:
        GenerationError: it does not exist.
    """
    find(run, number)
    now = current(run)
    if now is not None and now.generation == number:
        return now
    return _write(run, number, () if now is None else (*now.before, now.generation))


def point_back(run: Path) -> Current:
    """Reactivate the generation that was active before.

    Raises:
        GenerationError: there is none.
    """
    number = before(run)
    if number is None:
        raise GenerationError(f"{run}: no generation was active before this one.")
    past = serving(run).before
    return _write(run, number, past[: len(past) - 1 - past[::-1].index(number)])


def before(run: Path) -> int | None:
    """The generation that ``point_back`` returns to: the latest previously active one that still exists."""
    now = current(run)
    if now is None:
        return None
    there = {one.number for one in generations(run)} - {now.generation}
    return next((one for one in reversed(now.before) if one in there), None)


def remove(run: Path, numbers: Iterable[int]) -> None:
    """Delete generations; the active one and the one that a rollback returns to cannot be deleted.

    Raises:
        GenerationError: one of the numbers cannot be deleted; nothing is deleted.
    """
    now, numbers = current(run), list(numbers)
    staying = {before(run), None if now is None else now.generation}
    if set(numbers) & staying:
        raise GenerationError(
            f"{run}: generation {max(set(numbers) & staying)} serves, or a rollback returns to it."
        )
    with writing(run / FOLDER):
        for number in numbers:
            folder_of(run, number).rename(run / FOLDER / f"leaving-{number}")
        for path in (run / FOLDER).glob("leaving-*"):  # also those of a removal that was killed
            shutil.rmtree(path)


def newer(run: Path, generation: Generation) -> list[str]:
    """Names of the artifacts whose version in the run folder differs from the generation's."""
    manifests = {name: run / name / MANIFEST for name in PARTS}
    again = "Run its stage again."
    held = {name: read_json(path, again)["id"] for name, path in manifests.items() if path.exists()}
    return [name for name in PARTS if name in held and held[name] != generation.artifacts.get(name)]


def _highest(run: Path) -> int:
    """The highest number that a generation ever had."""
    last = run / FOLDER / LAST
    if not last.exists():
        return max((one.number for one in generations(run)), default=0)
    again = "Remove it: numbers then go on after the highest that is there."
    return int(read_json(last, again, ("number",))["number"])


def _ids(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    return {name: artifacts[part.role].id for name, part in PARTS.items() if part.role in artifacts}


def _write(run: Path, number: int, past: tuple[int, ...]) -> Current:
    now = Current(number, past, datetime.now(UTC).isoformat())
    write_json(run / FOLDER / CURRENT, asdict(now))
    return now
