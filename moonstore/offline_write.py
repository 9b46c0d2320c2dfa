"""Rows and logs written to sources, at the places where the offline store looks for them.

Feast reads a source's relative path against the repository and appends to it against the working directory, so that a
pushed row may never reach a training frame; and it truncates the file that it appends to.
"""

from __future__ import annotations

import copy
from pathlib import Path

import ibis
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores import duckdb as feast_duckdb
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource

from moonstore.files import replacing


def write_source(
    rows: ibis.Table, source: DataSource, repo_path: str, mode: str = "append", allow_overwrite: bool = False
) -> None:
    """Append rows to a source, or write them in place of it.

    A parquet file that is appended to is replaced at once; other formats and places are left to Feast.

    Args:
        rows: with the columns of the source.
        source: a relative path is resolved against the repository.
        repo_path: the repository.
        mode: "append" or "overwrite".
        allow_overwrite: whether something may be there that is written over.
    """
    source = inside(source, repo_path)
    if (
        mode == "append"
        and isinstance(source, FileSource)
        and is_parquet(source)
        and Path(source.path).is_file()
    ):
        _append(rows, Path(source.path))
    else:
        feast_duckdb._write_data_source(rows, source, repo_path, mode, allow_overwrite)


def log_inside(config: LoggingConfig, repo_path: str) -> LoggingConfig:
    """The configuration with a destination that does not depend on the working directory."""
    destination = config.destination
    if not isinstance(destination, FileLoggingDestination):
        return config
    destination = copy.copy(destination)
    destination.path = FileSource.get_uri_for_file_path(repo_path, destination.path)
    return LoggingConfig(destination, config.sample_rate)


def inside(source: DataSource, repo_path: str) -> DataSource:
    """The source with its absolute path."""
    if not isinstance(source, FileSource):
        return source
    source = copy.deepcopy(source)
    source.file_options.uri = str(FileSource.get_uri_for_file_path(repo_path, source.path))
    return source


def is_parquet(source: DataSource) -> bool:
    """Whether it is a parquet file, or a folder of them, on this machine."""
    if not isinstance(source, FileSource) or "://" in source.path:
        return False
    return isinstance(source.file_format, feast_duckdb.ParquetFormat) or (
        source.file_format is None and source.path.endswith(".parquet")
    )


def _append(rows: ibis.Table, path: Path) -> None:
    stored = pq.ParquetFile(path)
    schema = stored.schema_arrow
    added = rows.to_pyarrow().select(schema.names).cast(schema)
    with stored, replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in stored.iter_batches():
            writer.write_batch(batch)
        writer.write_table(added)
