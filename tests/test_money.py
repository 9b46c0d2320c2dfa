"""``moon init`` reads amounts of money as the importer does."""

from types import SimpleNamespace

import duckdb
import pytest

from dataset.adapters.described.cells import Reader
from dataset.adapters.guessing.profile import _amount

AMOUNTS = [
    "12", "-3.5", "1e3", "$1,299.00", "1.299,00 €", "12,50 EUR", "US$ 5", "Rs. 1,299", "₴120", "99 ₪", "₱1,000",
    "฿20", "1 299,00 zł", "1'299.00", "１，２９９円", "٣٫٥", "१२९", "1,234,567", "12,3456", "1.234.567,8", "1,5",
    "5 元", "7 руб.",    "1,2,3", "1.2.3", "--", "free", "12 apples", "EUR", ".5", "5.", "3,99 kr", "1\u202f000 Ft",
]  # fmt: skip


@pytest.mark.parametrize("text", AMOUNTS)
def test_an_amount_is_the_same_number_to_both(text):
    reader = Reader(SimpleNamespace(missing=()), {"price": "VARCHAR"})
    row = duckdb.execute(
        f"SELECT {reader.number('price', 'price').sql} FROM (SELECT ? AS price)", [text]
    ).fetchone()
    try:
        guessed = _amount(text)
    except ValueError:
        guessed = None
    assert guessed == row[0]
