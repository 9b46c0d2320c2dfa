"""The offline store of Moon's repository: behaviour histories are cut from the event log.

Materialization writes the histories as of the end of its interval, cut by the same code as for training.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import ibis
from feast.data_source import DataSource
from feast.infra.offline_stores.ibis import pull_latest_from_table_or_query_ibis
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.repo_config import RepoConfig

from feature_repo.event_log import open_event_log
from feature_repo.sources import source
from feature_repo.views import HISTORY, USER_HISTORY
from moonstore import duckdb_store
from moonstore.exact import ExactIbisJob
from moonstore.freshness import EPOCH, US


class MoonOfflineStoreConfig(duckdb_store.DuckDBOfflineStoreConfig):
    """The options of Feast's own store."""

    type: str = "feature_repo.offline_store.MoonOfflineStore"


class MoonOfflineStore(duckdb_store.DuckDBOfflineStore):
    """``moonstore.duckdb_store``, with histories as of the end of the requested interval."""

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
        """The newest row of each entity in [start_date, end_date]; histories as of end_date."""
        if data_source != source(USER_HISTORY):  # not by its name alone, which anybody may give a source
            return duckdb_store.DuckDBOfflineStore.pull_latest_from_table_or_query(
                config,
                data_source,
                join_key_columns,
                feature_name_columns,
                timestamp_field,
                created_timestamp_column,
                start_date,
                end_date,
            )

        def histories(_: DataSource | None, repo_path: str) -> ibis.Table:
            end_us = (end_date.astimezone(UTC) - EPOCH) // US
            return ibis.memtable(
                open_event_log(Path(repo_path)).snapshot(before_us=end_us + 1, history=HISTORY)
            )

        job = pull_latest_from_table_or_query_ibis(
            config=config,
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            **duckdb_store.readers(config, histories),
        )
        return ExactIbisJob.of(job)
