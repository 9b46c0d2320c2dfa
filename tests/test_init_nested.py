"""``moon init`` where rows hold lists and objects, or tables explain each other: what is what, and every event of it.

Run: pytest tests/test_init_nested.py
"""

import json
from collections import Counter

import folder_world as world
import folder_world_nested as nested
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_init import imported, sections

from dataset.adapters.described.files import Files
from dataset.adapters.described.nested import opened_list
from dataset.contracts import DataError
from moon.describing import init

CLICK, CART, BUY, SHOWN = "click", "cart", "purchase", "impression"

# What a person would say of each layout: (role, files) -> columns.
PLANTED = {
    nested.sessions_of_events: {
        ("events", "train.jsonl"): {
            "user": "session",
            "item": "events[].aid",
            "time": "events[].ts",
            "time_format": "ms",
            "type_column": "events[].type",
            "types": {"clicks": CLICK, "carts": CART, "orders": BUY},
        },
    },
    nested.analytics: {
        ("items", "events_20240301.json"): {
            "id": "items[].item_id",
            "title": "items[].item_name",
            "category": "items[].item_category",
            "price": "items[].price",
        },
        ("events", "events_20240301.json"): {
            "user": "user_id",
            "visitor": "user_pseudo_id",
            "item": "items[].item_id",
            "time": "event_timestamp",
            "time_format": "us",
            "request": None,
            "types": {"view_item_list": SHOWN, "view_item": CLICK, "purchase": BUY},
        },
    },
    nested.documents: {
        ("items", "products.json"): {"id": "id", "title": "title", "description": "body_html"},
        ("events", "orders.json"): {
            "user": "email",
            "item": "line_items[].product_id",
            "time": "created_at",
            "type": BUY,
            "request": "id",
        },
    },
    nested.shown_in_a_cell: {
        ("items", "news.tsv"): {
            "header": False,
            "id": "column1",
            "title": "column4",
            "description": "column5",
        },
        ("events", "behaviors.tsv"): {
            "user": "column2",
            "item": "column5[].1",
            "clicked": "column5[].2",
            "separators": [" ", "-"],
            "time": "column3",
            "request": "column1",
            "context": None,
        },
    },
    nested.orders_without_dates: {
        ("items", "products.csv"): {
            "id": "product_id",
            "title": "product_name",
            "lookup": {
                "aisle_id": ["aisles.csv", "aisle_id"],
                "department_id": ["departments.csv", "department_id"],
            },
            "category": ["department_id.department", "aisle_id.aisle"],
        },
        ("events", "order_products__prior.csv"): {
            "user": "user_id",
            "item": "product_id",
            "join": ["orders.csv"],
            "join_on": "order_id",
            "time": "order_number",
            "time_format": "days",
            "whole_days": True,
            "request": "order_id",
        },
    },
    nested.counted_days: {
        ("items", "product.csv"): {"id": "PRODUCT_ID", "title": "SUB_COMMODITY_DESC"},
        ("events", "transaction_data.csv"): {
            "user": "household_key",
            "time": "DAY",
            "time_format": "days",
            "type": BUY,
        },
    },
    nested.printed: {
        ("items", "games.json"): {"id": "id", "title": "title", "category": "genres"},
        ("users", "users_items.json"): {"id": "user_id"},
        ("events", "users_items.json"): {"user": "user_id", "item": "items[].item_id", "type": CLICK},
    },
    nested.typed_names: {
        ("items", "films.item"): {"id": "item_id:token", "title": "movie_title:token_seq"},
        ("events", "films.inter"): {"user": "user_id:token", "value": "rating:float", "time_format": "s"},
    },
    nested.feed: {
        ("items", "feed.xml"): {"id": "id", "title": "title", "category": "product_type", "price": "price"},
        ("events", "clicks.jsonl"): {"user": "user_id", "item": "item_id"},
    },
    nested.backslashes: {
        ("items", "BX-Books.csv"): {"id": "ISBN", "title": "Book-Title", "escape": "\\"},
        ("events", "BX-Book-Ratings.csv"): {
            "value": "Book-Rating",
            "unrated": 0.0,
            "value_scale": [1.0, 10.0],
        },
    },
    nested.shop_database: {
        ("items", "catalog_product.csv"): {"id": "sku", "title": "name"},
        ("events", "sales_order_item.csv"): {
            "user": "customer_id",
            "visitor": "order_id",
            "item": "sku",
            "join_on": "order_id",
            "join_key": "entity_id",
            "types": {"complete": BUY, "processing": BUY, "canceled": "ignore"},
        },
    },
    nested.variants_and_products: {
        ("items", "meta_Beauty.jsonl"): {"id": "parent_asin", "title": "title"},
        ("events", "Beauty.jsonl"): {"user": "user_id", "item": "parent_asin"},
    },
    nested.pairs_by_spaces: {
        ("events", "beauty.txt"): {"user": "column1", "item": "column2", "delimiter": " ", "header": False},
    },
}


