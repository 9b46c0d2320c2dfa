"""An id above 2**53 beside a missing value is the id that was stored, in every frame that the store gives."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from store_world import END, HOUR, START, open_store, source_rows, stamps, write_source

from moonstore.duckdb_store import DuckDBOfflineStore
from moonstore.exact import exact_frame

BIG = 2**62 + 1  # a float would make it 2**62
REFERENCES = ["item:number", "item:recent"]


@pytest.fixture
def store(tmp_path):
    rows = source_rows(np.random.default_rng(0), 3, entities=3, hours=1)
    columns = {
        "item_id": pa.array([BIG, BIG + 1, 5], pa.int64()),
        "number": pa.array([BIG, None, BIG + 2], pa.int64()),
        "recent": pa.array([[BIG, None], None, [7]], pa.list_(pa.int64())),
        "event_timestamp": stamps([1, 1, 1]),
    }
    for name, values in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, values)
    store = open_store(tmp_path, None, created=True)
    write_source(tmp_path, rows)
    return store


def plain(values):
    return [None if value is None or value is pd.NA else value for value in values]


def test_historical_features(store):
    asked = pd.DataFrame(
        {
            "item_id": pd.array([BIG, BIG + 1, 5, None], dtype="Int64"),
            "order_id": pd.array([None, BIG, BIG + 1, BIG + 2], dtype="Int64"),
            "event_timestamp": START + 2 * HOUR,
        }
    )
    frame = store.get_historical_features(asked, features=REFERENCES).to_df()
    assert plain(frame["item_id"]) == [BIG, BIG + 1, 5, None]
    assert plain(frame["order_id"]) == [None, BIG, BIG + 1, BIG + 2]
    assert plain(frame["number"]) == [BIG, None, BIG + 2, None]
    assert [value is not None and list(value) for value in frame["recent"]] == [
        [BIG, None],
        False,
        [7],
        False,
    ]


def test_historical_features_by_feasts_own_plan(store, caplog):
    asked = pd.DataFrame({"item_id": [BIG, BIG + 1], "event_timestamp": START + 9000 * HOUR})
    frame = store.get_historical_features(
        asked, features=["item:number"], filter_by_created_timestamp=True
    ).to_df()
    assert "Feast's own plan" in caplog.text
    by_item = dict(zip(frame["item_id"], plain(frame["number"]), strict=True))
    assert by_item == {BIG: BIG, BIG + 1: None}


def test_rows_pulled_from_a_source(store):
    view = store.get_feature_view("item")
    asked = (store.config, view.batch_source, ["item_id"], ["number"], "event_timestamp", None)
    latest = DuckDBOfflineStore.pull_latest_from_table_or_query(*asked, START, END)
    every = DuckDBOfflineStore.pull_all_from_table_or_query(*asked, START, END + timedelta(days=1))
    for job in (latest, every):
        frame = job.to_df().sort_values("item_id", ignore_index=True)
        assert frame["item_id"].tolist() == [5, BIG, BIG + 1]
        assert plain(frame["number"]) == [BIG + 2, BIG, None]


@pytest.mark.parametrize(
    "integer", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
def test_every_integer_type_keeps_its_largest_value_beside_a_null(integer):
    kind = pa.type_for_alias(integer)
    largest = 2 ** (kind.bit_width - integer.startswith("int")) - 1
    table = pa.table({"a": pa.chunked_array([[largest], [None]], kind), "b": pa.array([1, largest], kind)})
    frame = exact_frame(table)
    assert plain(frame["a"]) == [largest, None] and frame["b"].tolist() == [1, largest]
    assert frame["b"].dtype == integer  # without a null it is what pandas always made of it
