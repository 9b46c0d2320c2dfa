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
from dataset.contracts import DataError, Tables
from dataset.tables import write_dataset
from run.artifacts import Artifact

# Each takes a folder and returns canonical tables and the configuration to record in the artifact.
IMPORTERS: dict[str, Callable[[Path], tuple[Tables, dict[str, Any]]]] = {
    "hm_fashion": hm_fashion,
    "ml_posters": ml_posters,
    "homedepot_relevance": homedepot_relevance,
    "grocery_store": grocery_store,
    "scale_globo": scale_globo,
    "mbe": mbe,
    "mbe2": mbe2,
}


def import_dataset(name: str, folder: Path, out: Path) -> Artifact:
    """Import ``folder``, a source in the format ``name``, and write the dataset artifact to ``out``.

    Raises:
        DataError: unknown format, or the source does not fit the format; nothing is written.
    """
    if name not in IMPORTERS:
        raise DataError(
            f"expected one of the formats {', '.join(IMPORTERS)}, found {name!r}. "
            f"Run 'moon dataset --data FORMAT:FOLDER'."
        )
    tables, config = IMPORTERS[name](Path(folder))
    return write_dataset(out, tables, config)