def said(seed, user, item, kinds):
    """(user, item, type) of every event that the visits plant, counted; ``kinds``: of each place, None: no event."""
    return Counter(
        (user(one), item(thing), kind)
        for _, one, visit in nested.visits(seed)
        for place, (thing, _) in enumerate(visit)
        for kind in (kinds[place],)
        if kind is not None
    )


def pseudo(user):
    return f"c{user}" if user % 3 == 0 else f"user_pseudo_id {user + 1000000}.{1600000000 + user}"


EVERY = {
    nested.sessions_of_events: lambda: Counter(
        (str(number), str(item + 5000), (CLICK, CLICK, CART, BUY)[place])
        for number, _, visit in nested.visits(31)
        for place, (item, _) in enumerate(visit)
    ),
    nested.analytics: lambda: (
        said(32, pseudo, "G{:05d}".format, (None, SHOWN, CLICK, BUY))
        + said(32, pseudo, lambda item: f"G{(item + 1) % world.ITEMS:05d}", (None, SHOWN, None, None))
    ),
    nested.documents: lambda: said(34, "user{}@example.com".format, lambda one: str(632910 + one), [BUY] * 4),
    nested.shown_in_a_cell: lambda: (
        said(35, lambda one: f"U{one + 1000}", lambda one: f"N{one + 10000}", [SHOWN] * 4)
        + said(35, lambda one: f"U{one + 1000}", lambda one: f"N{one + 10000}", (None, None, CLICK, None))
    ),
    nested.orders_without_dates: lambda: said(
        36, lambda one: str(one + 1), lambda one: str(one + 1), [BUY] * 4
    ),
    nested.counted_days: lambda: said(
        37, lambda one: str(one + 1), lambda one: str(1000000 + one * 13), [BUY] * 4
    ),
    nested.typed_names: lambda: said(39, lambda one: str(one + 1), lambda one: str(one + 1), ["rating"] * 4),
    nested.feed: lambda: said(40, "u{}".format, "SKU{}".format, [CLICK] * 4),
    nested.backslashes: lambda: said(
        41, lambda one: str(one + 1), lambda one: f"{one * 7919:09d}X", ("rating", CLICK, "rating", CLICK)
    ),
    nested.shop_database: lambda: Counter(
        (str(user + 1) if number % 7 else f"order_id {number + 1}", f"MG-{item}", BUY)
        for number, user, visit in nested.visits(42)
        for item, _ in visit
        if number % 3 != 2
    ),
    nested.pairs_by_spaces: lambda: said(44, lambda one: str(one + 1), lambda one: str(one + 1), [CLICK] * 4),
}


@pytest.fixture
def folder(request, tmp_path):
    request.param(tmp_path / "data")
    return tmp_path / "data"


def named(dataset):
    """(user, item, type) of every event, by the shop's own ids, counted."""
    own = {
        entity: dict(zip(table[f"{entity}_id"].to_pylist(), table["external_id"].to_pylist(), strict=True))
        for entity, table in (("user", dataset.users), ("item", dataset.items))
    }
    rows = (dataset.events[name].to_pylist() for name in ("user_id", "item_id", "type"))
    return Counter(
        (own["user"][user], own["item"][item], kind) for user, item, kind in zip(*rows, strict=True)
    )


