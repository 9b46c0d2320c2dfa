"""What was sent with logged requests: the columns that ``moon.toml`` keeps beside each event (``context``).

A ``RequestSource`` that names such a column is filled from it in training, as a caller fills it with every request
(``GET /recommend?context=``). The column of the file and the field of the source have one name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.contracts import DataError
from feature_repo.columns import as_read
from feature_repo.on_demand import reads_of
from feature_repo.services import CTR
from feature_repo.signature import open_signature
from feature_repo.sources import CONTEXT, DATA
from feature_repo.store import open_store

EVENT = "event_id"


def with_context(store_dir: Path, rows: pa.Table, context: Mapping[str, pa.DataType]) -> pa.Table:
    """Request rows with the logged columns that request sources read.

    Args:
        store_dir: of the run.
        rows: as ``training_frame`` takes them; of those with an event_id the context is that of the event.
        context: what request sources read, name -> type.

    Returns:
        ``rows``, with those of the columns that the log has and the rows have not.

    Raises:
        DataError: a column is of another type than the source says.
    """
    path = Path(store_dir) / DATA / CONTEXT
    if not context or EVENT not in rows.column_names or not path.exists():
        return rows
    kept = [name for name in pq.read_schema(path).names if name in context and name not in rows.column_names]
    if not kept:
        return rows
    log = pq.read_table(path, columns=[EVENT, *kept])
    place = pc.index_in(rows.column(EVENT).combine_chunks(), value_set=log.column(EVENT).combine_chunks())
    for name in kept:
        column = log.column(name).combine_chunks()
        try:
            rows = rows.append_column(name, as_read(column, context[name]).take(place))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"context: the request source reads {name} as {context[name]}, the log has {column.type}: {error}. "
                f"Correct the Field in feature_repo/mine."
            ) from None
    return rows


def context_unknown(store_dir: Path, shows: bool) -> str:
    """What callers send that the ranker cannot learn from, because nobody logged requests; empty: nothing.

    Args:
        store_dir: the run's store.
        shows: the log says what was not liked, so that its requests are those that were made.
    """
    store = open_store(store_dir)
    names = ", ".join(reads_of(store, open_signature(store, CTR).features).context)
    if not names or shows:
        return ""
    return (
        f"trained without what callers send ({names}): the log says what was taken and not what was shown, so its "
        f"training requests are made up and nothing was sent with them. Impressions would teach it"
    )
