"""Resuming: an interrupted job continues from its checkpoints, if configuration and parents are the same.

Checkpoints are saved in ``<out>.partial``; each is an artifact of its own: written under a temporary name, fsynced,
renamed, and verified when it is read. So a kill at any moment leaves the previous checkpoint or the new one, and a
damaged one is never used. Checkpoints hold files; callers convert them to and from tensors.
"""

from __future__ import annotations

import contextlib
import glob
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moonstore.disk import writing
from moonstore.files import fsync
from run.artifacts import Artifact, ArtifactError, open_artifact, write_artifact

KIND = "checkpoint"
MOST_NAMED = 4  # differences between two jobs that are said


def find_artifact(
    path: Path, kind: str, config: Mapping[str, Any], parents: Mapping[str, Artifact]
) -> Artifact | None:
    """The artifact at ``path`` if it is valid and has this configuration and these parents; else None."""
    found = whole_artifact(path, kind)
    return found if found is not None and is_made_from(found, config, parents) else None


def whole_artifact(path: Path, kind: str) -> Artifact | None:
    """The artifact at ``path``; None if it is missing, damaged or of another kind."""
    try:
        return open_artifact(path, kind, "")
    except ArtifactError:
        return None


def remove_checkpoints(out: Path) -> None:
    """Delete the checkpoints of an artifact that is complete: ``<out>.partial``, and ``<out>.<name>.partial`` of what
    was trained for it, by this job or by one that was given up.
    """
    for folder in (
        out.with_name(f"{out.name}.partial"),
        *out.parent.glob(f"{glob.escape(out.name)}.*.partial"),
    ):
        shutil.rmtree(folder, ignore_errors=True)


def is_made_from(found: Artifact, config: Mapping[str, Any], parents: Mapping[str, Artifact]) -> bool:
    """Whether it has this configuration and these parents."""
    return (found.config, found.parents) == (_as_json(config), _ids(parents))


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the folder of its files, and the JSON state saved with them."""

    folder: Path
    state: dict[str, Any]

    def file(self, name: str) -> Path:
        """Path of one of its files."""
        return self.folder / name


class Checkpoints:
    """The checkpoints of one job, by name; saving one under the same name replaces it.

    Args:
        out: the artifact that the job will write; its checkpoints are in ``<out>.partial``.
        config: the complete configuration of the job (JSON values).
        parents: artifacts it reads, by role.

    Attributes:
        folder: ``<out>.partial``; may also hold temporary files, which a resumed job ignores.
    """

    def __init__(self, out: Path, config: Mapping[str, Any], parents: Mapping[str, Artifact]) -> None:
        self.folder = out.with_name(out.name + ".partial")
        self._job, self._parents = _as_json(config), dict(parents)
        self._said = False

    def find(self, name: str) -> Checkpoint | None:
        """The checkpoint of that name; None if missing, damaged or of another job (reason on stderr)."""
        path = self.folder / name
        try:
            found = open_artifact(path, KIND, "")
        except ArtifactError:
            if path.exists():
                sys.stderr.write(f"  {path}: a damaged checkpoint, so its work is repeated\n")
            return None
        if others := self._differences(found):
            if not self._said:
                sys.stderr.write(
                    f"  {self.folder} belongs to another run ({', '.join(others)}): starting afresh\n"
                )
            self._said = True
            return None
        return Checkpoint(found.path, found.config["state"])

    @contextlib.contextmanager
    def save(self, name: str, state: Mapping[str, Any]) -> Iterator[Path]:
        """Yield an empty folder to fill; on a clean exit it becomes the checkpoint of that name.

        Args:
            name: of the checkpoint.
            state: saved with the files (JSON values).
        """
        if not self.folder.exists():
            with writing(self.folder):
                self.folder.mkdir(parents=True)
                fsync(self.folder.parent)
        content = {"job": self._job, "state": dict(state)}
        with write_artifact(self.folder / name, KIND, content, self._parents) as folder:
            yield folder

    def remove(self) -> None:
        """Delete all checkpoints, once the job's artifact is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _differences(self, found: Artifact) -> list[str]:
        """Where the job that wrote a checkpoint differs from this one."""
        before, now = {**found.config["job"], **found.parents}, {**self._job, **_ids(self._parents)}
        every = [
            f"{name} {_short(was)}, now {_short(is_now)}" for name, was, is_now in _differing("", before, now)
        ]
        more = len(every) - MOST_NAMED
        return every if more <= 0 else [*every[:MOST_NAMED], f"and {more} more"]


def _differing(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: the name of each place, as ``recipe.modules.0``, and its values."""
    if isinstance(before, list) and isinstance(now, list):
        before, now = ({str(place): one for place, one in enumerate(values)} for values in (before, now))
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in before if key not in now)]:
            within = f"{name}.{key}" if name else key
            yield from _differing(within, before.get(key), now.get(key))
    elif before != now:
        yield name, before, now


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON returns it: tuples become lists, keys strings."""
    return dict(json.loads(json.dumps(dict(config))))


def _ids(parents: Mapping[str, Artifact]) -> dict[str, str]:
    return {role: parent.id for role, parent in parents.items()}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
