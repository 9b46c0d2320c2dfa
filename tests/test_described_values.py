"""What a cell means: times of every unit and zone, days, ratings, places, partitions, joined tables.

Run: pytest tests/test_described_values.py
"""

from datetime import UTC, datetime, timedelta

import folder_world as world
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset.adapters.canonical import NO_CLOCK
from dataset.adapters.described.cells import Reader
from dataset.adapters.described.description import Section
from dataset.adapters.described.files import connection
from dataset.adapters.described.importer import described
from dataset.adapters.guessing.profile import Profile
from dataset.contracts import DataError
from dataset.first_seen import LOG, START

NOON = datetime(2024, 7, 1, 12, 0, 0, 250_000, tzinfo=UTC)
SECONDS = int(NOON.timestamp())


@pytest.fixture
def events(tmp_path):
    """Imports a log of one table, described by some keys, and returns EVENTS row by row."""

    def read(rows, keys='time = "t"\ntype = "click"', file="log.csv"):
        if isinstance(rows, pa.Table):
            pq.write_table(rows, tmp_path / file)
        else:
            world.put_csv(tmp_path / file, rows)
        head = f'[data]\nname = "x"\n[[events]]\nfiles = ["{file}"]\nuser = "u"\nitem = "i"\n'
        (tmp_path / "moon.toml").write_text(head + keys)
        tables, _ = described(tmp_path / "moon.toml")
        return tables.events.to_pylist()

    return read


@pytest.mark.parametrize(
    ("cell", "layout", "expected"),
    [
        (f"{SECONDS}", "s", NOON.replace(microsecond=0)),
        (f"{SECONDS}.25", "s", NOON),
        (f"{SECONDS}250", "ms", NOON),
        (f"{SECONDS}250000", "us", NOON),
        (f"{SECONDS}250000999", "ns", NOON),
        ("2024-07-01T12:00:00.25Z", "iso", NOON),
        ("2024-07-01 14:00:00.25+02:00", "iso", NOON),
        ("2024-07-01 14:00:00.25 +0200", "iso", NOON),
        ("2024-07-01 12:00:00.25 UTC", "iso", NOON),
        ("2024-07-01 14:00:00.25", "iso", NOON),  # in the zone of the table
        ("2024-07-01", "iso", datetime(2024, 6, 30, 22, tzinfo=UTC)),
        ("20240701", "%Y%m%d", datetime(2024, 6, 30, 22, tzinfo=UTC)),
        ("01/07/2024 14:00", "%d/%m/%Y %H:%M", NOON.replace(microsecond=0)),
        ("Mon, 01 Jul 2024 12:00:00 +0000", "%a, %d %b %Y %H:%M:%S %z", NOON.replace(microsecond=0)),
    ],
)
def test_a_time_of_any_unit_is_its_microsecond(events, cell, layout, expected):
    keys = f'time = "t"\ntime_format = "{layout}"\ntime_zone = "Europe/Berlin"\ntype = "click"'
    (row,) = events([{"u": "a", "i": "b", "t": cell}], keys)
    assert row["event_time"] == expected
    assert row["available_time"] == expected + timedelta(seconds=1)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_parquet_need_no_unit(events, unit):
    naive = NOON.replace(microsecond=0, tzinfo=None)
    table = pa.table({"u": ["a"], "i": ["b"], "t": pa.array([naive], pa.timestamp(unit))})
    (row,) = events(table, 'time = "t"\ntime_zone = "Europe/Berlin"\ntype = "click"', "log.parquet")
    assert row["event_time"] == NOON.replace(microsecond=0) - timedelta(hours=2)


def test_a_day_is_known_at_its_end_in_its_own_zone_and_has_no_order(events):
    keys = 'time = "t"\ntime_zone = "Europe/Berlin"\nwhole_days = true\ntype = "purchase"'
    days = ["2024-03-30", "2024-03-31"]  # the second has 23 hours
    rows = events([{"u": "a", "i": f"b{n}", "t": day} for n, day in enumerate(days)], keys)
    starts = [datetime(2024, 3, 29, 23, tzinfo=UTC), datetime(2024, 3, 30, 23, tzinfo=UTC)]
    assert [row["event_time"] for row in rows] == starts
    ends = [starts[1], datetime(2024, 3, 31, 22, tzinfo=UTC)]
    assert [row["available_time"] for row in rows] == [end - timedelta(microseconds=1) for end in ends]
    assert {row["sequence"] for row in rows} == {None}