@pytest.mark.parametrize(
    ("folder", "planted"), PLANTED.items(), indirect=["folder"], ids=lambda one: getattr(one, "__name__", "")
)
def test_every_table_and_column_is_found(folder, planted):
    init(folder)
    found = sections(folder / "moon.toml")
    assert set(found) == set(planted)
    for table, columns in planted.items():
        assert {key: found[table].get(key) for key in columns} == columns, table


@pytest.mark.parametrize(
    ("folder", "every"), EVERY.items(), indirect=["folder"], ids=lambda one: getattr(one, "__name__", "")
)
def test_every_event_is_imported_and_no_other(folder, every):
    dataset = imported(folder)
    assert named(dataset) == every()
    assert not dataset.artifact.config["quarantined"]


@pytest.mark.parametrize("folder", [nested.tracked], indirect=True)
def test_a_list_beside_single_items_is_a_second_table(folder):
    """What an event says of one item is of the first table, the products of an order of the second; both are read."""
    init(folder)
    text = (folder / "moon.toml").read_text()
    assert text.count("[[events]]") == 2
    assert 'item = "properties.product_id"' in text and 'item = "properties.products[].product_id"' in text
    assert text.count('visitor = "anonymousId"') == 2

    def who(user):
        return f"user_{user}" if user % 4 else f"anonymousId {user:08x}-aaaa-4bbb"

    bought = Counter(
        (who(user), f"P{item:05d}", BUY)
        for number, user, visit in nested.visits(33)
        for item, _ in visit[:2]
        if number % 5 == 0
    )
    single = said(33, who, "P{:05d}".format, (CLICK, CART, None, CLICK))
    dataset = imported(folder)
    assert named(dataset) == single + bought
    assert not dataset.artifact.config[
        "quarantined"
    ]  # a kind that names no item of its own is left out before


@pytest.mark.parametrize("folder", [nested.orders_without_dates], indirect=True)
def test_what_ids_stand_for_becomes_the_category(folder):
    dataset = imported(folder)
    for row in dataset.items.to_pylist():
        number = int(row["external_id"]) - 1
        aisle = number % 12
        assert row["category"] == [
            world.NOUNS[number % 3],
            f"{world.ADJECTIVES[aisle % 10]} {world.NOUNS[aisle % 6]} {aisle}",
        ]


@pytest.mark.parametrize("folder", [nested.orders_without_dates], indirect=True)
def test_a_counter_of_orders_gives_each_user_their_order(folder):
    dataset = imported(folder)
    assert dataset.artifact.config["protocol"] == "last"  # of two users nobody knows who came first
    own = dict(zip(*(dataset.users[name].to_pylist() for name in ("user_id", "external_id")), strict=True))
    found, expected = {}, {}
    rows = (dataset.events[name].to_pylist() for name in ("user_id", "event_time", "request_id"))
    for user, time, request in zip(*rows, strict=True):
        found.setdefault(own[user], {})[time] = request
    for number, user, _ in nested.visits(36):
        expected.setdefault(str(user + 1), []).append(number * 7919 % 100_003)
    assert {user: [one for _, one in sorted(times.items())] for user, times in found.items()} == expected


@pytest.mark.parametrize("folder", [nested.backslashes], indirect=True)
def test_a_quote_behind_a_backslash_is_of_the_cell(folder):
    titles = {row["external_id"]: row["title"] for row in imported(folder).items.to_pylist()}
    assert titles[f"{7 * 7919:09d}X"] == f'{world.title(7)}"a"; b'


