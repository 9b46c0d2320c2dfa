"""A user's taste, inferred from everything they were shown, against slow twins and planted tastes.

Run: pytest tests/test_taste.py
"""

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from dataset.contracts import EVENTS, ITEMS, completed
from feature_repo.frame import History
from retrieval import evidence
from retrieval import taste as module
from retrieval.asked import Asked, Queries
from retrieval.colours import colours
from retrieval.content import Content
from retrieval.directions import Slopes, directions
from retrieval.evidence import Evidence, drawn
from retrieval.properties import LOOKS_SPACE, UNKNOWN, VECTORS_SPACE, Properties
from retrieval.requests import Request, Requests, history_of
from retrieval.shown import NEVER, PRIOR, Rates, Shown
from retrieval.similarities import FADE_US, Similarities
from retrieval.taste import Taste
from retrieval.taste_files import TENSORS, Tastes, open_taste, save_taste
from retrieval.words import WORD, Words, item_texts
from run.artifacts import ArtifactError

START = datetime(2025, 6, 1, tzinfo=UTC)
MINUTE_US = 60_000_000
COUNT, BRANDS = 40, ("Oak", "Elm", "Ash", "Fir")
IDS = np.arange(COUNT, dtype=np.int64) * 3 + 7
RED, BLUE = (200, 30, 30), (20, 40, 220)


def picture(colour):
    out = io.BytesIO()
    Image.new("RGB", (24, 32), colour).save(out, "PNG")
    return out.getvalue()


PICTURES = {"red": picture(RED), "blue": picture(BLUE)}


