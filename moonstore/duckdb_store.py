"""Feast's DuckDB offline store with three changes.

Point-in-time joins are lookups (``moonstore.asof``) that keep the order of the rows. A source's relative
path is resolved against the repository, not the working directory, when it is read and when it is written, so a
repository can be moved and two can be open at once. Timestamps in nanoseconds, which pandas writes, are read as
microseconds: DuckDB cannot cast them to what Feast's own queries compare them with.
"""

from __future__ import annotations

import atexit
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import FeatureView
from feast.infra.offline_stores import duckdb as feast_duckdb
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.ibis import (
    get_historical_features_ibis,
    offline_write_batch_ibis,
    pull_all_from_table_or_query_ibis,
    pull_latest_from_table_or_query_ibis,
)
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from ibis.expr import datatypes as dt

from moonstore.asof import Reader, asof_job, lookup, why_not
from moonstore.clock import CLOCK_SKEW
from moonstore.errors import StoreError
from moonstore.exact import ExactIbisJob, ExactJob
from moonstore.offline_write import is_parquet, log_inside, write_source
from moonstore.readable import readable

# ibis 11 calls a method that DuckDB 2 has renamed, which warns once per query.
warnings.filterwarnings("ignore", message="fetch_arrow_table", category=DeprecationWarning)

log = logging.getLogger(__name__)


class DuckDBOfflineStoreConfig(feast_duckdb.DuckDBOfflineStoreConfig):
    """The options of Feast's own store."""

    type: str = "moonstore.duckdb_store.DuckDBOfflineStore"


class DuckDBOfflineStore(feast_duckdb.DuckDBOfflineStore):
    """Point-in-time joins over parquet files; every entity row is returned, also one without any feature."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """The newest row of each view at or before each entity row's time, in the order of the entity rows.

        Requests that a lookup cannot answer use Feast's own plan, with a warning that gives the reason.

        Raises:
            StoreError: the entity rows have a column named as a feature is.
        """
        reason = why_not(feature_views, entity_df, filter_by_created_timestamp)
        if reason is None:
            assert isinstance(entity_df, pd.DataFrame)
            with readable():
                tables = [(view, read(view.batch_source, str(config.repo_path))) for view in feature_views]
            lookups = [lookup(view, feature_refs, full_feature_names, table) for view, table in tables]
            return asof_job(
                lookups,
                entity_df,
                feature_refs,
                OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
                full_feature_names=full_feature_names,
                repo_path=str(config.repo_path),
                **_staging(config),
            )
        log.warning("point-in-time join by Feast's own plan, many times slower: %s", reason)
        job = get_historical_features_ibis(
            config=config,
            feature_views=feature_views,
            feature_refs=feature_refs,
            entity_df=entity_df,
            registry=registry,
            project=project,
            full_feature_names=full_feature_names,
            filter_by_created_timestamp=filter_by_created_timestamp,
            **readers(config, read),
        )
        return ExactIbisJob.of(job)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each entity in [start_date, end_date].

        From a parquet source also the rows with a null key, a null time or a time in the future, so that the writer
        can refuse and report them (``moonstore.batch.sift``).
        """
        columns = [*join_key_columns, *feature_name_columns, timestamp_field]
        columns += [created_timestamp_column] if created_timestamp_column else []
        if isinstance(data_source, FileSource) and is_parquet(data_source):
            path = FileSource.get_uri_for_file_path(str(config.repo_path), data_source.path)
            _check_columns(path, columns)
            query = newest_rows(
                path,
                columns,
                join_key_columns,
                timestamp_field,
                created_timestamp_column,
                start_date,
                end_date,
            )
            return StreamJob(query)
        job = pull_latest_from_table_or_query_ibis(
            config=config,
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            **readers(config, read),
        )
        return ExactIbisJob.of(job)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row in [start_date, end_date]."""
        job = pull_all_from_table_or_query_ibis(
            config=config,
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            **readers(config, read),
        )
        return ExactIbisJob.of(job)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the source of a view, where the next join finds them."""
        offline_write_batch_ibis(config, feature_view, table, progress, write_source)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Write a log of served features to its destination in the repository."""
        logging_config = log_inside(logging_config, str(config.repo_path))
        feast_duckdb.DuckDBOfflineStore.write_logged_features(config, data, source, logging_config, registry)


def _check_columns(path: str, columns: Sequence[str]) -> None:
    if not Path(path).exists():
        raise StoreError(
            f"{path}: expected the source of a view, found no file. The online store is unchanged."
        )
    with readable(path):
        there = set(pq.read_schema(path).names) if Path(path).is_file() else set(columns)
    missing = [name for name in columns if name not in there]
    if missing:
        raise StoreError(
            f"{path}: expected the columns {', '.join(columns)}, found none called {', '.join(missing)} "
            f"among {', '.join(sorted(there))}. Write them, or take them out of the view and run 'feast apply'."
        )


class StreamJob(ExactJob):
    """The rows of a DuckDB query, all at once or as a stream."""

    full_feature_names = False
    on_demand_feature_views: ClassVar[list[OnDemandFeatureView]] = []
    metadata = None

    def __init__(self, query: str) -> None:
        super().__init__()
        self._query = query

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """The result in batches of at most ``rows`` rows."""
        with readable(), duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield from connection.sql(self._query).to_arrow_reader(rows)

    def persist(
        self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None
    ) -> None:
        """Not supported."""
        raise NotImplementedError("rows to materialize cannot be saved as a dataset")

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with readable(), duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            return connection.sql(self._query).to_arrow_table()


def newest_rows(
    path: str,
    columns: Sequence[str],
    keys: Sequence[str],
    time: str,
    created: str | None,
    start: datetime,
    end: datetime,
) -> str:
    """The query for the newest row of each key of parquet files, and for rows with a null or a future time.

    The rows are selected by key and time alone; the wide columns are then read once, in a stream.
    """
    now = _literal(datetime.now(UTC) + CLOCK_SKEW)
    stamp = f"{_name(time)}::TIMESTAMPTZ"
    inside = f"{stamp} BETWEEN {_literal(start)} AND {_literal(end)}"
    order = stamp if not created else f"row({stamp}, coalesce({_name(created)}::TIMESTAMPTZ, '-infinity'))"
    source = f"read_parquet('{path.replace(chr(39), chr(39) * 2)}', file_row_number = true)"
    row = "file_row_number" if Path(path).is_file() else "(file_index::BIGINT << 40) + file_row_number"
    null = " OR ".join(f"{_name(column)} IS NULL" for column in (*keys, time))
    group = f"GROUP BY {', '.join(map(_name, keys))}" if keys else ""  # a view without entities has one row
    return (
        f"SELECT {', '.join(map(_name, columns))} FROM {source} WHERE ({inside} OR {stamp} IS NULL) AND "
        f"({null} OR {stamp} > {now} OR {row} IN (SELECT arg_max({row}, {order}) FROM {source} "
        f"WHERE {inside} AND {stamp} <= {now} {group}))"
    )


def _literal(moment: datetime) -> str:
    return f"TIMESTAMPTZ '{moment.astimezone(UTC).isoformat()}'"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def readers(config: RepoConfig, reader: Reader) -> dict[str, Any]:
    """Arguments of Feast's ibis plans: how to read sources and write results."""
    return {"data_source_reader": reader, **_staging(config)}


