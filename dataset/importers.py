"""Importers of real data by format name: from a folder of raw files to a checked dataset artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

from dataset.adapters.described.description import FILE, open_description
from dataset.adapters.described.importer import described
from dataset.adapters.globo import scale_globo
from dataset.adapters.grocery import grocery_store
from dataset.adapters.hm import hm_fashion
from dataset.adapters.homedepot import homedepot_relevance
from dataset.adapters.longctr import longctr
from dataset.adapters.mbe import mbe, mbe2
from dataset.adapters.microlens import microlens
from dataset.adapters.movielens import ml_posters
from dataset.adapters.taobao_mm import taobao_mm
from dataset.append import Appended, append
from dataset.contracts import DataError, Tables
from dataset.tables import Dataset, untyped, write_dataset
from run.artifacts import MANIFEST, Artifact, open_artifact, write_artifact

# Each takes a folder and returns canonical tables and the configuration to record in the artifact.
IMPORTERS: dict[str, Callable[..., tuple[Tables, dict[str, Any]]]] = {
    "hm_fashion": hm_fashion,
    "ml_posters": ml_posters,
    "homedepot_relevance": homedepot_relevance,
    "grocery_store": grocery_store,
    "scale_globo": scale_globo,
    "mbe": mbe,
    "mbe2": mbe2,
    "longctr": longctr,
    "taobao_mm": taobao_mm,
    "microlens": microlens,
}
OF_SEVERAL_FILES = ("hm_fashion", "ml_posters", "homedepot_relevance")  # a new day may have only some of them


def is_format(data: str) -> bool:
    """Whether ``data`` is FORMAT:FOLDER with one of the formats, and not the path of a folder."""
    return data.partition(":")[0] in IMPORTERS and ":" in data


def import_dataset(name: str, folder: Path, out: Path) -> Artifact:
    """Import ``folder``, a source in the format ``name``, and write the dataset artifact to ``out``.

    Raises:
        DataError: unknown format, or the source does not fit the format; nothing is written.
    """
    return write_dataset(out, *_read(name, folder))


def append_files(name: str, folder: Path, dataset: Dataset) -> Appended:
    """Add ``folder``, new files in the format ``name``, to a dataset of that format, in its place.

    Raises:
        DataError: unknown format, the files do not fit it, or their rows not the dataset; it stays as it was.
    """
    some = {"some": True} if name in OF_SEVERAL_FILES else {}
    tables, config = _read(name, folder, **some)
    return append(dataset, tables, config, Path(folder).name)


def append_described(path: Path, folder: Path, dataset: Dataset) -> Appended:
    """Add ``folder``, new files under the description at ``path``, to a dataset of that description, in its place.

    Args:
        path: a ``moon.toml``, or a folder that holds one.
        folder: holds any of the files that it describes, under the same names.
        dataset: made under it.

    Raises:
        DataError: as ``append_files``; or the description has changed since.
    """
    if has_changed(path, dataset.artifact):
        raise DataError(
            f"{path}: expected the description that the dataset was imported under, found another one. Append under "
            f"that, or import everything anew into another folder, with --run."
        )
    tables, config = described(path / FILE if path.is_dir() else path, folder)
    with _names_types(config):
        done = append(dataset, tables, config, Path(folder).name)
    said = untyped(config)
    return replace(
        done, said=f"{said}, and import everything anew into another folder, with --run" if said else ""
    )


def _read(name: str, folder: Path, **options: Any) -> tuple[Tables, dict[str, Any]]:
    if name not in IMPORTERS:
        raise DataError(
            f"expected one of the formats {', '.join(IMPORTERS)}, found {name!r}. "
            f"Run 'moon dataset --data FORMAT:FOLDER'."
        )
    return IMPORTERS[name](Path(folder), **options)


def import_path(path: Path, out: Path) -> Artifact:
    """Import ``path``: a ``moon.toml``, a folder that holds one, or a dataset artifact, to an artifact at ``out``.

    Raises:
        DataError: there is none of them, or the data are not what the description says; nothing is written.
    """
    if (path / MANIFEST).exists():
        return copied(open_artifact(path, "dataset"), out)
    tables, config = described(path / FILE if path.is_dir() else path)
    with _names_types(config):
        return write_dataset(out, tables, config)


@contextmanager
def _names_types(config: Mapping[str, Any]) -> Iterator[None]:
    """Errors of a described log also say which of its types the description does not list."""
    try:
        yield
    except DataError as error:
        if not (said := untyped(config)):
            raise
        raise DataError(f"{error} {said}.") from error


def copied(dataset: Artifact, out: Path) -> Artifact:
    """Write the same dataset artifact, with the same id, to ``out``."""
    if dataset.path.resolve() != out.resolve():
        with write_artifact(out, "dataset", dataset.config) as folder:
            for file in dataset.path.iterdir():
                if file.name != MANIFEST:
                    copyfile(file, folder / file.name)
    return open_artifact(out, "dataset")


def has_changed(path: Path, dataset: Artifact) -> bool:
    """Whether ``dataset`` was imported under another description than the one that is at ``path`` now.

    A description that is not there any more has not changed.
    """
    if (path / MANIFEST).exists():
        return "appended" not in dataset.config and open_artifact(path, "dataset").id != dataset.id
    description = path / FILE if path.is_dir() else path
    return description.exists() and open_description(description)[1] != dataset.config.get("description")
