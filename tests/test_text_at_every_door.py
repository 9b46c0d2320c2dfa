"""Two texts that look alike are one text, at every door; what nobody sees is no text."""

import json
import timeit
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
    "a b": [
        "a\x00b",
        "a\x1bb",
        "a\x85b",
        "a&nbsp;b",
        "<P CLASS='x'>a</P><br/>b",
        "&lt;p&gt;a&amp;#32;b&lt;/p&gt;",
    ],
    "Tea & Café": [
        "Tea &amp; Caf&eacute;",
        "<style>.a{b}</style>Tea <!-- 2 -->&#38; Café",
        "＜b＞Tea＜/b＞ &amp;amp; Café",
    ],
    "I <3 <new> a<b AT&T": ["I &lt;3 <new> a<b AT&amp;T"],
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


MARKED = st.lists(
    st.sampled_from(
        [
            "<",
            "＜",
            "p",
            ">",
            "/",
            "&",
            "amp;",
            "lt;",
            "#38;",
            "script",
            "!--",
            "\0",
            " ",
            "\u200b",
            "e\u0301",
        ]
    )
)


@pytest.mark.parametrize("part", ["<script", "<script>", "<!--", "<b", "<<b>b>", "&amp;", "&#38;", "&lt;"])
def test_markup_that_does_not_end_costs_no_more_than_its_length(part):
    short, long = (min(timeit.repeat(lambda: clean(part * n), number=1, repeat=3)) for n in (1_000, 8_000))  # noqa: B023
    assert long < 40 * short + 0.01, "not the 64 of a square"


@given(st.one_of(st.text(max_size=30), MARKED.map("".join)))
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
