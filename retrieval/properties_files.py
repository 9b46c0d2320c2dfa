"""The properties of items as part of an artifact: what it says in its tensors, its configuration and two tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.properties import Basis, Properties
from retrieval.words import Vocabulary
from run.artifacts import Artifact

VALUES, WORDS = "values.parquet", "words.parquet"


def property_tensors(items: Properties) -> dict[str, np.ndarray]:
    """Tensors by name; they begin with ``item_id``, ``codes``, ``space/``, ``centre/`` and ``directions/``."""
    tensors = {"item_id": items.item_ids, "codes": items.codes}
    tensors |= {f"space/{name}": rows for name, rows in items.spaces.items()}
    for name, basis in items.bases.items():
        tensors |= {f"centre/{name}": basis.centre, f"directions/{name}": basis.directions}
    return tensors


def property_config(items: Properties) -> dict[str, Any]:
    """What the configuration says of them."""
    return {
        "fields": list(items.fields),
        "spaces": list(items.spaces),
        "bases": list(items.bases),
        "price": list(items.price),
    }


def write_property_tables(items: Properties, folder: Path) -> None:
    """The values of the fields and the words of the vocabulary, each with its number."""
    pairs = [
        (field, *pair)
        for field, known in zip(items.fields, items.values, strict=True)
        for pair in known.items()
    ]
    field, value, code = zip(*pairs, strict=True) if pairs else ((), (), ())
    columns = {"field": pa.array(field, pa.string()), "value": pa.array(value, pa.string())}
    pq.write_table(pa.table(columns | {"code": pa.array(code, pa.int32())}), folder / VALUES)
    words = pa.array(list(items.vocabulary.column_of), pa.string())
    pq.write_table(pa.table({"word": words, "weight": items.vocabulary.weight}), folder / WORDS)


def open_properties(artifact: Artifact, tensors: Mapping[str, np.ndarray]) -> Properties:
    """The properties that an artifact with these tensors holds."""
    config = artifact.config
    values: dict[str, dict[str, int]] = {field: {} for field in config["fields"]}
    for row in pq.read_table(artifact.file(VALUES)).to_pylist():
        values[row["field"]][row["value"]] = row["code"]
    words = pq.read_table(artifact.file(WORDS))
    column_of = {word: column for column, word in enumerate(words["word"].to_pylist())}
    mean, deviation = config["price"]
    return Properties(
        item_ids=tensors["item_id"],
        fields=tuple(config["fields"]),
        codes=tensors["codes"],
        spaces={name: tensors[f"space/{name}"] for name in config["spaces"]},
        values=tuple(values.values()),
        price=(mean, deviation),
        bases={
            name: Basis(tensors[f"centre/{name}"], tensors[f"directions/{name}"]) for name in config["bases"]
        },
        vocabulary=Vocabulary(column_of, words["weight"].to_numpy()),
    )
