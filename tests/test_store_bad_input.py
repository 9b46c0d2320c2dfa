"""What Feast lets through, and readers stumble over, is refused, set aside or reported, on SQLite and on Redis.

The cases are those where stock Feast 0.67 gives another entity's values, nothing, or an answer that looks right.

Run: pytest tests/test_store_bad_input.py
"""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from feast import Entity, FeatureView, Field, FileSource
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Float32, Int32, Int64
from feast.value_type import ValueType
from store_world import (
    END,
    HOUR,
    SCHEMA,
    START,
    WIDTH,
    load,
    online,
    open_store,
    source_rows,
    stored,
    write_source,
)

from moonstore.batch import sift
from moonstore.errors import StoreError
from moonstore.matrix import read_matrix

__all__ = ["online"]
FEATURES = [f"item:{name}" for name in SCHEMA]


def rows_of(count, **changed):
    """One row for each of ``count`` items, with some columns replaced."""
    table = source_rows(np.random.default_rng(0), count, entities=count, hours=1).sort_by("item_id")
    for name, values in changed.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def statuses(store, ids):
    rows = [{"item_id": one} for one in ids]
    proto = store.get_online_features(features=FEATURES, entity_rows=rows).proto
    names = proto.metadata.feature_names.val
    return {tuple(v.statuses) for name, v in zip(names, proto.results, strict=True) if name != "item_id"}


NOT_FOUND, PRESENT = FieldStatus.NOT_FOUND, FieldStatus.PRESENT


def test_an_unknown_entity_is_not_found(online, tmp_path):
    write_source(tmp_path, rows_of(2))
    store = open_store(tmp_path, online())
    load(store)
    assert statuses(store, [0, 99]) == {(PRESENT, NOT_FOUND)}
    assert read_matrix(store, "item", np.array([0, 99]), ["price"]).found.tolist() == [True, False]


@pytest.mark.parametrize(
    "ids, says",
    [
        (pa.array(["0", "1", "2"]), "item_id is string, not an integer"),
        (pa.array([0.0, 1.0, 1.9]), "item_id is double, not an integer"),
        (pa.array([True, False, True]), "item_id is bool, not an integer"),
    ],
)
def test_an_id_of_another_type_is_not_taken_for_a_number(online, tmp_path, ids, says):
    write_source(tmp_path, rows_of(3, item_id=ids))
    store = open_store(tmp_path, online())
    report = load(store)
    assert set(report.refused) == {says} and report.written == 0
    assert not read_matrix(store, "item", np.arange(3), ["price"]).found.any()


def test_small_ids_are_the_same_ids(online, tmp_path):
    write_source(tmp_path, rows_of(3, item_id=pa.array([0, 1, 2], pa.int32())))
    store = open_store(tmp_path, online())
    assert load(store).written == 3
    assert read_matrix(store, "item", np.arange(3), ["price"]).found.all()


def test_text_that_is_no_number_is_set_aside_alone(online, tmp_path):
    write_source(tmp_path, rows_of(3, price=pa.array(["1.5", "cheap", None])))
    store = open_store(tmp_path, online())
    assert load(store).refused == {"price is not a number": 1}
    assert stored(store, range(3))["price"] == [1.5, None, None]


def test_an_integer_that_a_float_cannot_hold_is_set_aside(online, tmp_path):
    write_source(tmp_path, rows_of(3, price=pa.array([2**24, 2**24 + 1, 3])))
    store = open_store(tmp_path, online())
    assert load(store).refused == {"price does not fit a float": 1}
    assert stored(store, range(3))["price"] == [2.0**24, None, 3.0]


