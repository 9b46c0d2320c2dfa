"""Materialization on Arrow: the newest row per entity, streamed from the offline store into the online one.

Feast's local engine creates a Python object per value and one table per view. Here batches are encoded column by
column, so memory does not grow with the number of rows. Invalid rows go to ``data/dead_letter`` with a reason instead
of ending the run, and every run writes a report to ``data/materialization``. Views with transformations, aggregations
or filters, and other stores, use Feast's engine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
from feast import Entity, FeatureView, RepoConfig
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.offline_stores.offline_store import OfflineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.utils import _get_column_names
from tqdm import tqdm

from moonstore.batch import Batch, sift
from moonstore.disk import make_folder
from moonstore.duckdb_store import StreamJob
from moonstore.errors import StoreError
from moonstore.files import write_json
from moonstore.freshness import EPOCH
from moonstore.refused_rows import DATA, DEAD_LETTER, RefusedRows

ROWS_AT_ONCE = 10_000
REPORTS = "materialization"


class ArrowComputeEngineConfig(LocalComputeEngineConfig):
    """Options of the engine.

    Attributes:
        overlap_hours: how far an incremental run reaches back before the end of the previous one, to include late
            rows. Writing a row again changes nothing.
    """

    type: str = "moonstore.engine.ArrowComputeEngine"  # type: ignore[assignment]
    overlap_hours: float = 48.0


@runtime_checkable
class ColumnStore(Protocol):
    """An online store that writes columns."""

    def write_columns(self, config: RepoConfig, view: FeatureView, batch: Batch) -> int:
        """Write the rows that are not older than the stored ones; returns their number."""


@dataclass
class Report:
    """The result of materializing one view.

    Attributes:
        view: its name.
        start, end: the interval, ISO 8601.
        rows: number of rows read.
        written: number written; the others were older than the stored rows, or refused.
        refused: number of refused rows by reason.
        dead_letter: file of the refused rows, relative to the repository; empty if none was refused.
        seconds: duration.
    """

    view: str
    start: str
    end: str
    rows: int = 0
    written: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    dead_letter: str = ""
    seconds: float = 0.0

    @classmethod
    def load(cls, repository: Path, view: str) -> Report:
        """The report of the view's last run.

        Raises:
            StoreError: it is damaged.
            FileNotFoundError: there is none.
        """
        path = repository / DATA / REPORTS / f"{view}.json"
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise StoreError(f"{path}: damaged ({error}). Load the view {view} again.") from None

    def save(self, repository: Path) -> None:
        """Write the report atomically."""
        folder = repository / DATA / REPORTS
        make_folder(folder)
        write_json(folder / f"{self.view}.json", asdict(self))


class ArrowComputeEngine(LocalComputeEngine):
    """Feast's engine, with plain views materialized on Arrow."""

    def __init__(self, overlap_hours: float = 48.0, type: str = "", **rest: Any) -> None:
        super().__init__(**rest)
        self.overlap = timedelta(hours=overlap_hours)

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        if not (_plain(view) and isinstance(self.online_store, ColumnStore)):
            return super()._materialize_one(registry, task, **kwargs)
        name = f"{view.name}-{task.start_time}-{task.end_time}"
        try:
            self._load(registry, task, self.online_store)
        except Exception as error:  # Feast raises it again after restoring the view's state
            return LocalMaterializationJob(name, MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(name, MaterializationJobStatus.SUCCEEDED)

    def _load(self, registry: BaseRegistry, task: MaterializationTask, store: ColumnStore) -> None:
        view, repository, began = task.feature_view, Path(self.repo_config.repo_path or "."), time.monotonic()
        start = task.start_time
        if not view.materialization_intervals:
            start = min(
                start, EPOCH
            )  # nothing is online: rows from before the interval would never get there
        elif any(end == start for _, end in view.materialization_intervals):
            start -= self.overlap
        report = Report(view.name, start.isoformat(), task.end_time.isoformat())
        dead = RefusedRows(repository / DATA / DEAD_LETTER / f"{view.name}.parquet")
        with dead:
            entities = [registry.get_entity(name, task.project) for name in view.entities]
            batches = newest(self.repo_config, self.offline_store, view, entities, start, task.end_time)
            for rows in tqdm(batches, view.name, unit=f" x {ROWS_AT_ONCE:,} rows", disable=None):
                sifted = sift(view, rows, datetime.now(UTC))
                dead.add(sifted.refused)
                for reason, count in sifted.reasons.items():
                    report.refused[reason] = report.refused.get(reason, 0) + count
                report.rows += rows.num_rows
                if len(sifted.batch):
                    report.written += store.write_columns(self.repo_config, view, sifted.batch)
        report.dead_letter = str(dead.path.relative_to(repository)) if report.refused else ""
        report.seconds = time.monotonic() - began
        report.save(repository)


def newest(
    config: RepoConfig,
    offline_store: OfflineStore,
    view: FeatureView,
    entities: Sequence[Entity],
    start: datetime,
    end: datetime,
) -> Iterator[pa.Table]:
    """Batches of the newest row of each entity in [start, end], columns named as in the view."""
    keys, features, stamp, created = _get_column_names(view, list(entities))
    source = view.batch_source
    assert source is not None
    job = offline_store.pull_latest_from_table_or_query(
        config, source, keys, features, stamp, created, start, end
    )
    for batch in _batches(job):
        table = pa.Table.from_batches([batch])
        if DUMMY_ENTITY_ID in view.join_keys and DUMMY_ENTITY_ID not in table.column_names:
            # Feast's key of the one row of a view without entities; some of its offline stores add it.
            table = table.append_column(DUMMY_ENTITY_ID, pa.repeat(DUMMY_ENTITY_VAL, len(table)))
        yield table.rename_columns([source.field_mapping.get(name, name) for name in table.column_names])


def _batches(job: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(job, StreamJob):
        yield from job.batches(ROWS_AT_ONCE)
    else:
        yield from job.to_arrow().to_batches(max_chunksize=ROWS_AT_ONCE)


def _plain(view: FeatureView) -> bool:
    more = ("aggregations", "feature_transformation", "filter", "source_views")
    return (
        type(view) is FeatureView
        and view.batch_source is not None
        and not view.offline
        and not any(getattr(view, name, None) for name in more)
    )