@pytest.mark.parametrize("folder", [nested.counted_days], indirect=True)
def test_items_with_a_blank_attribute_are_kept(folder):
    dataset = imported(folder)
    assert len(dataset.items) == world.ITEMS
    sizes = {row["external_id"]: dict(row["attributes"]).get("SIZE") for row in dataset.items.to_pylist()}
    assert sizes["1000000"] == "22 LB" and sizes["1000013"] is None


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_opened_lists_are_what_a_loop_over_the_rows_reads(tmp_path, kind):
    """Fields of objects, lists of objects and of values: the same of JSON and of parquet as of plain Python."""
    rows = [
        {"id": n, "who": {"name": f"n{n}", "home": {"zip": n * 7}}, "lines": lines, "tags": tags}
        for n, (lines, tags) in enumerate(
            [
                ([{"sku": "a", "n": 1}, {"sku": "b", "n": None}], ["x", "y"]),
                ([], []),
                ([{"sku": "c d", "n": 3}], ["z"]),
            ]
        )
    ]
    name = "rows.jsonl" if kind == "json" else "rows.parquet"
    if kind == "json":
        world.put_lines(tmp_path / name, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)

    def read(each, *columns):
        files = Files(tmp_path, (name,), each=each)
        select = [f'CAST("{column}" AS VARCHAR) AS c{place}' for place, column in enumerate(columns)]
        return [
            tuple(row.values()) for b in files.batches(tmp_path / name, select) for row in b.table.to_pylist()
        ]

    assert read(None, "id", "who.home.zip") == [
        (str(row["id"]), str(row["who"]["home"]["zip"])) for row in rows
    ]
    assert read("lines", "who.name", "lines[].sku", "lines[].n") == [
        (row["who"]["name"], line["sku"], None if line["n"] is None else str(line["n"]))
        for row in rows
        for line in row["lines"]
    ]
    assert read("tags", "id", "tags[]") == [(str(row["id"]), tag) for row in rows for tag in row["tags"]]


def test_columns_of_two_lists_are_no_table():
    assert opened_list(["id", "a.b", "lines[].sku", "lines[].n"], "orders.json") == "lines"
    with pytest.raises(DataError, match=r"columns of one list.*\['lines', 'tags'\].*Write two tables"):
        opened_list(["lines[].sku", "tags[]"], "orders.json")


def test_a_list_that_is_none_is_refused_with_those_that_are(tmp_path):
    world.put_lines(tmp_path / "orders.jsonl", [{"id": 1, "lines": [{"sku": "a"}]}] * 3)
    files = Files(tmp_path, ("orders.jsonl",), each="line")
    with pytest.raises(
        DataError, match=r"^orders.jsonl: expected a list 'line', found the lists \['lines'\]"
    ):
        files.columns(tmp_path / "orders.jsonl")


def test_a_broken_line_among_printed_ones_is_named(tmp_path):
    (tmp_path / "games.json").write_text("{'id': 1}\n{'id': \n")
    with pytest.raises(DataError, match="^games.json: line 2: expected a dictionary as Python prints it"):
        Files(tmp_path, ("games.json",)).columns(tmp_path / "games.json")


def test_a_document_that_changes_is_read_anew(tmp_path):
    path = tmp_path / "orders.json"
    for count in (2, 3):
        path.write_text(json.dumps({"orders": [{"id": n} for n in range(count)]}))
        batches = Files(tmp_path, ("orders.json",)).batches(path, ["id"])
        assert sum(len(batch.table) for batch in batches) == count


def test_what_cannot_be_read_is_said_with_what_to_do(tmp_path):
    """A workbook, ragged lists of ids, a document of blocks: what was found, what was expected, the next command."""
    world.put_csv(tmp_path / "clicks.csv", [{"user": n % 7, "item": n % 9} for n in range(90)])
    (tmp_path / "orders.xlsx").write_bytes(b"PK")
    nested.put_text(tmp_path / "train.txt", "0 5 7 9\n1 4 8\n2 5 6 7\n")
    nested.put_text(tmp_path / "blocks.txt", "1:\n7,5,2005-09-06\n8,3,2005-09-07\n")
    said = init(tmp_path)
    assert "orders.xlsx: a workbook: save each of its sheets as csv" in said
    lists = " ".join(said.split())
    assert "train.txt: no table: ' ' cuts row 1 into 4 cells, row 2 into 3." in lists
    assert "Then write a row for each of them: awk '{for (i = 2; i <= NF; i++) print $1" in lists
    assert "blocks.txt: no table: ',' cuts row 1 into 1 cells, row 2 into 3." in lists


def test_a_feed_that_is_no_xml_is_named(tmp_path):
    (tmp_path / "feed.xml").write_text("<rss><item>")
    with pytest.raises(DataError, match="^feed.xml: expected XML, found"):
        Files(tmp_path, ("feed.xml",)).columns(tmp_path / "feed.xml")
