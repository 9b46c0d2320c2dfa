"""Search by words and photos: the words somebody types find the items that say them, and a photo its item."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from dataset.contracts import ITEMS, JUDGEMENTS, QUERIES
from dataset.ndcg import ndcg
from dataset.withheld import withheld_queries
from retrieval.index import ItemIndex
from retrieval.search.choose import chosen_shares, nearest, nonsense, title_words
from retrieval.search.lexical import DESCRIBED, LENGTH, SATURATION, Lexical
from retrieval.search.open import open_search
from retrieval.search.search import Asked, Scored, Search, Shares, no_pictures
from retrieval.search.spelling import Spelling, folded, words_of
from run.artifacts import open_artifact, write_artifact
from tests.fake_shop import NOW

WIDTH = 8
SOLD = (  # item, title, category, attributes, description
    (30, "Red striped mug", ("kitchen", "mug"), {"colour": "red"}, "For coffee, tea or soup."),
    (10, "Blue mug", ("kitchen", "mug"), {"colour": "blue"}, None),
    (20, "Café lamp", ("lighting", "lamp"), {"colour": "red"}, "Gives light beside a mug of tea."),
    (50, "Desk lamps", ("lighting", "lamp"), {}, None),
    (40, "Striped bag", ("bags",), {"colour": "red"}, "A bag for everything."),
    (60, "Bag 8ft", ("bags",), {}, None),
    (70, None, (), {}, None),
)


def items(rows=SOLD):
    return pa.Table.from_pylist(
        [
            {
                "item_id": item, "external_id": str(item), "title": title, "description": description,
                "category": list(category), "attributes": list(values.items()), "price": None, "spu": item,
                "image_id": f"p{item}", "first_seen": NOW,
            }
            for item, title, category, values, description in rows
        ],
        schema=ITEMS,
    )  # fmt: skip


def unit(rng, count):
    rows = rng.normal(size=(count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


IDS = np.array(sorted(row[0] for row in SOLD))
WHOLE, PICTURES, NOISE = (unit(np.random.default_rng(seed), len(IDS)) for seed in (1, 2, 3))


def encode(queries):
    """A picture is the name of an item, whose picture it is; words mean the vector of the first letter."""
    return np.stack(
        [
            PICTURES[int(image)] if text is None else NOISE[ord(text[0]) % len(NOISE)]
            for text, image in queries
        ]
    )


@pytest.fixture
def search():
    index = ItemIndex.build(IDS, WHOLE)
    return Search(Lexical.of(items()), ItemIndex.build(IDS, PICTURES), Shares(floor=2, nearest=0.1), index)


def found(search, text=None, image=None, depth=5):
    return search.find(Asked.of(encode, text, image), depth)


@pytest.mark.parametrize(
    "text, first",
    [
        ("mug", {10, 30}), ("MUGS", {10, 30}), ("lamp", {20, 50}), ("cafe", {20}), ("Café", {20}),
        ("striped red mug", {30}), ("bag", {40, 60}), ("blue", {10}), ("lighting", {20, 50}), ("stripd", {30, 40}),
    ],
)  # fmt: skip
def test_words_find_the_items_that_say_them_first(search, text, first):
    """Whatever vectors say: case, accents, number and a mistyped letter do not matter."""
    assert set(found(search, text).ids[: len(first)].tolist()) == first


def test_a_word_finds_its_own_items_where_every_item_says_one_like_it():
    """Twelve brands that differ in their last letter: each item says one, more than the vectors' share could hide."""
    names, kinds = "abcdefghijkl", ("lamp", "chair", "sofa")
    rows = [(n, None, (kinds[n % 3],), {"brand": f"brand{names[n // 3 % 12]}"}, None) for n in range(108)]
    lexical = Lexical.of(items(rows))
    for letter in names:
        share = lexical.said(f"brand{letter} chair").share
        wanted = np.array([names[n // 3 % 12] == letter and n % 3 == 1 for n in lexical.item_ids])
        assert share[wanted].min() > share[~wanted].max() + 0.05


def test_case_and_accents_change_neither_order_nor_scores(search):
    one, other = found(search, "cafe LAMP"), found(search, "Café lamp")
    assert one.ids.tolist() == other.ids.tolist() and one.scores.tolist() == other.scores.tolist()


def test_a_title_typed_whole_comes_before_all_that_says_more_of_its_words():
    said = items([(1, "Red", (), {}, None), (2, "Red red", ("red",), {"a": "red"}, "red, red"), *SOLD])
    index = ItemIndex.build(said["item_id"].to_numpy(), unit(np.random.default_rng(0), len(said)))
    search = Search.of(said, no_pictures(index), index)
    assert search.lexical.said("red").share[np.searchsorted(search.lexical.item_ids, [1, 2])].argmax() == 1
    answer = found(search, "RED")
    assert answer.ids[0] == 1 and answer.scores[0] > 1 and answer.tiers[:2].tolist() == [2, 1]


def test_nothing_is_answered_where_nothing_fits(search):
    assert not len(found(search, "xyzzy").ids) and not len(found(search, "9ft").ids)
    assert len(found(search, "xyzzy", 3).ids) == 5  # a picture is like something
    means = found(replace(search, shares=replace(search.shares, floor=-1)), "xyzzy")
    assert means.ids.tolist() == IDS[np.argsort(-(WHOLE @ encode([("xyzzy", None)])[0]))][:5].tolist()
    assert set(found(search, "mug xyzzy", depth=9).ids.tolist()) == {10, 20, 30}


def test_sizes_and_models_are_like_no_others():
    spelling = Spelling(["8ft", "9ft", "light", "lights", "night"])
    assert spelling.alike("8ft")[0].tolist() == [0] and not len(spelling.alike("7ft")[0])
    rows, likeness = spelling.alike("light")
    assert rows.tolist()[:2] == [2, 3] and likeness[0] == 1 > likeness[1] >= 0.6


def test_folding_is_idempotent_and_leaves_only_the_letters():
    assert folded("ÇaFÉ ﬁne STRASSE Straße") == "cafe fine strasse strasse" and folded(None) == ""
    assert words_of("T-shirt, 2_pack!") == ["t", "shirt", "2", "pack"]


def test_an_item_says_of_a_word_what_bm25_gives_it():
    """Against the textbook's formula over scikit-learn's counts, description words counted a third."""
    table = items().sort_by("item_id")
    rows = table.to_pylist()
    listed = [" ".join([r["title"] or "", *r["category"], *(v for _, v in r["attributes"])]) for r in rows]
    counter = CountVectorizer(token_pattern=r"[^\W_]+", strip_accents="unicode").fit(
        listed + [r["description"] or "" for r in rows]
    )
    described = counter.transform([r["description"] or "" for r in rows])
    counts = (counter.transform(listed) + DESCRIBED * described).toarray()
    column = counts[:, counter.vocabulary_["tea"]]
    said, length = int((column > 0).sum()), counts.sum(axis=1)
    below = column + SATURATION * (1 - LENGTH + LENGTH * length / length.mean())
    np.testing.assert_allclose(Lexical.of(items()).said("tea").share, column / below, rtol=1e-5)
    weights = [np.log(1 + (len(rows) - n + 0.5) / (n + 0.5)) for n in (said, 1)]
    both = Lexical.of(items()).said("tea soup")
    place = IDS.tolist().index(30)
    alone = Lexical.of(items()).said("soup").share[place]
    expected = (weights[0] * (column / below)[place] + weights[1] * alone) / sum(weights)
    assert both.share[place] == pytest.approx(expected, rel=1e-5) and both.words[place] == 2


def test_a_photo_finds_its_item_and_photos_like_it(search):
    for row, item in enumerate(IDS.tolist()):
        assert found(search, image=row).ids[0] == item
    unlike = replace(search, shares=replace(search.shares, picture=0.0))
    assert any(found(unlike, image=row).ids[0] != item for row, item in enumerate(IDS.tolist()))


def test_words_and_a_photo_are_both_answered(search):
    """Of the items that say what is asked the one that looks like the photo comes first."""
    for row in (IDS.tolist().index(10), IDS.tolist().index(30)):
        assert found(search, "mug", row).ids[0] == IDS[row]


def test_items_that_come_are_found_by_their_own_words_and_those_that_leave_are_not(search):
    new = items([(90, "Zebra rug", ("rugs",), {}, None), (10, "Green bowl", (), {}, None)])
    pictures = unit(np.random.default_rng(7), 2)
    index = search.index.with_items(new["item_id"].to_numpy(), pictures, ["", ""])
    later = search.with_items(new, pictures, index)
    whole = items([*(row for row in SOLD if row[0] != 10), (90, "Zebra rug", ("rugs",), {}, None),
                   (10, "Green bowl", (), {}, None)])  # fmt: skip
    slow = Lexical.of(whole)
    for text in ("zebra", "mug", "bowl green", "rugs red"):
        assert found(search, "zebra").ids.tolist() == []
        np.testing.assert_allclose(later.lexical.said(text).share, slow.said(text).share, rtol=1e-6)
    assert found(later, "zebra").ids.tolist() == [90] and found(later, "bowl").ids[0] == 10
    assert 10 not in found(later, "mug").ids and 10 in found(search, "mug").ids
    assert later.find(Asked("", pictures[0], pictures[0]), 1).ids.tolist() == [90]
    gone = later.without(np.array([90, 30]))
    assert not len(found(gone, "zebra").ids) and 30 not in found(gone, "mug").ids
    assert gone.find(Asked(None, pictures[0], pictures[0]), 9).ids.tolist().count(90) == 0


def test_a_saved_search_answers_as_before(search, tmp_path):
    with write_artifact(tmp_path / "e", "embedding", {}) as folder:
        (folder / "x").write_text("stands in")
    parents = {"embedding": open_artifact(tmp_path / "e", "embedding")}
    parts = {
        "search": search.save(tmp_path / "search", parents),
        "picture_index": search.pictures.save(tmp_path / "pictures", parents),
    }
    again = open_search(parts, items(), search.index)
    assert again.shares == search.shares
    for text, image in (("mugs", None), (None, 2), ("red", 1), ("xyzzy", None)):
        one, other = found(search, text, image), found(again, text, image)
        assert one.ids.tolist() == other.ids.tolist() and one.scores.tolist() == other.scores.tolist()
    earlier = open_search({}, items(), search.index)  # of a release that had none
    assert set(found(earlier, "mug").ids[:2].tolist()) == {10, 30}


def judged(count, column):
    """``count`` judged queries, each of which one item answers; every eighth or so is withheld."""
    ids = np.arange(count)
    queries = [
        {
            "query_id": n,
            "text": f"q{n}" if column == "text" else None,
            "image_id": None if column == "text" else f"p{n}",
        }
        for n in ids.tolist()
    ]
    judgements = [{"query_id": n, "item_id": n, "relevance": 1.0, "part": "train"} for n in ids.tolist()]
    return SimpleNamespace(
        queries=pa.Table.from_pylist(queries, schema=QUERIES),
        judgements=pa.Table.from_pylist(judgements, schema=JUDGEMENTS),
        items=items(), image_bytes=lambda image: image and image.encode(),
    )  # fmt: skip


def test_the_shares_are_those_that_answer_withheld_queries_best():
    """Words are right and meaning wrong: words count for most. The other way round, for nothing."""
    data = judged(800, "text")
    withheld = withheld_queries(data.judgements)
    assert 60 < len(withheld) < 140 and len(withheld_queries(judged(20, "text").judgements)) < 20

    def ask_well(words_right):
        def ask(text, image):
            item = int(text[1:]) if text[1:].isdigit() else -1
            ids = np.array([item, 5000, 5001])
            right, wrong = np.float32([0.6, 0, 0]), np.float32([0, 0.9, 0.8])
            said, meant = (right, wrong) if words_right else (wrong, right)
            return Scored(ids, meant, said, None, np.zeros(3, int), np.zeros(3, bool))

        return ask

    for words_right in (True, False):
        shares = chosen_shares(
            Shares(words=0.5), ask_well(words_right), data, withheld, ["word"], np.random.default_rng(0)
        )
        assert shares.words > 0.5 if words_right else shares.words < 0.5
    few = chosen_shares(Shares(), ask_well(False), data, withheld[:19], ["word"], np.random.default_rng(0))
    assert few.words == Shares().words


def test_the_floor_is_above_what_a_text_without_meaning_reaches():
    draw = np.random.default_rng(0)

    def ask(text, image):
        return Scored(np.arange(3), np.float32([draw.random(), 0, 0]), np.zeros(3, np.float32), None,
                      np.zeros(3, int), np.zeros(3, bool))  # fmt: skip

    shares = chosen_shares(Shares(), ask, judged(0, "text"), np.empty(0, np.int64), ["mug", "lamp"], draw)
    assert 0.9 < shares.floor < 1
    assert all(set(text) <= set("lamp ") for text in nonsense(["lamp"], 9, draw))
    assert title_words(pa.table({"title": ["Red Mug", None, "a red lamp"]})) == ["a", "lamp", "mug", "red"]


def test_pictures_are_measured_by_the_distance_of_a_picture_from_the_one_most_like_it():
    angle = np.array([0, 0, 0.1, 1.0, 1.1, 2.0, 2.1])
    pictures = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    rng = np.random.default_rng(0)
    assert nearest(np.vstack([pictures, np.zeros((2, 2), np.float32)]), rng) == pytest.approx(
        1 - np.cos(0.1), abs=1e-6
    )
    assert nearest(pictures[:2], rng) == nearest(np.zeros((3, 2), np.float32), rng) == Shares().nearest


def test_ndcg_by_hand():
    grades = {1: 1.0, 2: 0.5, 3: 0.0}
    best = 1 + 0.5 / np.log2(3)
    assert ndcg(np.array([1, 2]), grades, 10) == pytest.approx(1)
    assert ndcg(np.array([9, 1, 2]), grades, 2) == pytest.approx(1 / np.log2(3) / best)
    assert ndcg(np.empty(0, int), grades, 5) == 0
