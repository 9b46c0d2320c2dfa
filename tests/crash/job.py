"""What a job of the matrix is: something that writes, what a reader may find after a kill, and how it is healed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.crash.contents import contents


def nothing(folder: Path) -> None:
    """No preparation, or nothing to look at."""


@dataclass(frozen=True)
class Job:
    """One thing that writes.

    Attributes:
        name: what it does, in words.
        base: the world it starts from, see ``worlds``.
        work: does it, in a folder.
        prepare: completes the folder before it.
        look: what a reader finds right after a kill, as JSON; it must be what one found before the job or what one
            finds after it. Raises where something half-written is read.
        again: what a user does next; it heals.
        state: what is there at the end, as JSON; it must be what is there when nothing went wrong.
    """

    name: str
    base: str
    work: Callable[[Path], object]
    prepare: Callable[[Path], object] = nothing
    look: Callable[[Path], object] = nothing
    again: Callable[[Path], object] | None = None
    state: Callable[[Path], object] = contents

    def heal(self, folder: Path) -> None:
        """Do what a user does after a kill: the same again, unless the job says otherwise."""
        (self.again or self.work)(folder)


def acknowledge(folder: Path, names: list[int]) -> None:
    """Note, outside the watched folder, that these have been told that they are kept."""
    with (folder.parent / "acknowledged").open("a") as stream:
        stream.writelines(f"{name}\n" for name in names)


def acknowledged(folder: Path) -> set[int]:
    """What has been told so."""
    path = folder.parent / "acknowledged"
    return {int(line) for line in path.read_text().splitlines()} if path.exists() else set()


def plain(value: object) -> object:
    """A value as JSON returns it."""
    return json.loads(json.dumps(value))
