"""Retrieval jobs whose pandas frames hold the integers of the store.

pandas turns integers beside a missing value into floats, which cannot hold an id above 2**53. Here such a column has
pandas' nullable type instead.
"""

from __future__ import annotations

from typing import Any

import ibis
import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.ibis import IbisRetrievalJob
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.saved_dataset import SavedDatasetStorage

NULLABLE = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}


def exact_frame(table: pa.Table) -> pd.DataFrame:
    """The table as pandas; integers beside a null keep their value, in columns of a nullable type or in lists."""
    frame = table.to_pandas()
    for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if column.type in NULLABLE and column.null_count:
            frame.isetitem(place, pd.Series(column.to_pandas(types_mapper=NULLABLE.get), frame.index))
        elif _holds_nulls(column):
            frame.isetitem(place, pd.Series(column.to_pylist(), frame.index, dtype=object, name=name))
    return frame


def _holds_nulls(column: pa.ChunkedArray) -> bool:
    """Whether it is a column of lists of integers, some of them null."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return False
    return column.type.value_type in NULLABLE and any(chunk.flatten().null_count for chunk in column.chunks)


class ExactJob(RetrievalJob):
    """A job whose ``to_df`` does not round: the part of it that this store's jobs share."""

    def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> pd.DataFrame:
        """The result as pandas (``exact_frame``); for the arguments see Feast's ``RetrievalJob.to_df``."""
        return exact_frame(self.to_arrow(validation_reference, timeout))

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return exact_frame(self._to_arrow_internal(timeout))


class ExactIbisJob(ExactJob, IbisRetrievalJob):
    """The result of one of Feast's ibis plans."""

    def persist(
        self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None
    ) -> None:
        """Save the result with the features of on-demand views, which Feast names but leaves out."""
        result = ibis.memtable(self.to_arrow(timeout=timeout))
        self.data_source_writer(
            result, storage.to_data_source(), self.repo_path, "overwrite", allow_overwrite
        )

    @classmethod
    def of(cls, job: RetrievalJob) -> ExactIbisJob:
        """The job with exact frames."""
        assert isinstance(job, IbisRetrievalJob)
        return cls(
            job.table,
            on_demand_feature_views=job.on_demand_feature_views,
            full_feature_names=job.full_feature_names,
            metadata=job.metadata,
            data_source_writer=job.data_source_writer,
            staging_location=job.staging_location,
            staging_location_endpoint_override=job.staging_location_endpoint_override,
            repo_path=job.repo_path,
        )