def test_a_day_that_is_not_over_is_known_by_now(events):
    today = datetime.now(UTC).date().isoformat()
    keys = 'time = "t"\nwhole_days = true\ntype = "purchase"'
    (row,) = events([{"u": "a", "i": "b", "t": today}], keys)
    assert row["event_time"] < row["available_time"] <= datetime.now(UTC)


def test_without_times_the_rows_are_in_their_order(events):
    rows = events([{"u": "a", "i": f"b{n}"} for n in (3, 1, 2)], 'type = "click"')
    assert [row["sequence"] for row in rows] == [0, 1, 2]
    gaps = {b["event_time"] - a["event_time"] for a, b in zip(rows, rows[1:], strict=False)}
    assert gaps == {timedelta(seconds=1)}


def test_without_times_items_and_users_are_there_from_the_start_of_the_log(tmp_path):
    log = [{"u": f"u{n // 3}", "i": f"b{n}"} for n in range(9)]  # sorted by user: u0 comes before most items
    world.put_csv(tmp_path / "log.csv", log)
    world.put_csv(
        tmp_path / "dated.csv",
        [{"u": "u0", "i": "b3", "t": "2024-03-01"}, {"u": "x", "i": "y", "t": "2024-03-02"}],
    )
    world.put_csv(tmp_path / "items.csv", [{"sku": f"b{n}", "name": f"thing {n}"} for n in range(10)])
    text = '[data]\nname = "x"\n[[items]]\nfiles = ["items.csv"]\nid = "sku"\ntitle = "name"\n'
    text += '[[events]]\nfiles = ["log.csv"]\nuser = "u"\nitem = "i"\ntype = "click"\n'
    (tmp_path / "moon.toml").write_text(text)
    tables, config = described(tmp_path / "moon.toml")
    assert config["first_seen"] == {"items": START, "users": START}
    for table in (tables.items, tables.users):
        assert set(table["first_seen"].to_pylist()) == {NO_CLOCK} and NO_CLOCK == min(
            tables.events["event_time"].to_pylist()
        )
    text += '[[events]]\nfiles = ["dated.csv"]\nuser = "u"\nitem = "i"\ntime = "t"\ntype = "click"\n'
    (tmp_path / "moon.toml").write_text(text)
    tables, config = described(tmp_path / "moon.toml")
    assert config["first_seen"] == {"items": LOG, "users": LOG}
    seen = dict(
        zip(tables.items["external_id"].to_pylist(), tables.items["first_seen"].to_pylist(), strict=True)
    )
    assert seen.pop("y") == datetime(2024, 3, 2, tzinfo=UTC) and set(seen.values()) == {NO_CLOCK}


def test_ratings_of_other_scales_places_from_one_and_types_that_are_left_out(events):
    rows = [
        {"u": "a", "i": "b", "t": SECONDS, "e": "rate", "stars": 10, "place": 1},
        {"u": "a", "i": "c", "t": SECONDS + 1, "e": "rate", "stars": 0, "place": 2},
        {"u": "a", "i": "c", "t": SECONDS + 2, "e": "open", "stars": 7, "place": 3},
        {"u": "a", "i": "c", "t": SECONDS + 3, "e": "close", "stars": "", "place": 4},
    ]
    keys = 'time = "t"\ntime_format = "s"\ntype_column = "e"\nvalue = "stars"\nvalue_scale = [0.0, 10.0]\n'
    keys += 'position = "place"\nfirst_position = 1\n'
    keys += 'types = { rate = "rating", open = "click", close = "ignore" }'
    found = [(row["type"], row["value"], row["position"]) for row in events(rows, keys)]
    assert found == [("rating", 5.0, 0), ("rating", 1.0, 1), ("click", None, 2)]


def test_a_partition_is_a_column(events, tmp_path):
    world.put_csv(tmp_path / "log/user=x/part.csv", [{"i": "b", "t": SECONDS}])
    world.put_csv(tmp_path / "log/user=y/part.csv", [{"i": "c", "t": SECONDS}])
    text = '[data]\nname = "x"\n[[events]]\nfiles = ["log/**/*.csv"]\nuser = "user"\nitem = "i"\ntime = "t"\n'
    (tmp_path / "moon.toml").write_text(text + 'time_format = "s"\ntype = "click"')
    assert sorted(described(tmp_path / "moon.toml")[0].users["external_id"].to_pylist()) == ["x", "y"]