def test_doubles_in_a_list_are_cast(online, tmp_path):
    vector = pa.array(np.full((2, WIDTH), 0.1).tolist(), pa.list_(pa.float64()))
    write_source(tmp_path, rows_of(2, vector=vector))
    store = open_store(tmp_path, online())
    assert load(store).written == 2
    assert read_matrix(store, "item", np.arange(2), ["vector"])["vector"].dtype == np.float32


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
def test_times_of_another_unit_are_the_same_times(online, tmp_path, unit):
    table = rows_of(3)
    write_source(tmp_path, table)
    store = open_store(tmp_path, online())
    load(store)
    stamps = table.column("event_timestamp").cast(pa.timestamp(unit, "UTC"))
    write_source(tmp_path, rows_of(3, event_timestamp=stamps))
    other = open_store(tmp_path, online())
    assert load(other).written == 3 and stored(other, range(3)) == stored(store, range(3))
    both = [read_matrix(one, "item", np.arange(3), ["price"]).event_us.tolist() for one in (store, other)]
    assert both[0] == both[1]


def test_a_feature_that_is_new_is_filled_in_and_a_correction_arrives(online, tmp_path):
    write_source(tmp_path, rows_of(2, title=pa.nulls(2, pa.string())))
    store = open_store(tmp_path, online())
    load(store)
    write_source(tmp_path, rows_of(2, title=pa.array(["new", "corrected"])))
    load(store)
    assert stored(store, range(2))["title"] == ["new", "corrected"]


def test_rows_after_the_end_stay_offline(online, tmp_path):
    write_source(
        tmp_path, rows_of(2, event_timestamp=pa.array([START, END + HOUR], pa.timestamp("us", "UTC")))
    )
    store = open_store(tmp_path, online())
    assert load(store).written == 1
    assert read_matrix(store, "item", np.arange(2), ["price"]).found.tolist() == [True, False]


def test_a_lost_column_or_source_is_named_and_what_is_online_stays(online, tmp_path):
    write_source(tmp_path, rows_of(2))
    store = open_store(tmp_path, online())
    load(store)
    before = stored(store, range(2))
    write_source(tmp_path, rows_of(2).drop_columns(["price"]))
    with pytest.raises(StoreError, match=r"found none called price among .*'feast apply'"):
        load(store)
    (tmp_path / "data" / "item.parquet").unlink()
    with pytest.raises(StoreError, match="item.parquet: expected the source of a view, found no file"):
        load(store)
    assert stored(store, range(2)) == before


@pytest.mark.parametrize(
    ("kind", "values", "kept"),
    [
        (Int64, pa.array([1.0, 2.0, float("nan"), 2.5, None, 1e300]), [1, 2, None]),
        (Int64, pa.array([2.0**63, -(2.0**63), 2.0**53]), [-(2**63), 2**53]),
        (Int64, pa.array([2**63, 7], pa.uint64()), [7]),
        (Int32, pa.array([2**31, 2**31 - 1, -(2**31), -(2**31) - 1]), [2**31 - 1, -(2**31)]),
        (Int64, pa.array(["7", "-7", "0x10", "1e3", "2.0", " 3", ""]), [7, -7]),
        (Float32, pa.array([1e39, -1e39, 1.5, 3.0e38]), [1.5, float(np.float32(3.0e38))]),
    ],
)
def test_a_value_is_judged_as_it_is_stored_and_costs_its_own_row(kind, values, kept):
    source = FileSource(name="s", path="s.parquet", timestamp_field="event_timestamp")
    keys = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="v",
        entities=[keys],
        schema=[Field(name="item_id", dtype=Int64), Field(name="f", dtype=kind)],
        source=source,
    )
    when = pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * len(values), pa.timestamp("us", "UTC"))
    rows = pa.table({"item_id": pa.array(range(len(values))), "f": values, "event_timestamp": when})
    sifted = sift(view, rows, datetime(2026, 2, 1, tzinfo=UTC))
    assert sifted.batch.features["f"].to_pylist() == kept
    assert sifted.refused.num_rows == len(values) - len(kept)
    assert all(reason.startswith("f ") for reason in sifted.refused["reason"].to_pylist())
