"""What a source says is what the tables say: ids and texts as written, one id for one thing, no order from ids."""

import csv

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_mbe import lines

from dataset.adapters.canonical import event_table
from dataset.adapters.mbe import mbe
from dataset.contracts import TIME, stable_ids

IDS = st.one_of(st.integers(0, 10**18 - 1).map(str), st.text(min_size=1, max_size=12))


@given(st.lists(IDS, unique=True, min_size=1), st.lists(IDS, unique=True))
def test_an_id_is_mapped_by_itself_whatever_else_there_is(ids, more):
    alone = [int(stable_ids([one])[0]) for one in ids]
    assert stable_ids([*ids, *more])[: len(ids)].tolist() == alone
    assert len(set(alone)) == len(ids) and min(alone) >= 0


def test_numbers_keep_their_value_and_leading_zeros_make_another_id():
    assert stable_ids(["7", "0", "123456789012345678"]).tolist() == [7, 0, 123456789012345678]
    assert len(set(stable_ids(["7", "07", "007", "guest"]).tolist())) == 4


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_ids_and_texts_of_row_files_are_text(tmp_path, ending):
    written = {"0108775015": "007", "07": "NULL", "7": "2024-01-02", "1e5": "true", "nan": "00"}
    rows = [{"id": key, "doc_title": title, "split": "train"} for key, title in written.items()]
    if ending == "csv":
        with (tmp_path / "rows.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["id", "doc_title", "split"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines(tmp_path / f"rows.{ending}", rows)
    items = mbe(tmp_path)[0].items
    assert dict(zip(items["external_id"].to_pylist(), items["title"].to_pylist(), strict=True)) == written
    assert len(set(items["item_id"].to_pylist())) == len(written)


@pytest.mark.parametrize("users", [1, 50])
def test_at_equal_times_the_order_is_not_that_of_the_ids(users):
    items = 40
    user = np.repeat(np.arange(users), items)
    item = np.tile(np.arange(items), users)
    when = pa.array(np.full(len(user), 10**15), pa.int64()).cast(TIME)
    log = event_table("click", pa.array(user), pa.array(item), when)
    by_user = log.to_pandas().groupby("user_id")["item_id"]
    rising = np.mean([np.mean(np.diff(ids) > 0) for _, ids in by_user])
    assert 0.3 < rising < 0.7
    turned = event_table("click", pa.array(user[::-1]), pa.array(item[::-1]), when)
    assert turned.equals(log)  # and does not depend on the order of the file
