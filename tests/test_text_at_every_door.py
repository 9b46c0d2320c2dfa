"""Two texts that look alike are one text, at every door; what nobody sees is no text."""

import json
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_dataset_contracts import rows, tables_of

from dataset.checks import check, quarantine_counts
from dataset.contracts import ITEMS, DataError
from dataset.records import Item
from dataset.text import clean, clean_column
from feature_repo.ingest.arrivals import parsed
from serving.questions import RecommendQuestion, SearchForm, SearchQuestion

UNSEEN = ["\u200b", "\ufeff", "\u2060", "\u00ad", "\u200e", "\u202e", "\ufe0f", "\u3164"]
ALIKE = {
    "red mug": [
        "\ufeffred mug",
        "red mug\u200b",
        "red m\u00adug",
        " red mug\n",
        "ｒｅｄ mug",
        "red\u00a0mug",
    ],
    "café": ["cafe\u0301", "caf\u00e9", "ca\u200bfé"],
    "a b": ["a\x00b", "a\x1bb", "a\x85b"],
}


@pytest.mark.parametrize("seen", ALIKE)
def test_what_looks_alike_is_one_text_at_every_door(seen):
    for written in ALIKE[seen]:
        content = rows()
        content["items"][0] |= {"title": written, "category": [written], "attributes": [(written, written)]}
        content["queries"][0] |= {"text": written}
        checked = check(tables_of(content))
        imported = checked.items.slice(0, 1).to_pylist()[0]
        item = Item(item_id=1, title=written, category=[written], attributes={written: written})
        assert imported["title"] == item.title == seen
        assert imported["category"] == item.category == [seen]
        assert dict(imported["attributes"]) == item.attributes == {seen: seen}
        assert checked.queries["text"].to_pylist()[0] == seen
        assert SearchForm(text=written).text == SearchQuestion(text=written).text == seen
        assert RecommendQuestion(user_id="1", category=written).category == seen


@pytest.mark.parametrize("unseen", UNSEEN)
def test_what_nobody_sees_is_no_text(unseen):
    assert SearchQuestion(text=unseen).text == ""
    with pytest.raises(DataError, match="neither title nor picture"):
        parsed(Item, json.dumps({"item_id": 1, "title": unseen}))
    with pytest.raises(ValidationError):
        Item(item_id=1, title="x", category=[unseen])
    content = rows()
    content["queries"][0] |= {"text": unseen, "image_id": None}
    assert quarantine_counts(check(tables_of(content)).quarantine)["queries"] == {"neither text nor image": 1}


@given(st.text(max_size=30))
def test_cleaning_again_changes_nothing_and_columns_are_cleaned_as_texts_are(text):
    once = clean(text)
    assert clean(once) == once and unicodedata.is_normalized("NFKC", once) and once == once.strip()
    column = pa.chunked_array([pa.array([text, None, text[:3]]), pa.array([text])])
    assert clean_column(column).to_pylist() == [once, None, clean(text[:3]), once]
    paths = pa.chunked_array([pa.array([[text, "x"], [], [text]])])
    assert clean_column(paths).to_pylist() == [[once, "x"], [], [once]]
    kind = ITEMS.field("attributes").type
    maps = pa.chunked_array([pa.array([[(text, "v")], []], kind)])
    assert clean_column(maps).to_pylist() == [[(once, "v")], []] and clean_column(maps).type == kind


def test_missing_lists_stay_missing_and_a_part_of_a_column_is_itself():
    paths = pa.array([["a\ufeff"], None, [], ["b", None]])
    assert clean_column(pa.chunked_array([paths])).to_pylist() == [["a"], None, [], ["b", None]]
    assert clean_column(pa.chunked_array([paths.slice(2), paths.slice(0, 1)])).to_pylist() == [
        [],
        ["b", None],
        ["a"],
    ]
