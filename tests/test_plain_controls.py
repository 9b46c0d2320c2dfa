"""Plain features are what they say, as of the request; the controls find what they say.

Run: pytest tests/test_plain_controls.py
"""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import roc_auc_score

from dataset.contracts import EVENTS, IMAGES, ITEMS, QUERIES, TIME
from dataset.split import RANKING, RETRIEVAL
from evaluation import plain_controls, plain_features
from evaluation.baselines import rank
from evaluation.content import PlainContent, tf_idf
from evaluation.earlier import NO_QUERY, Counts, Moments, rows_before
from evaluation.plain import PlainMethods
from evaluation.plain_controls import Examples, PlainControls, proposed, training_examples
from evaluation.plain_features import PlainFeatures
from evaluation.shop_baselines import requests_of, shop_baselines
from retrieval.words import item_texts

DAY = 86_400_000_000
WORDS = ("red", "blue", "green", "round", "square", "tall")


def shop_items(rng, count=40):
    kinds = rng.integers(0, 3, size=count)
    titles = [
        f"{WORDS[kind]} {WORDS[3 + other]}"
        for kind, other in zip(kinds, rng.integers(0, 3, count), strict=True)
    ]
    columns = {
        "item_id": 100 + 3 * np.arange(count),
        "external_id": [str(n) for n in range(count)],
        "title": titles,
        "description": [None] * count,
        "category": [[WORDS[3 + kind]] for kind in rng.integers(0, 3, count)],
        "attributes": [[]] * count,
        "price": [None if n % 7 == 0 else float(n) for n in range(count)],
        "spu": np.arange(count),
        "image_id": [None] * count,
        "first_seen": pa.array(np.zeros(count, np.int64)).cast(TIME),
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in ITEMS], schema=ITEMS), kinds


def log_of(rows):
    """EVENTS of (user, item, type, time_us, value) rows."""
    user, item, kind, time_us, value = zip(*rows, strict=True) if rows else ([],) * 5
    columns = {
        "event_id": np.arange(len(rows)),
        "user_id": user,
        "item_id": item,
        "type": kind,
        "event_time": pa.array(np.array(time_us, np.int64) - 1).cast(TIME),
        "available_time": pa.array(np.array(time_us, np.int64)).cast(TIME),
        "value": value,
        "sequence": np.arange(len(rows)),
    }
    return pa.table(
        [
            pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(len(rows), f.type)
            for f in EVENTS
        ],
        schema=EVENTS,
    )


