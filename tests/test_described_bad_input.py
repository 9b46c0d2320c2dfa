"""Data that are wrong: every error names file, row and column, and what was stored before stays.

Run: pytest tests/test_described_bad_input.py
"""

import gzip
import json
import re

import folder_world as world
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset.contracts import DataError
from dataset.importers import import_path
from dataset.tables import Dataset, held, noticed
from run.artifacts import open_artifact

TOML = """
[data]
name = "shop"
{data}

[[items]]
files = ["items.csv"]
id = "sku"
title = "name"
price = "price"
{items}

[[events]]
files = ["log.csv"]
user = "user"
item = "sku"
time = "time"
type = "purchase"
{events}
"""
ITEMS = "sku,name,price\nA1,red lamp,3\nB2,oak chair,4\nC3,tall shelf,5\n"
LOG = "user,sku,time\n" + "".join(
    f"u{n % 4},{'A1 B2 C3'.split()[n % 3]},2024-03-{n + 1:02d}T10:00:00Z\n" for n in range(9)
)


@pytest.fixture
def shop(tmp_path):
    """Writes a folder with its moon.toml; returns what importing it gives."""

    def make(items=ITEMS, log=LOG, data="", items_keys="", events_keys="", toml=TOML, out="dataset"):
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        for name, content in (("items.csv", items), ("log.csv", log)):
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        (folder / "moon.toml").write_text(toml.format(data=data, items=items_keys, events=events_keys))
        return Dataset.open(import_path(folder, tmp_path / out))

    return make


def prices(dataset):
    return dict(
        zip(dataset.items["external_id"].to_pylist(), dataset.items["price"].to_pylist(), strict=True)
    )


def test_the_folder_of_these_tests_is_in_order(shop):
    dataset = shop()
    assert prices(dataset) == {"A1": 3, "B2": 4, "C3": 5}
    assert len(dataset.events) == 9 and dataset.artifact.config["quarantined"] == {}


@pytest.mark.parametrize(
    ("items", "log", "said"),
    [
        (
            "sku,name,cost\nA1,x,3\n",
            LOG,
            r"items.csv: expected the column 'price' .* found \['sku', 'name', 'cost'\]",
        ),
        ("SKU,name,price\nA1,x,3\n", LOG, r"items.csv: expected the column 'sku' .* Did you mean 'SKU'\?"),
        (
            "sku,name,price,name\nA1,x,3,y\n",
            LOG,
            r"items.csv: expected each column once, .*'name' as columns \[2, 4\]",
        ),
        (ITEMS + "D4,x,cheap\n", LOG, r"items.csv: row 4, column 'price': expected a number, found 'cheap'"),
        (ITEMS + "D4,x,cheap\nE5,y,dear\n", LOG, r"row 4, column 'price'.* and 1 more"),
        (
            ITEMS,
            LOG + "u1,A1,yesterday\n",
            r"log.csv: row 10, column 'time': expected a time in ISO 8601, found 'yesterday'",
        ),
        (ITEMS + "D4,x\n", LOG, r"items.csv: .*Line: 5.*D4,x.*Number of Columns: 3 Found: 2"),
        (ITEMS + "D4,x,1,2\n", LOG, r"items.csv: .*Line: 5.*Found: 4"),
        (ITEMS + 'D4,"x,1\n', LOG, r"items.csv: .*Line: 5.*unterminated quote"),
        (ITEMS.encode() + b"D4,caf\xe9,1\n", LOG, r"items.csv: .*Line: 5.*utf-8.*encoding = \"cp1252\""),
        ("", LOG, r"items.csv: expected a table, found an empty file"),
        ("sku,name,price\n", "user,sku,time\n", r"items: expected at least one item, found 0 rows"),
        (
            ITEMS + "a1 ,x,1\n",
            LOG,
            r"items.csv: row 4, column 'sku': the item 'a1 ' and the item 'A1' .* case, spaces",
        ),
        (
            ITEMS,
            LOG + "u1,b2,2024-04-01T10:00:00Z\n",
            r"log.csv: row 10, column 'sku': the item 'b2' and the item 'B2' \(items.csv",
        ),
        (
            ITEMS,
            LOG + "U1,B2,2024-04-01T10:00:00Z\n",
            r"log.csv: row 10, column 'user': the user 'U1' and the user 'u1'",
        ),
    ],
)
def test_what_is_wrong_is_said_with_file_row_and_column_and_nothing_stored_is_touched(
    shop, tmp_path, items, log, said
):
    before = shop().artifact.id
    with pytest.raises(DataError) as refusal:
        shop(items, log)
    assert re.search(said, str(refusal.value)), str(refusal.value)
    assert open_artifact(tmp_path / "dataset", "dataset").id == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("dataset")] == ["dataset"]


