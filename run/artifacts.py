"""Artifacts: the only interface between stages.

An artifact is a directory with a ``manifest.json`` naming its kind, configuration, parents and the sha256
of every file. It is written under a temporary name, fsynced and renamed, so half-written artifacts do not exist.
It is verified when opened; a damaged one is refused with the command that recreates it.

There is one way to open: ``open_artifact`` turns a path into a verified ``Artifact``, and a loader
(``Dataset.open``, ``Vectors.open``, ``Ranker.open``, ...) takes that artifact, never a path, and trusts it. Each
entry point (a stage, the service, a measurement) opens an artifact once and passes it, or what was loaded from it,
on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moonstore.disk import writing
from moonstore.files import fsync, removed_if_it_fails

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
KEYS = ("schema_version", "kind", "config", "parents", "files", "id")  # of a manifest
MADE_BY = {  # the command that makes an artifact of each kind
    "dataset": "moon dataset",
    "split": "moon split",
    "encoder": "moon encoder train",
    "embedding": "moon embed",
    "cooccurrence": "moon retrieval",
    "index": "moon retrieval",
    "words": "moon retrieval",
    "taste": "moon retrieval",
    "lifts": "moon retrieval",
    "word_vectors": "moon retrieval",
    "two_tower": "moon retrieval",
    "taken": "moon retrieval",
    "fusion": "moon retrieval",
    "ranker": "moon ranker",
    "relevance": "moon ranker",
    "search": "moon ranker",
}


class ArtifactError(RuntimeError):
    """An artifact is missing, damaged, of the wrong kind, or was made from other parents than expected."""


@dataclass(frozen=True)
class Artifact:
    """A verified artifact on disk.

    Attributes:
        path: its directory.
        kind: what it holds, e.g. ``"embedding"``.
        id: 16 hex digits, a hash of kind, configuration, parents and file hashes: equal ids mean equal content.
        config: the complete configuration it was made with (JSON values).
        parents: role -> id of each artifact it was made from.
    """

    path: Path
    kind: str
    id: str
    config: dict[str, Any]
    parents: dict[str, str]

    def file(self, name: str) -> Path:
        """Path of one of the artifact's files."""
        return self.path / name


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _identity(manifest: Mapping[str, Any]) -> str:
    canonical = json.dumps(
        {key: manifest[key] for key in KEYS if key != "id"},
        sort_keys=True,
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _rows(path: Path) -> int | None:
    if path.suffix != ".parquet":
        return None
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def read_json(
    path: Path, again: str, keys: Collection[str] | None = None, perhaps: Collection[str] = ()
) -> Any:
    """Read a record that ``write_json`` wrote.

    Args:
        path: of the record.
        again: what to do about a damaged one, a sentence.
        keys: which the record has, if it is an object with known ones.
        perhaps: keys that it may have besides.

    Raises:
        ArtifactError: it is damaged.
        FileNotFoundError: there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path}: damaged, not JSON any more ({error}). {again}") from None
    if keys is not None and (not isinstance(content, dict) or set(content) - set(perhaps) != set(keys)):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(f"{path}: damaged, expected the keys {sorted(keys)}, found {found}. {again}")
    return content


def discard(folder: Path) -> None:
    """Remove a folder, if it is there; a kill in the middle leaves nothing under its name."""
    leaving = folder.with_name(folder.name + ".leaving")
    with writing(folder):
        for _ in range(2):  # first what an earlier removal left that was killed
            if leaving.exists():
                shutil.rmtree(leaving)
            if folder.exists():
                folder.rename(leaving)


@contextlib.contextmanager
def write_artifact(
    path: Path, kind: str, config: Mapping[str, Any], parents: Mapping[str, Artifact] | None = None
) -> Iterator[Path]:
    """Yield an empty directory to fill; on a clean exit seal it with a manifest and rename it to ``path``.

    An exception inside the block leaves ``path`` untouched. An existing artifact is moved aside first and removed
    last, so at every moment either the old or the new one can be opened.

    Raises:
        DiskError: the disk does not take it.
    """
    path = Path(path)
    temporary, previous = (path.with_name(path.name + end) for end in (".tmp", ".previous"))
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(path), removed_if_it_fails(temporary):
        temporary.mkdir(parents=True)
        yield temporary
        _seal(temporary, kind, config, parents or {})
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            path.rename(previous)
        temporary.rename(path)
        fsync(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a ``write_artifact`` that was killed left beside the artifact at ``path``, which is whole."""
    with writing(path):
        for end in (".tmp", ".previous"):
            if (left := path.with_name(path.name + end)).exists():
                shutil.rmtree(left)


def _seal(folder: Path, kind: str, config: Mapping[str, Any], parents: Mapping[str, Artifact]) -> None:
    """Write the manifest of the files in a folder, and have everything on disk."""
    files: dict[str, dict[str, Any]] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        fsync(file)
        entry: dict[str, Any] = {"sha256": _sha256(file), "bytes": file.stat().st_size}
        if (rows := _rows(file)) is not None:
            entry["rows"] = rows
        files[file.relative_to(folder).as_posix()] = entry
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "config": dict(config),
        "parents": {role: parent.id for role, parent in parents.items()},
        "files": files,
    }
    manifest["id"] = _identity(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    fsync(folder / MANIFEST)
    for inner in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        fsync(inner)


def open_artifact(path: Path, kind: str, made_by: str | None = None) -> Artifact:
    """Verify and open the artifact at ``path``.

    Args:
        path: its directory.
        kind: the kind the caller can read.
        made_by: the command that creates it, for the error message; None: the one in ``MADE_BY``.

    Raises:
        ArtifactError: missing, of another kind, a file missing, altered, or not in the manifest.
    """
    path = Path(path)
    previous = path.with_name(path.name + ".previous")
    if not path.exists() and previous.exists():
        with writing(path):
            previous.rename(path)  # write_artifact was killed between its two renames
    again = f"Run '{MADE_BY[kind] if made_by is None else made_by}' to recreate it."
    try:
        manifest = read_json(path / MANIFEST, again, KEYS)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: expected a {kind} artifact, found no {MANIFEST}. {again}") from None
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: expected schema version {SCHEMA_VERSION}, found {manifest['schema_version']}. {again}"
        )
    if manifest["kind"] != kind:
        raise ArtifactError(f"{path}: expected a {kind} artifact, found a {manifest['kind']} one. {again}")
    if manifest["id"] != _identity(manifest):  # before anything in it is believed
        raise ArtifactError(
            f"{path / MANIFEST}: expected id {_identity(manifest)}, found {manifest['id']}: it was edited. {again}"
        )
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - {MANIFEST}
    listed = set(manifest["files"])
    if present != listed:
        raise ArtifactError(
            f"{path}: {len(listed - present)} files missing {sorted(listed - present)[:3]}, "
            f"{len(present - listed)} unknown {sorted(present - listed)[:3]}. {again}"
        )
    for name, entry in manifest["files"].items():
        digest = _sha256(path / name)
        if digest != entry["sha256"]:
            raise ArtifactError(
                f"{path / name}: expected sha256 {entry['sha256'][:12]}…, found {digest[:12]}…: "
                f"the file changed after it was written. {again}"
            )
    return Artifact(path, kind, manifest["id"], manifest["config"], manifest["parents"])