def test_lines_have_the_user_and_the_time_of_their_order(tmp_path, monkeypatch):
    world.order_lines(tmp_path)
    text = '[data]\nname = "x"\n[[events]]\nfiles = ["shop_order_items_dataset.csv"]\n'
    text += 'join = ["shop_orders_dataset.csv"]\njoin_on = "order_id"\nuser = "customer_id"\n'
    text += 'item = "product_id"\ntime = "order_purchase_timestamp"\ntype = "purchase"\nrequest = "order_id"'
    (tmp_path / "moon.toml").write_text(text)
    monkeypatch.setattr("dataset.adapters.described.cells.read.__defaults__", (70,))
    tables, _ = described(tmp_path / "moon.toml")
    names = dict(
        zip(tables.users["user_id"].to_pylist(), tables.users["external_id"].to_pylist(), strict=True)
    )
    times = world.moments(world.EVENTS // 2, 10)
    rows = sorted(tables.events.to_pylist(), key=lambda row: row["sequence"])
    assert [names[row["user_id"]] for row in rows] == [
        f"{n // 2 % world.USERS:06x}" for n in range(world.EVENTS)
    ]
    assert [row["event_time"] for row in rows] == [times[n // 2] for n in range(world.EVENTS)]
    (tmp_path / "moon.toml").write_text(text.replace('join_on = "order_id"', 'join_on = "order"'))
    with pytest.raises(ValueError, match="expected the column 'order' that join_on names"):
        described(tmp_path / "moon.toml")


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1.0", "0.0"), ("true", "False")])
def test_a_clicked_impression_is_an_impression_and_a_click_in_one_slate(events, yes, no):
    keys = 'time = "t"\ntype = "impression"\nclicked = "c"'
    rows = [
        {"u": "a", "i": f"b{n}", "t": "2024-03-01 10:00:00", "c": yes if n == 1 else no} for n in range(3)
    ]
    rows.append({"u": "a", "i": "b0", "t": "2024-03-01 10:05:00", "c": ""})
    found = events(rows, keys)
    assert [row["type"] for row in found].count("impression") == 4
    (click,) = [row for row in found if row["type"] == "click"]
    slate = [row for row in found if row["request_id"] == click["request_id"]]
    assert len(slate) == 4 and len({row["request_id"] for row in found}) == 2
    assert click["item_id"] == found[1]["item_id"] and click["event_time"] == found[1]["event_time"]


def test_a_label_that_is_neither_yes_nor_no_is_refused(events):
    keys = 'time = "t"\ntype = "impression"\nclicked = "c"'
    with pytest.raises(DataError, match="row 1, column 'c': expected 0 or 1, false or true, found '2'"):
        events([{"u": "a", "i": "b", "t": "2024-03-01", "c": "2"}], keys)


def test_rows_below_zero_are_left_out(events):
    keys = 'time = "t"\ntype = "purchase"\nquantity = "q"'
    cells = ["2", "-1", "0", ""]
    rows = [{"u": "a", "i": f"b{n}", "t": f"2024-03-0{n + 1}", "q": cell} for n, cell in enumerate(cells)]
    assert [row["event_time"].day for row in events(rows, keys)] == [1, 3, 4]


def test_an_id_that_another_program_made_a_fraction_is_whole_again(events):
    rows = [
        {"u": one, "i": "b", "t": f"2024-03-0{n + 1}"} for n, one in enumerate(["17850.0", "17850", "1.5"])
    ]
    first, second, third = events(rows)
    assert first["user_id"] == second["user_id"] == 17850 != third["user_id"]


PRICES = {
    "1.200,50 €": 1200.5, "12,50 EUR": 12.5, "$1,299.00": 1299, "R$ 1.234,56": 1234.56, "1 200,50 kr": 1200.5,
    "1\u202f200\u00a0000,5 руб.": 1_200_000.5, "1'200.50 CHF": 1200.5, "１，２００円": 1200, "￥1,234": 1234,
    "١٢٫٥٠": 12.5, "Rs. 1,500": 1500, "5 Kč": 5, "USD 500": 500, "-3,00 €": -3, "1e3": 1000,
}  # fmt: skip


@pytest.mark.parametrize("text", PRICES)
def test_moon_init_and_the_import_read_the_same_amount(text):
    reader = Reader(Section(files=["prices.csv"]), {"price": "VARCHAR"})
    cursor = connection().cursor().register("prices", pa.table({"price": [text]}))
    read = cursor.execute(f"SELECT {reader.number('price', 'price').sql} FROM prices").fetchall()
    seen = Profile("price", "VARCHAR", [text], 1)
    assert read == [(PRICES[text],)] and seen.numbers == [PRICES[text]] and seen.is_money
    for none in ("abc 100", "1 2", "12 apples"):
        assert not Profile("price", "VARCHAR", [none], 1).is_money