def test_ids_that_differ_by_padding_can_be_the_same_or_different(shop):
    items, log = ITEMS + "007,pan,1\n", LOG + "u1,7,2024-04-01T10:00:00Z\nu1, a1,2024-04-02T10:00:00Z\n"
    with pytest.raises(DataError, match="row 10, column 'sku': the item '7' and the item '007'"):
        shop(items, log)
    same = shop(items, log, data='similar_ids = "same"', out="same")
    assert set(prices(same)) == {"A1", "B2", "C3", "007"}
    names = dict(zip(same.items["item_id"].to_pylist(), same.items["external_id"].to_pylist(), strict=True))
    assert [names[one] for one in same.events["item_id"].to_pylist()][-2:] == ["007", "A1"]
    different = shop(items, log, data='similar_ids = "different"', out="different")
    assert set(prices(different)) == {"A1", "B2", "C3", "007", "7", " a1"}


def test_the_last_row_of_an_item_counts_by_its_time_and_the_others_are_counted(shop):
    items = "sku,name,price,at\nA1,new,9,2024-02-02\nA1,old,1,2024-01-01\n" + "B2,b,4,2024-01-01\n" * 2
    items += "C3,c,5,2024-01-01\n"
    dataset = shop(items, items_keys='updated = "at"')
    assert prices(dataset) == {"A1": 9, "B2": 4, "C3": 5}
    assert dataset.artifact.config["merged"] == {"item": 1}  # the rows of B2 say the same
    assert any("1 row of items" in line for line in noticed(dataset.artifact.config))
    assert prices(shop(items, items_keys='ignore = ["at"]', out="by_place"))["A1"] == 1


def test_events_of_unknown_items_and_users_are_kept_or_set_aside_as_the_toml_says(shop):
    log = LOG + "u1,Z9,2024-04-01T10:00:00Z\n"
    kept = shop(ITEMS, log)
    assert prices(kept) == {"A1": 3, "B2": 4, "C3": 5, "Z9": None} and len(kept.events) == 10
    assert kept.artifact.config["unlisted"] == {"items": 1}
    assert any("1 of the items" in line for line in noticed(kept.artifact.config))
    assert held(kept.artifact.config) == f"4 items, {len(kept.users)} users, 10 events"
    aside = shop(ITEMS, log, data='unknown_items = "set aside"', out="aside")
    assert "Z9" not in prices(aside) and len(aside.events) == 9
    assert aside.artifact.config["quarantined"] == {"events": {"unknown item_id": 1}}
    with pytest.raises(DataError, match="9 unknown user_id"):
        shop(data='unknown_users = "set aside"', out="users")


def test_texts_that_mean_nothing_are_said_in_the_toml(shop):
    items = ITEMS.replace("oak chair,4", "oak chair,n/a")
    with pytest.raises(DataError, match=r"row 2, column 'price'.*missing = \['n/a'\]"):
        shop(items)
    assert prices(shop(items, items_keys='missing = ["n/a"]')) == {"A1": 3, "B2": None, "C3": 5}


def test_a_mark_quotes_and_line_breaks_inside_cells_are_read(shop):
    items = b"\xef\xbb\xbf" + b'sku,name,price\r\nA1,"red ""big"" lamp,\nof oak",3\r\n"007",x,4\r\n'
    rows = {row["external_id"]: row["title"] for row in shop(items).items.to_pylist()}
    assert rows["A1"] == 'red "big" lamp,\nof oak' and rows["007"] == "x"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "latin-1"])
def test_other_encodings_are_read_as_the_toml_says(shop, encoding):
    items = ITEMS.replace("oak", "café").encode(encoding)
    dataset = shop(items, items_keys=f'encoding = "{encoding}"')
    assert "café chair" in dataset.items["title"].to_pylist()


def test_the_row_of_an_error_is_that_of_the_file_wherever_the_batch_ends(shop, monkeypatch):
    monkeypatch.setattr("dataset.adapters.described.cells.ROWS", 2)
    monkeypatch.setattr("dataset.adapters.described.cells.read.__defaults__", (2,))
    with pytest.raises(DataError, match="log.csv: row 10, column 'time'"):
        shop(log=LOG + "u1,A1,noon\n")


def test_json_lines_that_are_broken_or_say_a_key_twice_are_named_with_their_line(shop, tmp_path):
    toml = TOML.replace("log.csv", "log.jsonl.gz")
    line = json.dumps({"user": "u1", "sku": "A1", "time": "2024-03-01T10:00:00Z"})
    for broken, said in (
        ('{"user": "u1"', "line"),
        ('{"user": "u1", "user": "u2", "sku": "A1", "time": "x"}', "twice|duplicate key"),
    ):
        (tmp_path / "shop").mkdir(exist_ok=True)
        (tmp_path / "shop/log.jsonl.gz").write_bytes(gzip.compress(f"{line}\n{broken}\n{line}\n".encode()))
        with pytest.raises(DataError, match=rf"log.jsonl.gz: .*({said}).*"):
            shop(toml=toml)