@pytest.fixture(scope="module")
def shop():
    """Forty items, users 1 to 20 who like one word each, and a log of twenty days."""
    rng = np.random.default_rng(0)
    items, kinds = shop_items(rng)
    ids, rows = items["item_id"].to_numpy(), []
    for day in range(20):
        for user in range(1, 21):
            for one in rng.permutation(40)[:5]:
                at = day * DAY + int(rng.integers(0, DAY // 2))
                rows.append((user, int(ids[one]), "impression", at, None))
                if rng.random() < (0.7 if kinds[one] == user % 3 else 0.05):
                    rows.append((user, int(ids[one]), "click", at + 1, None))
    rows += [(21, int(ids[0]), "rating", 5 * DAY, 5.0), (21, int(ids[1]), "rating", 6 * DAY, 1.0)]
    queries = pa.Table.from_pylist([{"query_id": 9, "text": "blue UNKNOWN"}], schema=QUERIES)
    dataset = SimpleNamespace(
        items=items, images=IMAGES.empty_table(), queries=queries, image_bytes=lambda _: None
    )
    return dataset, PlainContent.of(items, dataset.images), log_of(rows), kinds


def slowly(shop, together, user, now, item, query_id):
    """The features of one pair by plain loops, by name."""
    dataset, _, log, _ = shop
    items, ids = dataset.items, dataset.items["item_id"].to_pylist()
    text = tf_idf(item_texts(items), [*item_texts(items), "blue UNKNOWN"])
    terms = np.zeros((len(ids) + 1, text.width))
    for row in range(len(ids) + 1):
        entry = slice(text.offsets[row], text.offsets[row + 1])
        terms[row, text.column[entry]] = text.value[entry]
    buyers = {one: set() for one in ids}
    for row in together.to_pylist():
        if row["type"] == "click" or (row["type"] == "rating" and row["value"] >= 4):
            buyers[row["item_id"]].add(row["user_id"])

    def co(a, b):
        both = len(buyers[a] & buyers[b])
        return both / np.sqrt(len(buyers[a]) * len(buyers[b])) if both else 0.0

    cosine = {"co_occurrence": co, "tf_idf": lambda a, b: terms[ids.index(a)] @ terms[ids.index(b)]}
    category = dict(zip(ids, items["category"].to_pylist(), strict=True))
    before = [row for row in log.to_pylist() if int(row["available_time"].timestamp() * 1e6) < now]

    def liked(row):
        return row["type"] == "click" or (row["type"] == "rating" and row["value"] >= 4)

    def shown(row):
        return row["type"] in ("impression", "rating")

    def at(row):
        return int(row["available_time"].timestamp() * 1e6)

    past = [row for row in before if row["user_id"] == user and row["type"] != "impression"]
    past = sorted(past, key=lambda row: (at(row), row["sequence"]))[-8:]
    likes = [row for row in past if liked(row)]
    fade = [np.exp(-(now - at(row)) / (DAY / 8)) for row in likes]
    usual = (sum(map(liked, together.to_pylist())) + 1) / (sum(map(shown, together.to_pylist())) + 20)

    def count(test, kept):
        return sum(test(row) for row in before if kept(row))

    def rate(kept):
        chance = (count(liked, kept) + 10 * usual) / (count(shown, kept) + 10)
        return np.log(chance / (1 - chance))

    def mine(row):
        return row["user_id"] == user

    def here(row):
        return row["user_id"] == user and category[row["item_id"]] == category[item]

    def this(row):
        return row["item_id"] == item

    def lately(row):
        return row["item_id"] == item and at(row) >= now - 28 * DAY

    found = {}
    for space, like in cosine.items():
        values = [like(item, row["item_id"]) for row in likes]
        signed = [like(item, row["item_id"]) * (1 if liked(row) else -1) for row in past]
        top = sorted(values)[-3:]
        found |= {
            f"{space}_mean": np.mean(values) if values else 0,
            f"{space}_largest": max(values, default=0),
            f"{space}_three_largest": np.mean(top) if top else 0,
            f"{space}_fading": np.dot(values, fade) if values else 0,
            f"{space}_liked_less_disliked": np.mean(signed) if signed else 0,
        }
    same = [category[row["item_id"]] == category[item] for row in likes]
    found |= {
        "length": np.log1p(len(past)),
        "in_category": np.mean(same) if same else 0,
        "in_category_fading": np.dot(same, fade) if same else 0,
        "user_shown": np.log1p(count(shown, mine)),
        "user_rate": rate(mine),
        "category_shown": np.log1p(count(shown, here)),
        "category_rate": rate(here),
        "item_shown_28d": np.log1p(count(shown, lately)),
        "item_liked_28d": np.log1p(count(liked, lately)),
        "item_shown": np.log1p(count(shown, this)),
        "item_liked": np.log1p(count(liked, this)),
        "item_rate": rate(this),
        "price": np.log1p(items["price"][ids.index(item)].as_py() or 0),
        "age": np.log1p(now / DAY),
        "query_tf_idf": terms[ids.index(item)] @ terms[-1] if query_id == 9 else 0,
        "asked": float(query_id == 9),
    }
    times = [place for place, row in enumerate(likes) if row["item_id"] == item]
    return found | {
        "taken": np.log1p(count(liked, lambda row: mine(row) and this(row))),
        "taken_lately": 1 / (len(likes) - times[-1]) if times else 0,
        "taken_since": np.log1p((now - at(likes[times[-1]])) / DAY) if times else 0,
    }


def test_every_feature_is_what_a_plain_loop_finds(shop, monkeypatch):
    monkeypatch.setattr(plain_features, "BEHAVIOURS", 8)
    dataset, content, log, _ = shop
    together = log.filter(pa.array(np.arange(len(log)) < len(log) // 2))
    features = PlainFeatures(dataset, content, log, together, True)
    plainly = PlainFeatures(dataset, content, log, together, False)
    rng = np.random.default_rng(3)
    users = np.array([1, 2, 21, 99, 7, 21])
    times = np.array([12 * DAY, 3 * DAY, 10 * DAY, 10 * DAY, 0, 40 * DAY])
    asked = Moments(users, times, np.array([NO_QUERY, 9, NO_QUERY, 9, NO_QUERY, NO_QUERY]))
    offsets = np.array([0, 3, 5, 9, 21, 23, 25])  # 99 is nobody, whose counts could be anybody's
    item = rng.choice(dataset.items["item_id"].to_numpy(), size=25)
    clicks = [row for row in log.to_pylist() if (row["user_id"], row["type"]) == (1, "click")]
    before = [row for row in clicks if row["available_time"].timestamp() * 1e6 < times[0]]
    item[0] = max(before, key=lambda row: (row["available_time"], row["sequence"]))["item_id"]
    found = features.of(asked, offsets, item)
    assert features.names[:-3] == plainly.names and found[:, -3:].any(axis=0).all()
    assert np.array_equal(found[:, :-3], plainly.of(asked, offsets, item))
    for row, of in enumerate(np.repeat(np.arange(6), np.diff(offsets))):
        expected = slowly(
            shop, together, int(users[of]), int(times[of]), int(item[row]), int(asked.query_id[of])
        )
        assert dict(zip(features.names, found[row].tolist(), strict=True)) == pytest.approx(
            expected, abs=1e-5
        )


def test_what_happens_at_the_request_or_later_changes_no_feature(shop):
    dataset, content, log, _ = shop
    when = log["available_time"].cast(pa.int64()).to_numpy()
    now = int(np.sort(when)[len(when) // 2])
    asked = Moments(np.arange(1, 22), np.full(21, now), np.full(21, NO_QUERY))
    offsets, item = plain_controls.every(dataset.items["item_id"].to_numpy(), 21)
    earlier = log.filter(pa.array(when < now))
    assert (when == now).any() and len(earlier) < len(log) - 1
    whole, cut = (
        PlainFeatures(dataset, content, one, earlier, False).of(asked, offsets, item)
        for one in (log, earlier)
    )
    assert np.array_equal(whole, cut)


def test_rows_before_are_those_of_a_loop():
    rng = np.random.default_rng(5)
    key, time_us = rng.integers(0, 9, 200) * 10**17, rng.integers(0, 30, 200)
    order = np.lexsort((time_us, key))
    key, time_us = key[order], time_us[order]
    who, when = np.append(np.unique(key), [-1, 5, 10**18]).repeat(3), rng.integers(-1, 32, 36)
    start, stop = rows_before(key, time_us, who, when)
    for a, b, one, now in zip(start, stop, who, when, strict=True):
        assert np.arange(a, b).tolist() == np.flatnonzero((key == one) & (time_us < now)).tolist()
    counts = Counts.of(key[::-1], time_us[::-1])
    expected = []
    for one, now in zip(who, when, strict=True):
        expected.append(int(((key == one) & (time_us < now) & (time_us >= now - 7)).sum()))
    assert counts.before(who, when, 7).tolist() == expected


def split_of(log, kinds, ids, shown=True):
    """Days 12 to 16 train, later test; a retrieval request per user at each cut."""
    rows, when = [], log["available_time"].cast(pa.int64()).to_numpy()
    clicked = {(r["user_id"], r["item_id"]) for r in log.to_pylist() if r["type"] == "click"}
    for number, row in enumerate(log.to_pylist()):
        if row["type"] == "impression" and when[number] >= 12 * DAY and shown:
            label = float((row["user_id"], row["item_id"]) in clicked)
            part = "train" if when[number] < 16 * DAY else "test"
            values = (number, row["user_id"], int(when[number]), None, row["item_id"], 0, label, part, number)
            rows.append(dict(zip(RANKING.names, values, strict=True)))
    liked = [ids[kinds == user % 3].tolist() for user in range(1, 21)]
    requests = [
        dict(zip(RETRIEVAL.names, (40 * late + user, user, day * DAY, part, liked[user - 1]), strict=True))
        for late, (day, part) in enumerate(((12, "train"), (16, "test")))
        for user in range(1, 21)
    ]
    return SimpleNamespace(
        shows=shown,
        repeats=False,
        ranking=pa.Table.from_pylist(rows, schema=RANKING),
        retrieval=pa.Table.from_pylist(requests, schema=RETRIEVAL),
        log=log,
        fit_log=log.filter(pa.array(when < 12 * DAY)),
        test_log=log.filter(pa.array(when < 16 * DAY)),
    )


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_the_controls_find_planted_tastes(shop, shown, whole, monkeypatch):
    dataset, content, log, kinds = shop
    ids = dataset.items["item_id"].to_numpy()
    split = split_of(log, kinds, ids, shown)
    monkeypatch.setattr(plain_controls, "MOST_PAIRS", 10**6 if whole else 0)
    monkeypatch.setattr(plain_controls, "PROPOSED", 15)
    methods = PlainMethods.fit(dataset, split, ids, seed=0)
    test = split.retrieval.slice(20)
    found = dict(methods.lists(test, 5))
    assert set(found) == {"popularity", "chance", "item_knn", "tf_idf", "mix", "logistic", "boosting"}
    for name in ("logistic", "boosting"):
        right = [
            kinds[(item - 100) // 3] == user % 3
            for user, row in enumerate(found[name].any, 1)
            for item in row
        ]
        assert np.mean(right) > (0.75 if shown and whole else 0.5), name  # a third by chance
    taken = {(r["user_id"], r["item_id"]) for r in split.test_log.to_pylist() if r["type"] == "click"}
    new = found["logistic"].new
    assert not {(user, int(item)) for user, row in enumerate(new, 1) for item in row} & taken
    if shown:
        late = split.ranking.filter(pa.array(split.ranking["part"].to_numpy() == "test"))
        examples = Examples.of(late)
        for chance in methods.controls.probabilities(
            examples.asked, examples.offsets, examples.item_id
        ).values():
            assert roc_auc_score(examples.label, chance) > 0.8


def test_rates_are_smoothed_in_the_test_as_they_were_in_training(shop):
    """A log whose slates begin when the ranker's training does: before it, all that is known was liked."""
    dataset, content, log, kinds = shop
    split = split_of(log, kinds, dataset.items["item_id"].to_numpy())
    split.fit_log = split.fit_log.filter(pc.equal(split.fit_log["type"], "click"))
    controls = PlainControls.fit(dataset, split, content, dataset.items["item_id"].to_numpy(), seed=0)
    before, after = (
        PlainFeatures(dataset, content, log, one, False).usual for one in (split.fit_log, split.test_log)
    )
    assert controls.features.usual == before > 2 * after


def test_later_behaviour_changes_neither_the_training_nor_the_answers(shop):
    dataset, content, log, kinds = shop
    ids = dataset.items["item_id"].to_numpy()
    alone = split_of(log, kinds, ids)
    later = log_of([(user, int(item), "click", 30 * DAY, None) for user in range(1, 21) for item in ids[::3]])
    more = SimpleNamespace(**{**vars(alone), "log": pa.concat_tables([log, later])})
    test = alone.retrieval.slice(20)
    one, two = (dict(PlainMethods.fit(dataset, split, ids, 0).lists(test, 20)) for split in (alone, more))
    for name in set(one) - {"chance"}:
        assert np.array_equal(one[name].any, two[name].any), name


def test_training_rows_are_bounded_whole_requests_and_one_class_trains_nothing(shop, monkeypatch):
    dataset, content, log, kinds = shop
    ids = dataset.items["item_id"].to_numpy()
    split = split_of(log, kinds, ids)
    train = split.ranking.filter(pa.array(split.ranking["part"].to_numpy() == "train"))
    monkeypatch.setattr(plain_controls, "MOST_ROWS", 50)
    some = training_examples(split, content, ids, seed=1)
    assert 0 < len(some.item_id) <= 50 < len(train)
    pairs = set(
        zip(
            train["user_id"].to_pylist(),
            train["item_id"].to_pylist(),
            train["label"].to_pylist(),
            strict=True,
        )
    )
    owner = np.repeat(some.asked.user_id, np.diff(some.offsets))
    assert set(zip(owner.tolist(), some.item_id.tolist(), some.label.tolist(), strict=True)) <= pairs
    split.ranking = split.ranking.filter(pa.array(split.ranking["label"].to_numpy() == 1))
    assert PlainControls.fit(dataset, split, content, ids, seed=1) is None


def test_of_proposals_all_that_was_taken_is_kept_and_few_others(shop, monkeypatch):
    dataset, content, log, kinds = shop
    ids = dataset.items["item_id"].to_numpy()
    split = split_of(log, kinds, ids, shown=False)
    every = training_examples(split, content, ids, seed=1)
    monkeypatch.setattr(plain_controls, "MOST_ROWS", 6 * plain_controls.MOST_REQUESTS)
    few = training_examples(split, content, ids, seed=1)
    assert np.diff(few.offsets).tolist() == np.minimum(np.diff(every.offsets), 6).tolist()
    for r in range(len(few.asked)):
        one, all_of = slice(*few.offsets[r : r + 2]), slice(*every.offsets[r : r + 2])
        assert few.label[one].sum() == min(every.label[all_of].sum(), 6)
        known = dict(zip(every.item_id[all_of].tolist(), every.label[all_of].tolist(), strict=True))
        found = dict(zip(few.item_id[one].tolist(), few.label[one].tolist(), strict=True))
        assert found.items() <= known.items()
        assert all(
            (item in set(ids[kinds == few.asked.user_id[r] % 3].tolist())) == bool(y)
            for item, y in found.items()
        )
    assert every.label.sum() > 0


def test_proposals_are_the_union_of_what_the_baselines_list(shop, monkeypatch):
    dataset, content, log, _ = shop
    monkeypatch.setattr(plain_controls, "PROPOSED", 6)
    ids = dataset.items["item_id"].to_numpy()
    baselines = shop_baselines(content, log, ids, False)
    requests = pa.table({"user_id": [3, 99, 4], "time": pa.array([20 * DAY] * 3).cast(TIME)})
    history = requests_of(log, requests)
    offsets, item_id = proposed(baselines, history, False)
    named = [
        rank(baselines[name], history, 6, repeats=False) for name in ("popularity", "item_knn", "tf_idf")
    ]
    for r in range(3):
        expected = sorted({int(item) for one in named for item in one[r] if item >= 0})
        assert item_id[offsets[r] : offsets[r + 1]].tolist() == expected
