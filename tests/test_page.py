"""The page says what was answered: titles, scores, what each source gave, and nothing where there is nothing."""

import base64
import hashlib
import re
from dataclasses import replace
from html import escape
from types import SimpleNamespace

import pytest

from feature_repo.shop_ids import INT64_IDS
from serving.answer import Answer, Hit
from serving.catalogue import Card
from serving.headers import POLICY
from serving.page import STYLE, render
from serving.recommend import UnknownItem


def card(item_id, image="ab"):
    fields = {"item_id": item_id, "title": f"item {item_id}", "category": "Shoes", "image_id": image}
    others = {name: None for name in Card.__dataclass_fields__ if name not in fields}
    return Card(**fields, **others)


HIT = Hit(card(5), 0.4321, {"match_popular": 0.5, "match_cooccurrence": 0.0, "match_similar": 0.25})
FOUND = Answer([HIT], {"retrieve": 1.26}, ("no_history",), "ranker")


class Moon(SimpleNamespace):
    """Answers FOUND to everything and remembers what it was asked."""

    def __init__(self, answer=FOUND, example_users=(), categories=("Shoes",)):
        super().__init__(answer=answer, example_users=example_users, asked=[], artifacts={"index": "abc"})
        self.ids = INT64_IDS
        self.retriever = SimpleNamespace(index=_Index(categories))
        self.catalogue = SimpleNamespace(cards=lambda ids: [card(one) for one in ids])

    def recommend(self, *question):
        self.asked.append(("recommend", *question))
        return self.answer

    def similar(self, *question):
        self.asked.append(("similar", *question))
        return self.answer

    def search(self, *question):
        self.asked.append(("search", *question))
        return self.answer

    def history(self, user_id):
        return [card(n) for n in range(30)] if user_id == 4 else []


class _Index:
    def __init__(self, categories):
        self.categories = categories

    def __len__(self):
        return 7


def test_a_hit_shows_its_score_and_every_source_that_gave_one():
    page = render(Moon(), "4", "", "", "")
    assert "title='popular 0.50 · similar 0.25'" in page
    assert "<meter value='1.000'></meter>no. 1" in page and "ordered by <b>ranker</b>" in page
    assert "retrieve <b>1.3 ms</b>" in page and "<p class='flag'>no history</p>" in page
    assert "7 items" in page and "index <code>abc</code>" in page


def test_everything_shown_has_a_name_and_nothing_in_it_is_code():
    hostile = "<script>alert(1)</script>' onerror='alert(2)"
    moon = Moon(Answer([Hit(replace(card(5, "a'/../b"), title=hostile), 1.0, {})], {}, (), "ranker"))
    page = render(moon, hostile, "", "", "boots")
    assert "<script" not in page and not re.search(r"<[^>]* on\w+=", re.sub(r"'[^']*'", "''", page))
    assert f"alt='{escape(hostile)}'" in page and "/image/a%27%2F..%2Fb'" in page
    controls = re.findall(r"<(?:input|select)[^>]*>", page)
    assert len(controls) == 4 and all("aria-label=" in one for one in controls)