def _staging(config: RepoConfig) -> dict[str, Any]:
    return {
        "data_source_writer": write_source,
        "staging_location": config.offline_store.staging_location,
        "staging_location_endpoint_override": config.offline_store.staging_location_endpoint_override,
    }


def read(data_source: DataSource | None, repo_path: str) -> ibis.Table:
    """The rows of a source; a relative path is resolved against the repository."""
    if data_source is None:
        raise StoreError("expected a view with a batch source, found one without")
    if isinstance(data_source, FileSource) and is_parquet(data_source):
        table = ibis.read_parquet(FileSource.get_uri_for_file_path(repo_path, data_source.path))
    else:
        table = feast_duckdb._read_data_source(data_source, repo_path)
    return table.mutate(
        **{name: table[name].cast(short) for name, of in table.schema().items() if (short := _in_us(of))}
    )


def _in_us(of: dt.DataType) -> dt.DataType | None:
    """The type of a timestamp in microseconds if this is one in nanoseconds, else None."""
    if of.is_timestamp():
        return dt.Timestamp(of.timezone, 6) if of.scale == 9 else None
    # ibis has no name for nanoseconds with a time zone.
    return dt.Timestamp("UTC", 6) if of.is_unknown() and "TIMESTAMPTZ_NS" in str(of) else None


@atexit.register
def _close() -> None:
    # Otherwise DuckDB 2 prints a long report about leaked objects at exit.
    if ibis.options.default_backend is not None:
        ibis.options.default_backend.disconnect()
        ibis.options.default_backend = None
        gc.collect()
