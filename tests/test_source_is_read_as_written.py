"""What a source says is what the tables say: ids and texts as written, one id for one thing, no order from ids."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_importers import ml_raw, write
from test_mbe import lines

from dataset.adapters.canonical import event_table, ids_of, numbers, scoped_ids, user_table
from dataset.adapters.mbe import mbe
from dataset.adapters.movielens import RATING, ml_posters
from dataset.checks import check
from dataset.contracts import TIME, DataError
from dataset.shop_ids import stable_ids

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


NAMES = ["guest", "07", "7", "1e5", "é", "9007199254740993", "99999999999999999999"]


@given(st.permutations(NAMES), st.integers(1, len(NAMES)))
def test_users_keep_the_name_that_the_source_gives_them_in_whatever_order_they_come(names, some):
    def users(of):
        named = pa.array([*of, *of[:1]])
        when = pa.array(np.arange(len(named)) + 10**15, pa.int64()).cast(TIME)
        log = event_table("click", ids_of(named), pa.array([1] * len(named)), when)
        return {row["external_id"]: row["user_id"] for row in user_table(log, named=named).to_pylist()}

    whole, part = users(names), users(names[:some])
    assert set(whole) == set(NAMES) and len(set(whole.values())) == len(NAMES)
    assert part == {name: whole[name] for name in names[:some]}
    assert whole["7"] == 7 and whole["9007199254740993"] == 2**53 + 1


def test_slates_named_by_text_and_slates_numbered_per_user_get_an_id_each():
    user, slate = pa.array([1, 1, 2, 2, 11, None]), pa.array(["a", "b", "a", "b", "a", "a"])
    assert len(set(scoped_ids(slate).to_pylist())) == 2
    ids = scoped_ids(slate, [user]).to_pylist()
    assert len(set(ids[:5])) == 5 and ids[5] is None
    assert scoped_ids(slate.take([3]), [user.take([3])]).to_pylist() == ids[3:4]
    numbers = pa.array([1, 11, 1])  # user 1's slate 11 is not user 11's slate 1
    assert len(set(scoped_ids(numbers, [pa.array([1, 1, 11])]).to_pylist())) == 3
    assert scoped_ids(numbers).to_pylist() == [1, 11, 1]


MARK = b"\xef\xbb\xbf"
ROWS = [
    {"id": "0012345678905", "doc_title": 'Mug, "The Cup"\nred', "split": "train"},
    {"id": "12345678905", "doc_title": "Rug\r\nblue", "split": "train"},
]


def written(ending):
    if ending == "csv":
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
        return out.getvalue()
    whole = json.dumps(ROWS, indent=1)
    return {"json": whole, "jsonl": "\n".join(map(json.dumps, ROWS))}[ending]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
@pytest.mark.parametrize("before", [b"", MARK, MARK + b"\n", b"\n \n"])
def test_a_byte_order_mark_blank_lines_and_quoted_line_breaks_change_no_value(tmp_path, ending, before):
    if ending == "csv" and before not in (b"", MARK):
        before = MARK
    (tmp_path / f"rows.{ending}").write_bytes(before + written(ending).encode())
    items = mbe(tmp_path)[0].items
    assert items["external_id"].to_pylist() == [row["id"] for row in ROWS]
    assert items["title"].to_pylist() == [row["doc_title"] for row in ROWS]
    assert len(set(items["item_id"].to_pylist())) == 2


def test_an_id_that_another_program_made_a_float_is_the_id_or_is_refused(tmp_path):
    rows = {"id": [7.0, None, 9.0], "doc_title": ["Mug", "Rug", "Cup"], "split": ["train"] * 3}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")  # as pandas writes ids beside a missing one
    assert mbe(tmp_path)[0].items["external_id"].to_pylist()[::2] == ["7", "9"]
    for wrong in (2.5, 2.0**53):
        pq.write_table(pa.table({**rows, "id": [7.0, None, wrong]}), tmp_path / "rows.parquet")
        with pytest.raises(DataError, match="ids as text or whole numbers, found the float"):
            mbe(tmp_path)


def test_numbers_with_leading_zeros_have_one_length_or_are_refused():
    assert numbers(pa.array(["0108775015", "0990000001", None]), "article").to_pylist() == [
        108775015,
        990000001,
        None,
    ]
    assert numbers(pa.array(["7", "12"]), "article").to_pylist() == [7, 12]
    with pytest.raises(DataError, match="'07' and '7' would become one id"):
        numbers(pa.array(["07", "7"]), "article")


def test_a_time_that_no_calendar_has_is_shown_by_its_year(tmp_path):
    """Milliseconds taken for seconds: the message helps to see it."""
    ml_raw(tmp_path)
    late = [(9, 1, 4.5, 1_600_000_000_000), (9, 2, 2.0, 1_600_000_000_100), (8, 1, 3.0, 1_000_000_000)]
    names = ("userId", "movieId", "rating", "timestamp")
    write(tmp_path / "ratings.csv", RATING, [dict(zip(names, row, strict=True)) for row in late])
    with pytest.raises(
        DataError, match="event_time outside sane bounds: before 1990 or in the future about the year 52672"
    ):
        check(ml_posters(tmp_path)[0])


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