def test_a_browser_takes_the_style_of_the_page_and_no_other():
    style = re.search("<style>(.*?)</style>", render(Moon(), "", "", "", ""), flags=re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in POLICY and "unsafe" not in POLICY and " style=" not in style


def contrast(one, other):
    """The ratio of two colours' relative luminances (WCAG 2)."""

    def luminance(colour):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_everything_can_be_read_by_day_and_by_night_and_on_a_phone():
    by_day, by_night = re.findall(r"--soft: (#\w{6})", STYLE)
    (button,) = re.findall(r"--accent: (#\w{6})", STYLE)
    assert "color-scheme: light dark" in STYLE and contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast(by_day, "#ffffff") >= 4.5 and contrast(by_night, "#1e1e1e") >= 4.5
    assert contrast("#ffffff", button) >= 4.5 and "button { background: var(--accent); color: #fff;" in STYLE
    assert not re.search("ellipsis|line-clamp|nowrap|[^-]width: *\\d{3,}px", STYLE)  # no title is cut
    assert "content='width=device-width, initial-scale=1'" in render(Moon(), "", "", "", "")
    title = "wordless " * 500
    assert f"<b>{title}</b>" in render(
        Moon(Answer([Hit(replace(card(5), title=title), 1.0, {})], {}, (), "ranker")), "4", "", "", ""
    )


def test_the_history_is_shown_newest_first_and_cut_and_left_out_where_there_is_none():
    history = render(Moon(), "4", "", "", "").split("What the user did")[1].split("Recommended")[0]
    assert re.findall(r"<b>(item \d+)</b>", history) == [f"item {n}" for n in range(12)]
    assert "What the user did" not in render(Moon(), "5", "", "", "")


def test_a_price_is_shown_where_there_is_one():
    priced = Answer([Hit(replace(card(5), price=1234.5), 1.0, {}), Hit(card(6), 0.5, {})], {}, (), "ranker")
    page = render(Moon(priced), "5", "", "", "")
    assert page.count("<i>Shoes</i><div>1,234.50</div>") == 1 == page.count("1,234.50")
    assert "<i>Shoes</i><div><meter value='0.000'></meter>no. 2</div>" in page


def test_how_well_a_hit_fits_is_said_in_words():
    hits = [Hit(card(n), score, {"match_words": score}) for n, score in ((5, 1.4), (6, 0.42), (7, 0.1))]
    page = render(Moon(Answer(hits, {}, (), "relevance")), "4", "", "", "boots")
    assert re.findall(r"<meter value='(.*?)'></meter>(.*?)<", page) == [
        ("1.000", "100% match"), ("0.420", "42% match"), ("0.100", "10% match"),
    ]  # fmt: skip
    assert page.count("described alike") == 1  # said of the hit of which it is true more than of others
    placed = render(Moon(Answer(hits, {}, (), "ranker")), "4", "", "", "")
    assert re.findall(r"<meter value='(.*?)'></meter>(.*?)<", placed)[1:] == [
        ("0.246", "no. 2"),
        ("0.000", "no. 3"),
    ]


def test_a_picture_can_be_searched_for_from_the_page():
    moon = Moon()
    page = render(moon, "", "", "", "", b"picture")
    assert moon.asked == [("search", None, b"picture", 24)] and "<h2>Found for the picture</h2>" in page
    assert "Found for “boots” and the picture" in render(moon, "", "", "", "boots", b"picture")
    assert re.search(
        "<form method='post' action='/' enctype='multipart/form-data'>.*?type='file' name='image'", page
    )


def test_an_item_stands_in_a_history_once_and_a_link_keeps_the_user():
    moon = Moon()
    moon.history = lambda user: [card(3), card(2), card(3), card(3)]
    history = render(moon, "4", "", "", "").split("What the user did")[1].split("Recommended")[0]
    assert re.findall(r"<b>(item \d+)</b>", history) == ["item 3", "item 2"]
    assert history.count("/?item_id=2&amp;user_id=4") == 1


def test_of_many_categories_the_broadest_can_be_chosen():
    paths = [f"a{n}" for n in range(200)] + [f"a{n} > b" for n in range(2000)]
    page = render(Moon(categories=paths), "4", "a1999 > b", "", "")
    assert page.count("<option value='a") == 301 and "value='a1999 &gt; b' selected" in page
    assert all(f"<option value='a{n}'>" in page for n in range(200))


def test_an_answer_without_hits_says_so():
    page = render(Moon(Answer([], {}, (), "popularity")), "5", "", "", "")
    assert "Nothing fits." in page and "class='card'" not in page


@pytest.mark.parametrize(
    "arguments, asked, title",
    [
        (("4", "", "", ""), ("recommend", 4, 24, None), "Recommended to user 4"),
        (("4", "Shoes", "", ""), ("recommend", 4, 24, "Shoes"), "Recommended to user 4"),
        (("4", "", "8", ""), ("similar", 8, 24), "Like item 8"),
        (("4", "", "8", "boots"), ("search", "boots", None, 24), "Found for “boots”"),
        (("", "", "", ""), ("recommend", 9, 24, None), "Recommended to user 9"),
    ],
)
def test_text_goes_before_item_before_user_before_an_example(arguments, asked, title):
    moon = Moon(example_users=(9, 10))
    page = render(moon, *arguments)
    assert moon.asked == [asked] and title in page


def test_without_anything_asked_or_known_nothing_is_answered():
    moon = Moon()
    assert "<h2>Made of</h2>" in render(moon, "", "", "", "") and not moon.asked


PAGE = """<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Moon</title>
<meta name='viewport' content='width=device-width, initial-scale=1'>
<style>STYLE</style></head><body>
<h1>Moon <small>7 items</small></h1>
<form><input name='user_id' aria-label='user' list='users' placeholder='user' value=''>\
<datalist id='users'><option value='9'><option value='10'></datalist>\
<select name='category' aria-label='category'><option value=''>every category</option>\
<option value='Men &amp; Boys'>Men &amp; Boys</option><option value='Shoes' selected>Shoes</option></select>\
<button>Recommend</button></form>\
<form method='post' action='/' enctype='multipart/form-data'>\
<input name='text' aria-label='search' placeholder='search' value=''>\
<input type='file' name='image' aria-label='picture' accept='image/*'><button>Search</button></form>
<h2>The item</h2><div class='grid'><a class='card' href='/?item_id=8' title=''>\
<div class='frame'><img src='/image/ab' alt='item 8' loading='lazy'></div><b>item 8</b><i>Shoes</i></a></div>
<h2>Like item 8</h2>\
<div class='bars soft'><span>ordered by <b>ranker</b></span><span>retrieve <b>1.3 ms</b></span></div>\
<p class='flag'>no history</p> <div class='grid'>\
<a class='card' href='/?item_id=5' title='popular 0.50 · similar 0.25'>\
<div class='frame'><img src='/image/ab' alt='item 5' loading='lazy'></div><b>item 5</b><i>Shoes</i>\
<div><meter value='1.000'></meter>no. 1<div class=soft>popular, like an item they know</div></div></a>\
<a class='card' href='/?item_id=6' title=''>\
<div class='frame'>no picture</div><b>item 6</b><i></i><div><meter value='0.000'></meter>no. 2</div></a></div>
<h2>Made of</h2><p class='soft'>index <code>abc</code> · split <code>&lt;d&gt;</code></p>
</body></html>"""


def test_the_whole_page_of_an_item_to_the_letter():
    unknown = Hit(Card(6, "", "", None, None), 0.25, {})
    moon = Moon(
        Answer([HIT, unknown], FOUND.timings_ms, FOUND.fallbacks, FOUND.order),
        example_users=(9, 10),
        categories=("Men & Boys", "Shoes"),
    )
    moon.artifacts = {"index": "abc", "split": "<d>"}
    assert render(moon, "", "Shoes", "8", "").replace(STYLE, "STYLE") == PAGE


def test_what_was_asked_stands_in_the_form_again_and_cannot_break_out_of_it():
    page = render(Moon(), "4", "", "", "a 'b' <c>")
    assert "placeholder='user' value='4'" in page
    assert "placeholder='search' value='a &#x27;b&#x27; &lt;c&gt;'" in page
    assert "<h2>Found for “a &#x27;b&#x27; &lt;c&gt;”</h2>" in page
    assert " selected" not in page and "The item" not in render(Moon(), "4", "", "", "")


def test_a_search_shows_no_history_whatever_else_is_asked():
    page = render(Moon(), "4", "", "8", "boots")
    assert page.count("<h2>") == 2 and "The item" not in page and "What the user did" not in page


@pytest.mark.parametrize(
    ("user", "item", "said"),
    [
        ("", "x8", "&#x27;x8&#x27; is not an id: expected a whole number in decimal digits"),
        ("-1", "", "&#x27;-1&#x27; is not an id: expected a whole number in decimal digits"),
        ("9" * 19, "", f"&#x27;{'9' * 19}&#x27; is not an id: expected at most {2**63 - 1}"),
        ("", "77", "no item 77"),
    ],
)
def test_a_question_that_cannot_be_answered_is_flagged_and_nothing_else_is_shown(user, item, said):
    moon = Moon()

    def refuse(*question):
        raise UnknownItem("no item 77")

    moon.similar = refuse
    page = render(moon, user, "", item, "")
    assert re.findall(r"<p class='flag'>(.*?)</p>", page) == [said]
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Made of"] and not moon.asked
