"""Home Depot Product Search Relevance: queries, product titles and graded judgements; no behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import NO_CLOCK, flat, under
from dataset.adapters.source import choose_layout, read_parquet
from dataset.contracts import EVENTS, IMAGES, ITEMS, JUDGEMENTS, QUARANTINE, QUERIES, TIME, USERS, Tables
from dataset.identity import stable_hash

FILES = ("products.parquet", "queries.parquet", "labels.parquet")
SCHEMAS = {
    "products.parquet": pa.schema([("product_uid", pa.int64()), ("product_title", pa.string())]),
    "queries.parquet": pa.schema([("query_id", pa.int64()), ("query", pa.string())]),
    "labels.parquet": pa.schema(
        [("query_id", pa.int64()), ("product_uid", pa.int64()), ("relevance", pa.float32())]
    ),
}
TEST_OF = 5  # one query in five is in the test part, with all its judgements


def homedepot_relevance(folder: Path, some: bool = False) -> tuple[Tables, dict[str, Any]]:
    """Products, text queries, and judgements; relevance is (grade - 1) / 2 for grades 1 to 3.

    Raises:
        DataError: files, columns or types are not those of the pack.
    """
    choose_layout(folder, {"pack": FILES}, some)
    products, queries, labels = (read_parquet(folder / name, SCHEMAS[name]) for name in FILES)
    product = products.column("product_uid")
    items = {
        "item_id": product,
        "external_id": product.cast(pa.string()),
        "title": products.column("product_title"),
        "spu": product,
        "first_seen": pa.array([NO_CLOCK] * products.num_rows, TIME),
    }
    query = flat(labels.column("query_id"))
    test = stable_hash(query.fill_null(-1).to_numpy()) % np.uint64(TEST_OF) == 0
    judgements = {
        "query_id": query,
        "item_id": labels.column("product_uid"),
        "relevance": pc.divide(pc.subtract(flat(labels.column("relevance")), 1.0), 2.0),
        "part": pa.array(["train", "test"]).take(pa.array(test.astype(np.int64))),
    }
    searches = {
        "query_id": queries.column("query_id"),
        "text": queries.column("query"),
        "external_id": queries.column("query_id").cast(pa.string()),
    }
    tables = Tables(
        items=under(ITEMS, items),
        images=IMAGES.empty_table(),
        users=USERS.empty_table(),
        events=EVENTS.empty_table(),
        queries=under(QUERIES, searches),
        judgements=under(JUDGEMENTS, judgements),
        quarantine=QUARANTINE.empty_table(),
    )
    source = "Home Depot Product Search Relevance (Kaggle 2016), pack layout"
    return tables, {"name": "homedepot_relevance", "source": source}
