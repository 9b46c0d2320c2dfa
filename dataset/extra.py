"""Columns of a source that no canonical table has a place for, kept beside the id of their entity.

They are files of the dataset artifact, ``extra_item.parquet`` and so on, and their Arrow types are in its
configuration, under "extra". What ``moon.toml`` switches on of them is there under "features".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from run.artifacts import Artifact

TABLES = {
    "item": "items",
    "user": "users",
    "query": "queries",
    "event": "events",
}  # entity -> canonical table


@dataclass(frozen=True)
class LeftOver:
    """The left-over columns of a dataset.

    Attributes:
        tables: entity -> its id and the columns.
        on: entity -> the columns that are switched on.
    """

    tables: Mapping[str, pa.Table]
    on: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, dataset: Artifact) -> LeftOver:
        """Those of an artifact of kind "dataset"."""
        entities = [entity for entity in dataset.config.get("extra", {}) if entity != "event"]
        tables = {entity: pq.read_table(dataset.file(extra_file(entity))) for entity in entities}
        return cls(tables, dataset.config.get("features", {}))


NOTHING = LeftOver({}, {})


def extra_file(entity: str) -> str:
    """Name of the file in a dataset artifact: a column ``<entity>_id`` and the left-over ones."""
    return f"extra_{entity}.parquet"


def extra_types(extra: Mapping[str, pa.Table]) -> dict[str, dict[str, str]]:
    """The Arrow type of every left-over column, by entity."""
    return {
        entity: {column.name: str(column.type) for column in table.schema if column.name != f"{entity}_id"}
        for entity, table in extra.items()
    }


def write_extra(folder: Path, extra: Mapping[str, pa.Table], kept: Mapping[str, pa.Table]) -> None:
    """Write the left-over columns of what is kept.

    Args:
        folder: of the artifact that is being written.
        extra: by entity.
        kept: canonical tables, by name.
    """
    for entity, table in extra.items():
        key = f"{entity}_id"
        is_there = pc.is_in(table.column(key), value_set=kept[TABLES[entity]].column(key))
        pq.write_table(table.filter(is_there), folder / extra_file(entity), compression="zstd")