def require_parent(child: Artifact, role: str, parent: Artifact) -> None:
    """Refuse a ``child`` that was made from another artifact than ``parent``.

    Every consumer of two artifacts checks this: an index of one encoder with a ranker of another gives wrong results
    without an error.

    Raises:
        ArtifactError: naming both ids.
    """
    if child.parents.get(role) != parent.id:
        raise ArtifactError(
            f"{child.path}: made from {role} {child.parents.get(role)}, expected {parent.id} ({parent.path}). "
            f"Run the later stage again so that both agree."
        )


def require_agreement(artifacts: Mapping[str, Artifact], required: Sequence[tuple[str, str]] = ()) -> None:
    """Refuse artifacts whose recorded parents differ from the ones opened with them.

    Args:
        artifacts: role -> artifact.
        required: (child role, parent role) pairs that must be present and recorded; others are checked if present.

    Raises:
        ArtifactError: naming the first pair that disagrees.
    """
    for child, parent in required:
        if child not in artifacts or parent not in artifacts:
            raise ArtifactError(f"expected the artifacts {child} and {parent}, found {sorted(artifacts)}")
        require_parent(artifacts[child], parent, artifacts[parent])
    for artifact in artifacts.values():
        for role in sorted(artifact.parents.keys() & artifacts.keys()):
            require_parent(artifact, role, artifacts[role])
