"""Resuming: what an interrupted job had finished is found again, and only by the same job.

A job is what it was configured with and what it was made from. Work under way is saved as checkpoints in
``<out>.partial``; each is an artifact of its own: written under a temporary name, fsynced, renamed, and verified
when it is read. So a kill at any moment leaves the checkpoint before or the one after, and a damaged one is never
read. Checkpoints hold files; tensors are the caller's.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run.artifacts import Artifact, ArtifactError, fsync, open_artifact, write_artifact

KIND = "checkpoint"


def find_artifact(
    path: Path, kind: str, config: Mapping[str, Any], parents: Mapping[str, Artifact]
) -> Artifact | None:
    """The artifact at ``path`` if it is undamaged and was made from exactly this; None: it has to be made."""
    try:
        found = open_artifact(path, kind, "")
    except ArtifactError:  # missing, damaged or of another kind
        return None
    return found if (found.config, found.parents) == (_as_json(config), _ids(parents)) else None


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the folder with its files, and what was saved beside them as JSON."""

    folder: Path
    state: dict[str, Any]

    def file(self, name: str) -> Path:
        """Path of one of its files."""
        return self.folder / name


class Checkpoints:
    """The checkpoints of one job, by name; saving one under the same name replaces it.

    Args:
        out: the artifact that the job is to write; its checkpoints lie in ``<out>.partial``.
        config: everything the job was asked to do (JSON values).
        parents: artifacts it works from, by role.

    Attributes:
        folder: ``<out>.partial``, also for files that are worth nothing to a later run.
    """

    def __init__(self, out: Path, config: Mapping[str, Any], parents: Mapping[str, Artifact]) -> None:
        self.folder = out.with_name(out.name + ".partial")
        self._job, self._parents = _as_json(config), dict(parents)
        self._said = False

    def find(self, name: str) -> Checkpoint | None:
        """The checkpoint of that name; None, with the reason on stderr, if it is damaged or of another job."""
        path = self.folder / name
        try:
            found = open_artifact(path, KIND, "")
        except ArtifactError:
            if path.exists():
                sys.stderr.write(f"  {path}: not a whole checkpoint, so its work is done again\n")
            return None
        if others := self._differences(found):
            if not self._said:
                sys.stderr.write(
                    f"  {self.folder} is of another run ({', '.join(others)}): starting afresh\n"
                )
            self._said = True
            return None
        return Checkpoint(found.path, found.config["state"])

    @contextlib.contextmanager
    def save(self, name: str, state: Mapping[str, Any]) -> Iterator[Path]:
        """Yield an empty folder to fill; on a clean exit it is the checkpoint of that name.

        Args:
            name: of the checkpoint.
            state: kept beside the files (JSON values).
        """
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            fsync(self.folder.parent)
        content = {"job": self._job, "state": dict(state)}
        with write_artifact(self.folder / name, KIND, content, self._parents) as folder:
            yield folder

    def remove(self) -> None:
        """Delete them all: the job's artifact is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _differences(self, found: Artifact) -> list[str]:
        """What the job that wrote a checkpoint was, where it is another one."""
        before, now = {**found.config["job"], **found.parents}, {**self._job, **_ids(self._parents)}
        names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        return [f"{name} {_short(before.get(name))}, now {_short(now.get(name))}" for name in names]


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it is read back: tuples are lists, keys are strings."""
    return dict(json.loads(json.dumps(dict(config))))


def _ids(parents: Mapping[str, Artifact]) -> dict[str, str]:
    return {role: parent.id for role, parent in parents.items()}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
