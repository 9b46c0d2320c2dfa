"""What people see of an item: its card and its picture, also of items that came in later.

Run: pytest tests/test_catalogue.py
"""

import pyarrow as pa
import pytest
from fake_shop import ITEM_IDS, items_table, paths_of

from serving.catalogue import Card, Catalogue


@pytest.fixture
def catalogue():
    return Catalogue(items_table(ITEM_IDS, paths_of(len(ITEM_IDS))), {f"{0:016x}": b"first"}.get)


def changed(row, **columns):
    """One row of the shop's table with other values."""
    table = items_table(ITEM_IDS, paths_of(len(ITEM_IDS)))
    return pa.Table.from_pylist([table.to_pylist()[row] | columns], schema=table.schema)


def test_cards_come_in_the_order_asked_and_unknown_items_get_an_empty_one(catalogue):
    first, twelfth, nobody = int(ITEM_IDS[0]), int(ITEM_IDS[12]), 5
    assert len(catalogue) == len(ITEM_IDS)
    assert catalogue.cards([twelfth, nobody, first, twelfth]) == [
        Card(twelfth, "<item> 12", "Women > Shoes", 1.5, f"{12:016x}"),
        Card(nobody, "", "", None, None),
        Card(first, "<item> 0", "Women", 1.5, f"{0:016x}"),
        Card(twelfth, "<item> 12", "Women > Shoes", 1.5, f"{12:016x}"),
    ]
    assert catalogue.cards([]) == []


def test_what_the_catalogue_lacks_is_empty_and_a_price_is_rounded(catalogue):
    (untitled, unpriced, unpictured) = catalogue.cards(ITEM_IDS[[4, 1, 2]])
    assert untitled.title == "" and unpriced.price is None and unpictured.image_id is None
    row = changed(3, price=2.3456)
    assert catalogue.with_items(row, {}).cards(ITEM_IDS[[3]])[0].price == 2.35
    row = changed(3, price=None)
    assert catalogue.with_items(row, {}).cards(ITEM_IDS[[3]])[0].price is None


def test_later_items_join_and_replace_and_the_catalogue_before_stays(catalogue):
    told = pa.concat_tables(
        [changed(3, title="renamed", image_id="n" * 16), changed(0, item_id=99, title="new")]
    )
    later = catalogue.with_items(told, {"n" * 16: b"later"})
    assert len(later) == len(ITEM_IDS) + 1 and len(catalogue) == len(ITEM_IDS)
    assert [card.title for card in later.cards([int(ITEM_IDS[3]), 99, int(ITEM_IDS[6])])] == [
        "renamed", "new", "<item> 6",
    ]  # fmt: skip
    assert catalogue.cards(ITEM_IDS[[3]])[0].title == "<item> 3" and catalogue.cards([99])[0].title == ""
    assert later.image_bytes("n" * 16) == b"later" and later.image_bytes(f"{0:016x}") == b"first"
    assert later.image_bytes("nothing") is None and catalogue.image_bytes("n" * 16) is None
