"""``moon init``: write ``moon.toml`` for a folder; and find, or write, the description of a run's data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dataset.contracts import DataError
from moonstore.disk import DiskError
from moonstore.files import write_text
from run.artifacts import MANIFEST

PROPOSED = ".proposed"  # ending of what is written beside a description that was changed by hand


def init(folder: Path, out: Path | None = None) -> str:
    """Look at a folder and write its description; one that was changed by hand is left alone.

    Args:
        folder: of the data.
        out: the file to write; None: ``moon.toml`` in the folder.

    Returns:
        what was found, and what was written.

    Raises:
        DataError: no such folder, or no table in it that has a role.
    """
    from dataset.adapters.described.description import FILE, open_description
    from dataset.adapters.guessing.propose import propose
    from dataset.adapters.guessing.telling import told
    from dataset.adapters.guessing.writing import is_sealed, toml

    found = propose(folder)
    said = told(found)
    if not found.of("items") and not found.of("events"):
        raise DataError(
            f"{said}\n\n{folder}: expected a table of items or of events, found none that was recognised. Describe "
            f"it by hand in {FILE}: all keys are in docs/your_data.md."
        )
    path = out or folder / FILE
    inner = "." if path.parent.resolve() == folder.resolve() else str(folder.resolve())
    text = toml(found, inner)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    if before == text:
        done = f"{path}: as it was"
    elif before is None:
        write_text(path, text)
        done = f"{path}: written"
    elif is_sealed(before):
        write_text(path, text)
        done = f"{path}: written anew, {_changed(before, text)} lines are new (nobody had changed it)"
    else:
        beside = path.with_name(path.name + PROPOSED)
        write_text(beside, text)
        done = f"{path}: left alone, it was changed by hand; what init would write is in {beside}"
    open_description(path)  # what is there can be read
    data = folder if inner == "." and path.name == FILE else path
    return f"{said}\n\n{done}. Correct what is wrong in it, then run:\n\n   moon demo --data {data}"


def described_by(data: Path, run_folder: Path) -> Path:
    """What a run imports: a dataset artifact, a description, or the one that is now written for a folder without.

    The description of a folder that cannot be written to is in the run's folder.

    Raises:
        DataError: nothing is there, or nothing in it was recognised.
    """
    from dataset.adapters.described.description import FILE

    place, own = described_at(data, run_folder), run_folder / FILE
    if place is not None:
        return place
    try:
        said = init(data, None if os.access(data, os.W_OK) else own)
    except DiskError:  # a file system that is read-only whoever asks
        said = init(data, own)
    sys.stderr.write("\n".join(f"  {line}".rstrip() for line in said.splitlines()) + "\n")
    return data if (data / FILE).exists() else own


def described_at(data: Path, run_folder: Path) -> Path | None:
    """Where the description of a run's data is, as of ``described_by``; None: there is none (any more)."""
    from dataset.adapters.described.description import FILE

    if data.is_file() or (data / MANIFEST).exists() or (data / FILE).exists():
        return data
    own = run_folder / FILE
    return own if own.exists() else None


def _changed(before: str, after: str) -> int:
    return len(set(after.splitlines()) - set(before.splitlines()))