def test_mixed_types_of_json_ids_are_one_id_and_of_numbers_an_error(shop, tmp_path):
    toml = TOML.replace("items.csv", "items.jsonl")
    (tmp_path / "shop").mkdir()
    path = tmp_path / "shop/items.jsonl"
    path.write_text('{"sku": 7, "name": "pan", "price": 3}\n{"sku": "7", "name": "pan", "price": "4"}\n')
    assert prices(shop(log="user,sku,time\nu1,7,2024-03-01T10:00:00Z\n", toml=toml)) == {"7": 4}
    path.write_text('{"sku": 7, "name": "pan", "price": 3}\n{"sku": 8, "name": "pot", "price": [1]}\n')
    with pytest.raises(
        DataError, match=r"items.jsonl: row 2, column 'price': expected a number, found '\[1\]'"
    ):
        shop(toml=toml)


def test_ids_that_a_float_may_have_rounded_are_refused(shop, tmp_path):
    (tmp_path / "shop").mkdir()
    toml = TOML.replace("items.csv", "items.parquet")
    for ids, fault in (([1.0, 2.5], "2.5"), ([1.0, 2.0**60], "1.15")):
        table = pa.table({"sku": ids, "name": ["a", "b"], "price": [1, 2]})
        pq.write_table(table, tmp_path / "shop/items.parquet")
        with pytest.raises(DataError, match=f"items.parquet: row 2, column 'sku': expected an id.*{fault}"):
            shop(toml=toml)


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "link.png", "..\\secret.png"])
def test_a_picture_path_that_leaves_the_folder_is_refused(shop, tmp_path, path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "secret.png").write_bytes(world.picture(1))
    (tmp_path / "shop/link.png").symlink_to(tmp_path / "secret.png")
    items = f"sku,name,price,photo\nA1,x,1,\nB2,y,2,{path}\n"
    with pytest.raises(
        DataError, match="items.csv: row 2, column 'photo': expected a picture inside the folder"
    ):
        shop(items, items_keys='picture = "photo"')


@pytest.mark.parametrize("files", ["../items.csv", "/etc/hostname", "away/*.csv"])
def test_files_outside_the_folder_are_refused(shop, tmp_path, files):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/items.csv").write_text(ITEMS)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/away").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="inside"):
        shop(toml=TOML.replace("items.csv", files))


def test_pictures_that_are_not_there_or_broken_cost_the_picture_and_are_counted(shop, tmp_path):
    (tmp_path / "shop/p").mkdir(parents=True)
    (tmp_path / "shop/p/1.png").write_bytes(world.picture(1))
    (tmp_path / "shop/p/2.png").write_bytes(world.picture(2)[:50])
    items = "sku,name,price,photo\nA1,x,1,https://cdn.example/a/1.png?v=2\nB2,y,2,2.png\nC3,z,3,3.png\n"
    dataset = shop(items, items_keys='picture = "photo"\npicture_folder = "p"')
    shown = {row["external_id"]: dataset.image_bytes(row["image_id"]) for row in dataset.items.to_pylist()}
    assert shown == {"A1": world.picture(1), "B2": None, "C3": None}
    assert dataset.artifact.config["pictures"] == {"named but not there": 1}
    assert dataset.artifact.config["quarantined"]["images"] == {"broken or too large picture": 1}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"items_keys": 'tilte = "name"'}, r"unknown key items\[1\].tilte: did you mean 'title'\?"),
        ({"events_keys": 'times = "x"'}, r"unknown key events\[1\].times: did you mean 'time'\?"),
        ({"data": 'unknown_item = "keep"'}, r"unknown key data.unknown_item: did you mean 'unknown_items'\?"),
        (
            {"data": 'unknown_items = "drop"'},
            r"data.unknown_items: Input should be 'keep' or 'set aside', found 'drop'",
        ),
        ({"toml": TOML.replace("[[events]]", "[[event]]")}, r"unknown key event: did you mean 'events'\?"),
        ({"toml": TOML.replace('id = "sku"', "")}, r"items\[1\].id: missing"),
        ({"events_keys": 'type_column = "kind"'}, r"expected either type or type_column"),
        ({"toml": TOML.replace('"purchase"', '"bought"')}, r"events\[1\].type: .*'purchase'.*found 'bought'"),
        ({"toml": TOML.replace("[[items]]", "[[items")}, r"expected TOML, found"),
    ],
)
def test_a_typo_in_the_toml_is_an_error_with_a_suggestion(shop, keys, said):
    with pytest.raises(DataError) as refusal:
        shop(**keys)
    assert "moon.toml" in str(refusal.value) and re.search(said, str(refusal.value)), str(refusal.value)


def test_times_outside_every_calendar_go_to_quarantine_and_too_many_are_refused(shop):
    log = LOG + "u1,A1,2090-01-01T00:00:00Z\nu1,A1,1024-01-01T00:00:00Z\n"
    rules = shop(ITEMS, log).artifact.config["quarantined"]["events"]
    assert sum(rules.values()) == 2 and "outside sane bounds" in next(iter(rules))
    numbers = "user,sku,time\n" + "".join(f"u{n},A1,{1_700_000_000_000 + n}\n" for n in range(9))
    with pytest.raises(DataError, match="outside sane bounds.*about the year"):
        shop(ITEMS, numbers, events_keys='time_format = "s"')
