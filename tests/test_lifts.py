"""Tastes from likes alone, against slow twins, textbook values and planted priors.

Run: pytest tests/test_lifts.py
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import multivariate_normal, norm

from dataset.contracts import EVENTS, ITEMS, completed
from feature_repo.frame import History
from retrieval.lifts import Lifts, Numbers, Past, Values, likeliest
from retrieval.likes import Likes
from retrieval.properties import Properties
from retrieval.requests import Request, Requests, history_of
from run.artifacts import open_artifact

START = datetime(2025, 6, 1, tzinfo=UTC)
BRANDS, COLOURS = ("Oak", "Elm", "Ash", "Fir"), ("red", "blue", "grey")
COUNT = 240
IDS = np.arange(COUNT, dtype=np.int64) * 3 + 7


def items(ids=IDS, brand=None, price=None):
    """Brand by the last digits, none for every seventh; colour by thirds; a price for most; products of two."""
    n = np.arange(len(ids))
    brand = [BRANDS[i % 4] if i % 7 else None for i in n] if brand is None else brand
    price = [None if i % 5 == 0 else float(10 + i % 30) for i in n] if price is None else price
    attributes = [
        [("colour", COLOURS[i // 4 % 3])]
        + ([("brand", name)] if name else [])
        + ([("serial", str(i))] if i % 2 else [])  # no two items share it: no taste can be about it
        for i, name in zip(n, brand, strict=True)
    ]
    columns = {
        "item_id": pa.array(ids),
        "title": pa.array([f"thing {i}" for i in n]),
        "category": pa.array([["home", ("mug", "vase")[i % 2]] for i in n]),
        "attributes": pa.array(attributes, ITEMS.field("attributes").type),
        "price": pa.array(price, pa.float32()),
        "spu": pa.array(n // 2),
    }
    return completed(pa.table(columns), ITEMS)


def catalogue(**columns):
    return Properties.of(items(**columns), lambda image_id: None)


def purchases(rows):
    """EVENTS of (user, row of the catalogue), a minute apart."""
    user, row = np.array(rows, np.int64).reshape(-1, 2).T
    n, time = np.arange(len(user)), EVENTS.field("available_time").type
    moments = pa.array([START + timedelta(minutes=int(i)) for i in n], time)
    columns = {
        "event_id": pa.array(n),
        "user_id": pa.array(user),
        "item_id": pa.array(IDS[row]),
        "type": pa.array(["purchase"] * len(n)),
        "event_time": moments,
        "available_time": moments,
        "sequence": pa.array(n),
    }
    return completed(pa.table(columns), EVENTS)


def random_log(users=200, each=6, seed=0):
    rng = np.random.default_rng(seed)
    return purchases([(user, row) for user in range(users) for row in rng.permutation(COUNT)[:each]])


@pytest.fixture(scope="module")
def lifts():
    return Lifts.fit(catalogue(), random_log())


def requested(*histories):
    return Requests.of([Request(1, one, START + timedelta(days=9)) for one in histories])


def test_the_urn_by_hand():
    part = Values(np.array([0, 1, 0, -1], np.int32), np.array([0.25, 0.75]))
    item, liked = np.array([0, 1]), np.array([2, 0, 1])
    said = part.said(item[:, None], liked) @ np.ones(3)
    assert said.tolist() == [2, 1]
    found = np.exp(part.lift(item, said, np.float64(3), 5.0)) * part.share
    np.testing.assert_allclose(found, [(5 * 0.25 + 2) / 8, (5 * 0.75 + 1) / 8])
    assert part.known(np.arange(4)).tolist() == [True, True, True, False]
    assert part.said(np.array([3]), np.array([3])).tolist() == [0]  # nothing is like nothing


def test_numbers_are_predicted_as_the_joint_normal_says():
    number, strength = np.array([0.4, -1.3, 0.9, 2.0]), 3.0
    part, liked = Numbers(np.append(number, np.nan)), np.array([0, 1, 2])
    said = part.said(np.array([3])[:, None], liked) @ np.ones(3)
    between = 1 / (1 + strength)
    joint = np.full((4, 4), between) + np.eye(4) * (1 - between)
    whole = multivariate_normal(cov=joint).logpdf(number)
    before = multivariate_normal(cov=joint[:3, :3]).logpdf(number[:3])
    expected = whole - before - norm.logpdf(2.0)
    np.testing.assert_allclose(part.lift(np.array([3]), said, np.float64(3), strength), expected)
    assert part.known(np.array([3, 4])).tolist() == [True, False]


def slow(lifts, history, item_id):
    """One request, one candidate at a time, as the head of the module says it."""
    rows = {row["item_id"]: row for row in items().to_pylist()}

    def values(item):
        row = rows[item]
        path = row["category"]
        return dict(row["attributes"]) | {
            "category 1": path[0], "category 2": tuple(path), "product": row["spu"], "price": row["price"],
        }  # fmt: skip

    newest: list[int] = []
    for item, code in zip(history.item_id[::-1].tolist(), history.code[::-1].tolist(), strict=True):
        if code > 0 and item not in newest:
            newest.append(item)
    newest, out = newest[:20], []
    for item in item_id.tolist():
        told = []
        for number, name in enumerate(lifts.of):
            strength, recency = lifts.strength[number], lifts.recency[number]
            own = None if item not in rows else values(item).get(name)
            past = [
                (values(one)[name], recency**newer)
                for newer, one in enumerate(newest)
                if one in rows and values(one).get(name) is not None
            ]
            if own is None or not past:
                told.append(0.0)
                continue
            weight = sum(worth for _, worth in past)
            if name == "price":
                mean, deviation = lifts.price
                centre, unit = lifts.properties.price

                def scaled(price, mean=mean, deviation=deviation, centre=centre, unit=unit):
                    return ((np.log1p(price) - centre) / unit - mean) / deviation

                posterior = sum(worth * scaled(price) for price, worth in past) / (strength + weight)
                within = strength / (1 + strength)
                spread = np.sqrt(within + within / (strength + weight))
                told.append(norm.logpdf(scaled(own), posterior, spread) - norm.logpdf(scaled(own)))
                continue
            code = lifts.properties.codes[lifts.properties.rows(np.array([item]))[0]]
            share = lifts.shares[name][code[lifts.properties.fields.index(name)]]
            taken = sum(worth for value, worth in past if value == own)
            told.append(np.log((strength * share + taken) / (strength + weight)) - np.log(share))
        out.append(told)
    return np.array(out)


def test_columns_equal_a_slow_twin(lifts):
    rng = np.random.default_rng(1)
    histories = [history_of([]), history_of([5, 6])]  # nothing; items that the catalogue does not have
    for length in (1, 3, 30):
        item = np.append(rng.choice(IDS, length), 5)
        code = rng.choice([1, 1, 1, -1], length + 1)
        histories.append(History(np.array([0, length + 1]), item, code, np.arange(length + 1)))
    requests, item_id = requested(*histories), [np.append(rng.permutation(IDS)[:25], 8) for _ in histories]
    offsets = np.arange(len(histories) + 1) * 26
    assert lifts.of == ("category 2", "product", "colour", "brand", "price")
    assert lifts.names[-1] == "match_taste_price"
    found = lifts.columns(requests, np.concatenate(item_id), offsets)
    for one, (history, wanted) in enumerate(zip(histories, item_id, strict=True)):
        own = found[offsets[one] : offsets[one + 1]]
        np.testing.assert_allclose(own, slow(lifts, history, wanted), rtol=2e-5, atol=2e-6)
    assert not found[:52].any() and found[52:].any(axis=0).all()
    alone = lifts.columns(requested(histories[4]), item_id[4], np.array([0, 26]))
    np.testing.assert_array_equal(alone, found[104:])


def test_pasts_equal_a_loop_over_likes():
    log, properties = random_log(users=30, each=5, seed=3), catalogue()
    likes = Likes.of(log)
    row = properties.rows(likes.items)[likes.column]
    row[::11] = -1  # no longer in the catalogue
    past = Past.of(likes, row)
    part = Values(properties.codes[:, properties.fields.index("brand")], np.full(4, 0.25))
    said, weight = past.summed(part, 0.7)
    at = 0
    for user in range(30):
        own = row[likes.offsets[user] : likes.offsets[user + 1]]
        own = own[own >= 0]
        for number, item in enumerate(own):
            before = own[:number][::-1]
            worth = 0.7 ** np.arange(number) * (part.codes[before] >= 0)
            same = part.codes[before] == part.codes[item]
            assert past.item[at] == item and weight[at] == pytest.approx(worth.sum())
            assert said[at] == pytest.approx((worth * same).sum() if part.codes[item] >= 0 else 0)
            at += 1
    assert at == len(past.item)


def test_the_likeliest_settings_are_those_of_a_search_by_hand():
    """Also where items lack the value: they say nothing."""
    rng = np.random.default_rng(5)
    codes = np.where(rng.random(COUNT) < 0.5, rng.integers(0, 3, COUNT), -1).astype(np.int32)
    part = Values(codes, np.array([0.2, 0.3, 0.5]))
    rows = [
        rng.choice(COUNT, 6, replace=False, p=(w := 1 + 9 * (codes == user % 3)) / w.sum())
        for user in range(300)
    ]
    past = Past(np.concatenate(rows), np.tile(np.arange(6), 300))
    likelihood = {}
    for strength in np.geomspace(0.1, 1_000, 60):
        for recency in (1.0, 0.9, 0.5):
            told = 0.0
            for own in codes[np.array(rows)]:
                for number in np.flatnonzero(own >= 0):
                    worth = recency ** np.arange(number) * (own[:number][::-1] >= 0)
                    if worth.sum():
                        said = worth @ (own[:number][::-1] == own[number])
                        chance = (strength * part.share[own[number]] + said) / (strength + worth.sum())
                        told += np.log(chance / part.share[own[number]])
            likelihood[strength, recency] = told
    strength, recency = max(likelihood, key=likelihood.__getitem__)
    found = likeliest(part, past)
    assert found[0] == pytest.approx(strength, rel=0.2) and abs(found[1] - recency) <= 0.05


def planted(strength, turn=None, users=1_500, each=8, seed=0):
    """Users whose brands come from an urn, and whose prices lie around means of their own, of the same strength.

    ``turn``: after so many likes a user has new tastes.
    """
    rng = np.random.default_rng(seed)
    brand, means = np.arange(COUNT) % 4, rng.normal(size=COUNT)
    rows = []
    for user in range(users):
        took: list[int] = []
        for number in range(each):
            if number % (turn or each) == 0:
                tastes = rng.dirichlet(np.full(4, strength / 4))
                mean = rng.normal() / np.sqrt(1 + strength)
            left = (
                np.exp(-((means - mean) ** 2) * (1 + strength) / strength / 2 + means**2 / 2) * tastes[brand]
            )
            left[took] = 0
            took.append(int(rng.choice(COUNT, p=left / left.sum())))
        rows += [(user, row) for row in took]
    price = np.exp(means * 0.3 + 3).tolist()
    properties = catalogue(brand=[BRANDS[i] for i in brand], price=price)
    return Lifts.fit(properties, purchases(rows))


@pytest.mark.parametrize("strength", [1.0, 8.0])
def test_planted_priors_are_found(strength):
    found = planted(strength)
    by_name = dict(zip(found.of, zip(found.strength, found.recency, strict=True), strict=True))
    for name in ("brand", "price"):
        assert strength / 1.6 < by_name[name][0] < strength * 1.6 and by_name[name][1] >= 0.95
    assert by_name["colour"][0] > 60  # nobody cares


def test_tastes_that_change_are_forgotten():
    lasting, changing = planted(1.0), planted(1.0, turn=2)
    brand = lasting.of.index("brand")
    assert lasting.recency[brand] >= 0.95 and changing.recency[brand] <= 0.7


def test_nothing_is_learned_from_users_with_one_like():
    found = Lifts.fit(catalogue(), purchases([(user, user) for user in range(9)]))
    assert (found.strength > 50_000).all()
    lift = found.columns(requested(history_of(IDS[:3])), IDS, np.array([0, COUNT]))
    assert np.abs(lift).max() < 0.01
    nothing = Lifts.fit(catalogue(), purchases([]))
    assert nothing.price is None and nothing.of == found.of[:-1] and (nothing.strength > 50_000).all()
    assert likeliest(Numbers(np.full(COUNT, np.nan)), Past(np.arange(3), np.arange(3)))[0] > 50_000


def test_lifts_are_the_same_after_a_file(lifts, tmp_path):
    lifts.save(tmp_path / "lifts", {})
    again = Lifts.open(open_artifact(tmp_path / "lifts", "lifts"))
    asked = requested(history_of(IDS[3:9])), IDS, np.array([0, COUNT])
    assert again.of == lifts.of and again.price == lifts.price
    np.testing.assert_array_equal(again.columns(*asked), lifts.columns(*asked))


def test_a_new_item_is_judged_by_the_values_that_it_shares(lifts):
    new = items(ids=np.array([1, 2]), brand=["Elm", "Yew"], price=[11.0, None])
    grown = lifts.with_items(new, lambda image_id: None)
    asked = requested(history_of(IDS[[1, 5, 9, 13]]))
    both = grown.columns(asked, np.array([1, 2, IDS[1]]), np.array([0, 3]))
    of = {name: column for column, name in enumerate(grown.of)}
    assert both[0, of["brand"]] == both[2, of["brand"]] > 0
    assert both[1, of["brand"]] == 0 and both[1, of["price"]] == 0 and both[1, of["colour"]] != 0
    before = lifts.columns(asked, np.array([1, 2, IDS[1]]), np.array([0, 3]))
    assert not before[:2].any()
    np.testing.assert_array_equal(before[2], both[2])