def items(ids=IDS):
    """Brand by the last digit, category by parity, a price for most, words and a picture for half."""
    n = np.arange(len(ids))
    columns = {
        "item_id": pa.array(ids),
        "title": pa.array([f"{('soft', 'hard')[i % 2]} thing {BRANDS[i % 4]}" for i in n]),
        "category": pa.array([["home", ("mug", "vase", "lamp")[i % 3]] for i in n]),
        "attributes": pa.array(
            [[("brand", BRANDS[i % 4])] if i % 7 else [] for i in n], ITEMS.field("attributes").type
        ),
        "price": pa.array([None if i % 5 == 0 else float(10 + i) for i in n], pa.float32()),
        "spu": pa.array(n // 2),
        "image_id": pa.array([(None, "red", "blue")[i % 3] for i in n]),
    }
    return completed(pa.table(columns), ITEMS)


def events(rows):
    """EVENTS of (user, item, type, minute, request, place, query, rating)."""
    names = ("user_id", "item_id", "type", "minute", "request_id", "position", "query_id", "value")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    minute = columns.pop("minute")
    time = EVENTS.field("available_time").type
    table = {name: pa.array(values, EVENTS.field(name).type) for name, values in columns.items()}
    table |= {
        "event_id": pa.array(np.arange(len(rows))),
        "event_time": pa.array([START + timedelta(minutes=m - 1) for m in minute], time),
        "available_time": pa.array([START + timedelta(minutes=m) for m in minute], time),
        "sequence": pa.array(np.arange(len(rows))),
    }
    return completed(pa.table(table), EVENTS)


def at(minute):
    return int((START + timedelta(minutes=minute)).timestamp()) * 1_000_000


def slates(likes, users=30, requests=12, seed=0):
    """Slates of four items; ``likes(user, row)`` is the chance of a click."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(users * requests):
        user, minute = number % users + 1, 10 * (number + 1)
        for place, row in enumerate(rng.permutation(COUNT)[:4]):
            item, query = int(IDS[row]), 5 if number % 3 == 0 else None
            rows.append((user, item, "impression", minute, number, place, query, None))
            if rng.random() < likes(user, row):
                rows.append((user, item, "click", minute + 1, number, place, query, None))
    return events(rows)


@pytest.fixture(scope="module")
def properties():
    return Properties.of(items(), PICTURES.get)


@pytest.fixture(scope="module")
def taste(properties):
    log = slates(lambda user, row: 0.7 if row % 4 == user % 4 else 0.15)
    shown = Shown.of(log, log)
    return Taste.fit(properties, shown, shown)


def asked(user, minute, history=None, **more):
    return Request(user, history or history_of([]), START + timedelta(minutes=minute), **more)


def test_what_was_liked_and_when_it_was_known():
    log = events(
        [
            (1, 7, "impression", 5, 1, 0, None, None),
            (1, 10, "impression", 5, 1, 1, None, None),
            (1, 10, "click", 9, 1, 1, None, None),
            (1, 10, "click", 7, 1, 1, None, None),
            (1, 7, "click", 7, 2, 0, None, None),  # of another request: no like of the first
            (1, 13, "impression", 5, None, 2, None, None),
            (1, 13, "click", 7, None, None, None, None),  # of no request
            (1, 7, "purchase", 8, 1, 0, None, None),
            (2, 16, "rating", 4, None, None, None, 4.0),
            (2, 19, "rating", 3, None, None, None, 3.5),
        ]
    )
    shown = Shown.of(log, log)
    assert shown.user_id.tolist() == [1, 1, 1, 2, 2] and shown.item_id.tolist() == [7, 10, 13, 19, 16]
    assert shown.liked_us.tolist() == [NEVER, at(7), NEVER, NEVER, at(4)]
    assert shown.before(1, at(5)) == slice(0, 0) and shown.before(1, at(5) + 1) == slice(0, 3)
    assert shown.before(3, at(99)) == slice(5, 5) and shown.end_us == at(5)


def test_what_anybody_would_like_depends_on_place_query_and_item():
    log = slates(lambda user, row: 0.8 if row == 3 else 0.2)
    rates, rows = Rates.of(log), log.filter(pa.compute.equal(log["type"], "impression"))
    expected = rates.expected(rows)
    label = Shown.of(log, log).liked_us < NEVER
    usual = (label.sum() + 1) / (len(label) + 20)

    def share(column, of):
        own = [(a, b) for a, b in zip(column, clicked, strict=True) if a == of]
        return (sum(b for _, b in own) + PRIOR * usual) / (len(own) + PRIOR)

    clicks = {(e["request_id"], e["item_id"]) for e in log.to_pylist() if e["type"] == "click"}
    table = rows.to_pylist()
    clicked = [(e["request_id"], e["item_id"]) in clicks for e in table]
    odds = lambda p: np.log(p / (1 - p))  # noqa: E731
    cells, names = [(e["position"], e["query_id"]) for e in table], [e["item_id"] for e in table]
    for row in (0, 5, 77, 400):
        level = odds(share(cells, cells[row])) + odds(share(names, names[row])) - odds(usual)
        assert expected[row] == pytest.approx(1 / (1 + np.exp(-level)), rel=1e-5)
    assert expected[rows["item_id"].to_numpy() == IDS[3]].mean() > 2 * expected.mean()


def test_properties_are_read_from_the_catalogue(properties):
    assert properties.fields == ("category 2", "product", "item", "brand"), "all items are of one first level"
    brand = properties.codes[:, 3]
    assert (brand == UNKNOWN).tolist() == [i % 7 == 0 for i in range(COUNT)]
    assert len(np.unique(brand[brand >= 0])) == 4
    assert sorted(properties.spaces) == [LOOKS_SPACE, "price", "words"]
    assert (properties.spaces["price"][::5] == 0).all() and (properties.spaces[LOOKS_SPACE][::3] == 0).all()
    assert np.square(properties.spaces["words"]).sum(axis=1).mean() == pytest.approx(1, rel=1e-4)
    assert properties.paths.tolist() == properties.codes[:, 0].tolist()
    nothing = Properties.of(items([]), PICTURES.get)
    assert nothing.fields == () and nothing.rows(IDS).tolist() == [-1] * COUNT


def test_an_item_that_comes_later_has_the_properties_of_its_equal(properties):
    twin = items().slice(2, 1).set_column(0, "item_id", pa.array([5_000]))
    later = properties.with_items(twin, PICTURES.get)
    old, new = later.rows(np.array([IDS[2], 5_000]))
    own = properties.fields.index("item")
    assert np.delete(later.codes[old] == later.codes[new], own).all() and later.codes[new, own] == UNKNOWN
    for rows in later.spaces.values():
        np.testing.assert_allclose(rows[old], rows[new], atol=1e-5)
    assert later.item_ids.tolist() == [*IDS, 5_000] == later.with_items(twin, PICTURES.get).item_ids.tolist()


def slow_parts(taste, past, item, time_us):
    """Bayesian regression with a weight for every value and number, lasting and fading, written out."""
    properties, H = taste.properties, len(past.item)
    hot = [(codes[:, None] == np.unique(codes[codes >= 0])) for codes in properties.codes.T]
    blocks = [*(one.astype(float) for one in hot), *taste.spaces.values(), np.ones((COUNT, 1))]
    prior, across = np.zeros((H, H)), []
    fade = lambda age: np.exp(-np.abs(age) / FADE_US)  # noqa: E731
    for rows, lasting, fading in zip(blocks, taste.lasting, taste.fading, strict=True):
        same = rows[past.item] @ rows[past.item].T
        prior += same * (lasting + fading * fade(past.time_us[:, None] - past.time_us))
        across.append((rows[item] @ rows[past.item].T) * (lasting + fading * fade(time_us - past.time_us)))
    noise = np.diag(1 / past.weight.astype(float))
    weights = np.linalg.inv(prior + noise) @ past.surprise
    return np.stack([one @ weights for one in across], axis=1)


def test_the_parts_of_a_taste_are_those_of_the_regression_written_out(taste):
    rng = np.random.default_rng(0)
    many = Taste(
        taste.properties,
        taste.shown,
        rng.uniform(0.1, 1, len(taste.of)).astype(np.float32),
        rng.uniform(0.1, 1, len(taste.of)).astype(np.float32),
        0.2,
    )
    for H in (1, 30):
        past = Evidence(
            rng.integers(0, COUNT, H),
            at(0) + np.sort(rng.integers(0, 600, H)) * MINUTE_US,
            rng.random(H) < 0.3,
            rng.uniform(0.05, 0.5, H).astype(np.float32),
        )
        found = many.parts(past, np.arange(COUNT), at(700))
        np.testing.assert_allclose(
            found, slow_parts(many, past, np.arange(COUNT), at(700)), rtol=2e-3, atol=2e-4
        )
        assert H == 1 or np.abs(found).max(axis=0).all()
        fresh = replace(many)  # has inferred nothing yet, so it answers as the first time
        for other in (
            past,
            replace(past, liked=~past.liked),
            replace(past, time_us=past.time_us - MINUTE_US),
        ):
            for moment in (at(700), at(900)):
                for item in (np.arange(COUNT), np.arange(3)):
                    again = many.parts(other, item, moment)
                    np.testing.assert_array_equal(again, replace(fresh).parts(other, item, moment))


def test_a_planted_taste_is_found_and_skips_alone_say_what_is_not_liked(taste):
    variance = dict(zip(taste.of, taste.lasting, strict=True))
    others = [value for name, value in variance.items() if name not in ("brand", "words")]
    assert variance["brand"] + variance["words"] > 2 * max(others), (
        "the brand, which stands in the title, too"
    )
    requests = Requests.of([asked(user, 99_999) for user in range(1, 9)])
    offsets = np.arange(9) * COUNT
    found = taste.columns(requests, np.tile(IDS, 8), offsets)
    total = found[:, taste.names.index("match_taste")].reshape(8, COUNT)
    assert np.allclose(total.ravel(), found[:, : len(taste.of)].sum(axis=1))
    for user, row in zip(range(1, 9), total, strict=True):
        liked = np.arange(COUNT) % 4 == user % 4
        assert row[liked].mean() > row[~liked].mean() + 0.2
    brand = np.flatnonzero((np.arange(COUNT) % 4 == 1) & (np.arange(COUNT) % 7 > 0))
    skipped = Evidence(
        brand[:6], at(0) + np.arange(6) * MINUTE_US, np.zeros(6, bool), np.full(6, 0.3, np.float32)
    )
    judged = taste.parts(skipped, np.arange(COUNT), at(30)).sum(axis=1)
    assert judged[brand[6:]].max() < judged[np.arange(COUNT) % 4 == 2].min() <= 0.05


def test_only_what_was_available_before_the_request_is_known(taste):
    user, shown = 1, taste.shown
    own = shown.of_user(user)
    liked = own.start + int(np.flatnonzero(shown.liked_us[own] < NEVER)[3])
    time_us = int(shown.available_us[liked])
    moment = lambda us: Request(user, history_of([]), START + timedelta(microseconds=us - at(0)))  # noqa: E731
    known = [
        taste.evidence(Requests.of([moment(time_us + more)]), 0) for more in (0, 1, MINUTE_US, MINUTE_US + 1)
    ]
    before = int((shown.available_us[own] < time_us).sum())
    slate = int((shown.available_us[own] == time_us).sum())
    assert [len(one.item) for one in known] == [before, before + slate, before + slate, before + slate]
    place = liked - own.start
    assert [bool(one.liked[place]) for one in known[1:]] == [False, False, True], (
        "the click came a minute later"
    )
    cut = Taste(taste.properties, Shown(*(getattr(shown, n)[shown.available_us < time_us] for n in vars_of(shown))),
                taste.lasting, taste.fading, taste.usual, taste.content, taste.gain)  # fmt: skip
    offsets = np.array([0, COUNT])
    both = [one.columns(Requests.of([moment(time_us)]), IDS, offsets) for one in (taste, cut)]
    np.testing.assert_array_equal(*both)


def vars_of(shown):
    return ("user_id", "item_id", "available_us", "liked_us", "expected")


def test_what_a_user_did_after_the_log_ended_counts_and_what_it_holds_counts_once(taste):
    ended = int((taste.shown.end_us - at(0)) / MINUTE_US)
    done = np.array([IDS[0], IDS[1], IDS[5], IDS[2]])
    history = History(
        np.array([0, 4]), done, np.array([1, 1, 1, 5]), at(ended) + np.array([-9, 0, 1, 2]) * MINUTE_US
    )
    past = taste.evidence(Requests.of([asked(1, ended + 5, history)]), 0)
    without = taste.evidence(Requests.of([asked(1, ended + 5)]), 0)
    assert past.item[len(without.item) :].tolist() == [5, 2] and past.liked[-2:].tolist() == [True, False]
    assert past.item[: len(without.item)].tolist() == without.item.tolist()


def test_counts_are_of_the_user_and_of_the_user_within_the_category(taste, monkeypatch):
    monkeypatch.setattr(module, "MOST_SHOWN", 5)  # limits the regression, not what is counted
    request = Requests.of([asked(4, 99_999), asked(999, 99_999)])
    candidates = np.array([IDS[0], IDS[7], 1, IDS[0]])
    found = taste.columns(request, candidates, np.array([0, 3, 4]))[:, -4:]
    own = taste.shown.of_user(4)
    row, liked = taste.properties.rows(taste.shown.item_id[own]), taste.shown.liked_us[own] < NEVER

    def counted(these):
        rate = (liked[these].sum() + PRIOR * taste.usual) / (these.sum() + PRIOR)
        return [np.log1p(these.sum()), np.log(rate / (1 - rate))]

    every, usual = counted(row >= 0), np.log(taste.usual / (1 - taste.usual))
    for number, item in enumerate((0, 7)):
        np.testing.assert_allclose(found[number], [*every, *counted(row % 3 == item % 3)], rtol=1e-5)
    np.testing.assert_allclose(found[2], [*every, 0, usual], rtol=1e-5, err_msg="an item nobody knows")
    np.testing.assert_allclose(found[3], [0, usual, 0, usual], rtol=1e-5, err_msg="a user nobody knows")


@pytest.fixture(scope="module")
def seeing(properties):
    """Tastes about two of 64 numbers of a vector, which nothing else tells, and the same with and without vectors."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(COUNT, 64)).astype(np.float32)
    vectors[::7] = 0  # items without one
    wanted = rng.normal(size=(31, 2)) * 1.5
    log = slates(lambda user, row: 1 / (1 + np.exp(1.2 - vectors[row, :2] @ wanted[user])), requests=40)
    shown = Shown.of(log, log)
    plain = Taste.fit(properties, shown, shown)
    return plain, plain.with_vectors(properties.with_vectors(vectors), shown), vectors


def test_tastes_about_two_numbers_of_a_vector_are_found_among_64(seeing):
    plain, whole, vectors = seeing
    assert set(whole.of) - set(plain.of) == {"vectors"} and set(plain.of) - set(whole.of) == {"looks"}
    assert whole.gain > plain.gain
    turned = whole.content.parts[VECTORS_SPACE].turn @ whole.content.parts[VECTORS_SPACE].turn.T
    share = np.trace(turned[:2, :2]) / np.trace(turned)
    assert share > 0.3, (
        f"{share:.2f} of what items are compared by is in two numbers of 64, of 1 in 32 by chance"
    )


def test_directions_are_learned_beside_all_other_tastes_and_relative_to_the_noise(seeing):
    plain, whole, vectors = seeing
    properties = plain.properties.with_vectors(vectors)
    content, told = Content.of(properties, [LOOKS_SPACE, VECTORS_SPACE]), []
    for past in drawn(properties, plain.shown):
        kinds = zip(plain.of, plain.lasting, plain.fading, plain.alike(past.item, past.item), strict=True)
        prior = np.diag(1 / past.weight.astype(float))
        prior += sum((one + two * past.faded) * same for name, one, two, same in kinds if name != LOOKS_SPACE)
        told.append((past.item, prior * plain.noise, past.surprise))
    root = directions(Slopes.of(content.rows(properties), told)).root
    slow = content.turned(root / np.sqrt(plain.noise)).rows(properties)
    found = whole.spaces[VECTORS_SPACE]
    assert abs(plain.noise - 1) > 0.02
    np.testing.assert_allclose(found @ found.T, slow @ slow.T, atol=2e-2 * np.abs(slow @ slow.T).max())


def test_tastes_are_learned_from_users_drawn_at_random_and_what_is_known_of_what_they_saw(taste, monkeypatch):
    shown = taste.shown
    monkeypatch.setattr(evidence, "LEARNED_USERS", 3)
    strange = replace(shown, item_id=np.where(shown.item_id == IDS[0], 999, shown.item_id))
    users = list(drawn(taste.properties, strange))
    assert len(users) == 3 and all((past.item > 0).all() for past in users), "999 is in no catalogue"
    size = len(users[0].item)
    assert (
        users[0].latest(4).time_us.tolist()
        == users[0].time_us[size - 4 :].tolist()
        != users[0].time_us[:4].tolist()
    )
    assert len(users[0].latest(10_000).item) == size


def test_vectors_take_the_place_of_looks_and_fade_as_these_do(seeing, monkeypatch):
    plain, whole, vectors = seeing
    lasting, fading = plain.lasting.copy(), plain.fading.copy()
    looks = plain.of.index(LOOKS_SPACE)
    lasting[looks], fading[looks] = 0.3, 0.15
    looking = replace(plain, lasting=lasting, fading=fading)
    properties = plain.properties.with_vectors(vectors)
    found = looking.with_vectors(properties, plain.shown)
    turns = [one.content.parts[VECTORS_SPACE].turn for one in (found, whole)]
    np.testing.assert_array_equal(*turns, err_msg="what looks explain is not taken from what vectors do")
    assert found.fading[found.of.index(VECTORS_SPACE)] == pytest.approx(0.5)
    monkeypatch.setattr(module, "better", lambda found, gain: False)
    assert looking.with_vectors(properties, plain.shown) is looking


def test_numbers_of_a_vector_that_stand_apart_are_read_alone_and_in_place_of_looks(seeing):
    plain, whole, vectors = seeing
    last = np.roll(vectors, -8, axis=1)  # what tastes are about stands among the last eight
    properties = plain.properties.with_vectors(last)
    found = plain.with_vectors(properties, plain.shown, apart=8)
    assert set(found.of) - set(plain.of) == {"vectors"} and set(plain.of) - set(found.of) == {"looks"}
    turn = found.content.parts[VECTORS_SPACE].turn
    assert list(found.content.parts) == [VECTORS_SPACE] and len(turn) == 8
    kernel = turn @ turn.T
    assert np.trace(kernel[:2, :2]) / np.trace(kernel) > 0.7, "a quarter by chance"
    assert found.gain > whole.gain + 0.05, "among 64 numbers less of it is found"
    past, moment = (
        Evidence(np.arange(9), at(0) + np.arange(9), np.arange(9) % 3 == 0, np.full(9, 0.3, np.float32)),
        at(9),
    )
    other = replace(
        found, properties=properties.with_vectors(np.concatenate([vectors[:, :56] * 9, last[:, 56:]], axis=1))
    )
    np.testing.assert_array_equal(*(one.parts(past, np.arange(COUNT), moment) for one in (found, other)))
    silent = plain.properties.with_vectors(
        np.concatenate([vectors, np.zeros((COUNT, 8), np.float32)], axis=1)
    )
    kept = plain.with_vectors(silent, plain.shown, apart=8)
    assert kept.gain == plain.with_vectors(silent, plain.shown).gain > plain.gain, (
        "without pictures all is read"
    )


def test_a_vector_that_nobody_cares_for_is_not_read(properties, taste):
    noise = np.random.default_rng(4).normal(size=(COUNT, 64)).astype(np.float32)
    assert taste.with_vectors(properties.with_vectors(noise), taste.shown) is taste


def test_saved_tastes_and_their_queries_are_the_same(taste, seeing, tmp_path):
    plain, whole, vectors = seeing
    queries = Queries(
        np.array([3, 5]), ("soft Oak", None), taste.properties.bases[LOOKS_SPACE].directions[:2]
    )
    unseen = Taste.fit(plain.properties.without_content(), plain.shown, plain.shown)
    opened, found = open_taste(save_taste(Tastes(whole, plain, unseen), queries, tmp_path / "taste", {}))
    request, offsets = Requests.of([asked(3, 500)]), np.array([0, COUNT])
    for pair in ((opened.whole, whole), (opened.plain, plain), (opened.blind, unseen)):
        assert pair[0].names == pair[1].names and pair[0].gain == pair[1].gain
        np.testing.assert_array_equal(*(one.columns(request, IDS, offsets) for one in pair))
    assert found.texts == queries.texts and found.query_ids.tolist() == [3, 5]
    np.testing.assert_array_equal(found.looks, queries.looks)
    twin = items().slice(2, 1).set_column(0, "item_id", pa.array([5_000]))
    grown = [one.with_items(twin, PICTURES.get, vectors[2:3]) for one in (opened.whole, whole)]
    later = [one.columns(request, np.array([5_000]), np.array([0, 1])) for one in grown]
    np.testing.assert_array_equal(*later)
    number = whole.of.index("vectors")
    known = whole.columns(request, IDS[[2]], np.array([0, 1]))
    np.testing.assert_allclose(later[0][0, number], known[0, number], rtol=1e-3, err_msg="seen as its equal")
    unknown = whole.with_items(twin, PICTURES.get).columns(request, np.array([5_000]), np.array([0, 1]))
    assert unknown[0, number] != later[0][0, number], "an item without a vector yet"
    apart = plain.with_vectors(
        plain.properties.with_vectors(np.roll(vectors, -8, axis=1)), plain.shown, apart=8
    )
    again, _ = open_taste(save_taste(Tastes(apart, plain, unseen), queries, tmp_path / "apart", {}))
    np.testing.assert_array_equal(*(one.columns(request, IDS, offsets) for one in (again.whole, apart)))
    same, _ = open_taste(save_taste(Tastes(plain, plain, unseen), queries, tmp_path / "same", {}))
    assert same.plain is same.whole, "where vectors say nothing, all but the blind read the same"


def test_a_taste_of_a_release_without_directions_reads_every_space_as_it_is(taste, tmp_path):
    none = Queries(np.empty(0, np.int64), (), np.empty((0, 1), np.float32))
    equal = replace(taste, content=None, gain=0.0)
    made = save_taste(Tastes(equal, equal, equal), none, tmp_path / "taste", {})
    manifest = made.config
    manifest.pop("gains")
    tensors = load_file(made.file(TENSORS))
    save_file({k: v for k, v in tensors.items() if not k.startswith("plain/")}, made.file(TENSORS))
    opened, _ = open_taste(made)
    request, offsets = Requests.of([asked(3, 500)]), np.array([0, COUNT])
    assert opened.plain is opened.whole
    np.testing.assert_array_equal(*(one.columns(request, IDS, offsets) for one in (opened.whole, equal)))


def test_a_taste_of_a_release_without_blind_tastes_is_refused_with_the_command(taste, tmp_path):
    none = Queries(np.empty(0, np.int64), (), np.empty((0, 1), np.float32))
    made = save_taste(Tastes(taste, taste, taste), none, tmp_path / "taste", {})
    tensors = load_file(made.file(TENSORS))
    kept = {name: one for name, one in tensors.items() if not name.startswith("blind/")}
    save_file(kept, made.file(TENSORS))
    with pytest.raises(
        ArtifactError, match=r"blind/lasting and blind/fading.*earlier release. Run 'moon ret"
    ):
        open_taste(made)


def test_what_was_searched_for_is_compared_whether_it_is_logged_or_typed(properties):
    words = Words.of(items())
    rows = pa.table({"query_id": [5, 3], "text": [None, "soft Oak"], "image_id": ["blue", None]})
    told = Asked(words, properties, Queries.of(rows, properties, PICTURES.get))
    requests = Requests.of(
        [
            asked(1, 9),
            asked(1, 9, text="soft Oak"),
            asked(1, 9, image=PICTURES["blue"]),
            asked(1, 9),
            asked(1, 9),
        ]
    )
    requests.query_id[[3, 4]] = [3, 5]
    found = told.columns(requests, np.tile(np.append(IDS, 1), 5), np.arange(6) * (COUNT + 1)).reshape(
        5, COUNT + 1, 3
    )
    assert told.names == ("match_query_words", "match_query_share", "match_query_looks")
    assert not found[0, :, [0, 2]].any() and (found[0, :, 1] == 1).all()
    np.testing.assert_array_equal(found[1], found[3], err_msg="typed is as logged")
    np.testing.assert_array_equal(found[2], found[4])
    row = words.vocabulary.rows(["soft Oak"])
    np.testing.assert_allclose(found[1, :COUNT, 0], (words.rows @ row.T).toarray()[:, 0], rtol=1e-6)
    assert found[1, 0, 0] == found[1, :COUNT, 0].max() and not found[1, :, 2].any()
    # as the pictures are, and above 0 even for one that is unlike: 0 says that there is no picture
    red, blue = colours([PICTURES["red"], PICTURES["blue"]])
    looks = np.resize([0, red @ blue, 1], COUNT)
    np.testing.assert_allclose(found[2, :, 2], np.append(looks, 0), atol=1e-5)
    assert 0.1 < red @ blue < 0.9
    assert not found[2, :, 0].any() and (found[2, :, 1] == 1).all()


@pytest.mark.parametrize("text", ["oak", "soft Oak", "Oak oak soft", "soft oak zzz", "zzz"])
def test_the_share_of_a_search_is_of_its_words_that_the_catalogue_knows(properties, text):
    """All of nothing is said by every item, so that no search is like one that every item answers."""
    table = items()
    told = Asked(Words.of(table), properties, Queries(np.empty(0, np.int64), (), np.empty((0, 0))))
    found = told.columns(Requests.of([asked(1, 9, text=text)]), IDS, np.array([0, COUNT]))
    says = [set(WORD.findall(one.lower())) for one in item_texts(table.sort_by("item_id"))]
    wanted = set(WORD.findall(text.lower())) & set.union(*says)
    expected = [len(wanted & one) / len(wanted) if wanted else 1 for one in says]
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-6)
    assert len(set(expected)) == (1 if text == "zzz" else 2 if len(wanted) == 1 else 3)


def test_the_columns_of_a_taste_stand_beside_those_of_similarity(taste, properties):
    told = Asked(Words.of(items()), properties, Queries(np.empty(0, np.int64), (), np.empty((0, 0))))
    columns = Similarities({"words": Words.of(items())}, (taste, told))
    request, offsets = Requests.of([asked(2, 700, text="hard Elm")]), np.array([0, COUNT])
    found = columns.of(request, IDS, offsets)
    assert found.shape == (COUNT, len(columns.names)) and len(set(columns.names)) == len(columns.names)
    start = columns.names.index(taste.names[0])
    np.testing.assert_array_equal(
        found[:, start : start + len(taste.names)], taste.columns(request, IDS, offsets)
    )
    np.testing.assert_array_equal(found[:, -3:], told.columns(request, IDS, offsets))
