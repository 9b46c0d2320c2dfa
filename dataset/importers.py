"""Importers of real data by format name: from a folder of raw files to a checked dataset artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataset.adapters.globo import scale_globo
from dataset.adapters.grocery import grocery_store
from dataset.adapters.hm import hm_fashion
from dataset.adapters.homedepot import homedepot_relevance
from dataset.adapters.mbe import mbe, mbe2
from dataset.adapters.movielens import ml_posters
from dataset.append import Appended, append
from dataset.contracts import DataError, Tables
from dataset.tables import Dataset, write_dataset
from run.artifacts import Artifact

# Each takes a folder and returns canonical tables and the configuration to record in the artifact.
IMPORTERS: dict[str, Callable[..., tuple[Tables, dict[str, Any]]]] = {
    "hm_fashion": hm_fashion,
    "ml_posters": ml_posters,
    "homedepot_relevance": homedepot_relevance,
    "grocery_store": grocery_store,
    "scale_globo": scale_globo,
    "mbe": mbe,
    "mbe2": mbe2,
}
OF_SEVERAL_FILES = ("hm_fashion", "ml_posters", "homedepot_relevance")  # a new day may have only some of them


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


def _read(name: str, folder: Path, **options: Any) -> tuple[Tables, dict[str, Any]]:
    if name not in IMPORTERS:
        raise DataError(
            f"expected one of the formats {', '.join(IMPORTERS)}, found {name!r}. "
            f"Run 'moon dataset --data FORMAT:FOLDER'."
        )
    return IMPORTERS[name](Path(folder), **options)
