"""The simulated shop keeps its promises: truth is known, content carries it, nothing happens too early."""

from __future__ import annotations

import colorsys
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from dataset.contracts import SCHEMAS, DataError, Tables, content_hash
from dataset.marketplace import browsing as behaviour
from dataset.marketplace import shoppers
from dataset.marketplace.catalogue import (
    DAYS,
    FACETS,
    NOISE,
    START_US,
    WORDS,
    Catalogue,
    make_catalogue,
)
from dataset.marketplace.drawing import COLOURS, PATTERNS, SILHOUETTES, Camera, Look, draw
from dataset.marketplace.rules import FIRST, Rules
from dataset.marketplace.simulate import World, play, simulate, taste_shares
from dataset.order import SOURCE
from dataset.tables import Dataset, write_dataset
from run.artifacts import open_artifact

EVENTS = 4000


@pytest.fixture(scope="module")
def shop() -> tuple[Tables, dict]:
    return simulate(EVENTS, seed=7)


@pytest.fixture(scope="module")
def tables(shop: tuple[Tables, dict]) -> Tables:
    return shop[0]


@pytest.fixture(scope="module")
def world() -> World:
    return play(40_000, seed=7)


def same(left: Tables, right: Tables, names: tuple[str, ...] = (*SCHEMAS, "truth")) -> list[str]:
    return [name for name in names if getattr(left, name).equals(getattr(right, name))]


def test_equal_seeds_give_equal_tables_and_other_seeds_do_not() -> None:
    first, again, other = simulate(500, seed=1), simulate(500, seed=1), simulate(500, seed=2)
    assert same(first[0], again[0]) == [*SCHEMAS, "truth"]
    assert first[1] == again[1]
    assert same(first[0], other[0]) == []


def test_another_process_makes_the_same_artifact(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from dataset.marketplace.simulate import simulate; "
        "from dataset.tables import write_dataset; write_dataset(Path(sys.argv[1]), *simulate(500, seed=1))"
    )
    for name in ("a", "b"):
        environment = {**os.environ, "PYTHONHASHSEED": str(ord(name))}
        root = Path(__file__).resolve().parents[1]
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)], check=True, cwd=root, env=environment
        )
    assert open_artifact(tmp_path / "a", "dataset").id == open_artifact(tmp_path / "b", "dataset").id


def test_no_row_breaks_the_contract(tmp_path: Path, shop: tuple[Tables, dict]) -> None:
    tables, config = shop
    dataset = Dataset.open(write_dataset(tmp_path / "dataset", tables, config))
    assert dataset.quarantine.num_rows == 0
    assert dataset.artifact.config["ties"] == SOURCE
    clicks = pc.sum(pc.equal(tables.events["type"], "click")).as_py()
    assert dataset.artifact.config["clicks"]["in their slate"] == clicks > 0
    for name, schema in SCHEMAS.items():
        assert getattr(tables, name).schema.equals(schema)
        assert getattr(dataset, name).num_rows == getattr(tables, name).num_rows > 0
    assert dataset.truth.num_rows == config["counts"]["events"] - sum(
        pc.not_equal(tables.events.column("type"), "impression").to_pylist()
    )


@pytest.mark.parametrize(("events", "users"), [(500, 22), (3000, 91), (20_000, 104)])
def test_one_argument_scales_everything(events: int, users: int) -> None:
    world = play(events, seed=0)
    assert (world.slates.item >= 0).sum() == pytest.approx(events, rel=0.02)
    if events >= 3000:  # a smaller shop still has two products of every kind
        assert len(world.catalogue) == pytest.approx(1000 * (events / 60_000) ** 0.6, rel=0.05)
    assert len(world.shoppers.age) == users


def test_too_few_events_are_refused() -> None:
    with pytest.raises(DataError, match="at least 500 events.*found 499"):
        simulate(499)


def labels_and_truth(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Clicked (from the log alone) and true probability of each impression, by a plain loop."""
    rows = tables.events.select(["event_id", "type", "request_id", "item_id"]).to_pylist()
    clicked = {(row["request_id"], row["item_id"]) for row in rows if row["type"] == "click"}
    truth = dict(
        zip(*(tables.truth.column(name).to_pylist() for name in tables.truth.column_names), strict=True)
    )
    pairs = [
        ((row["request_id"], row["item_id"]) in clicked, truth[row["event_id"]])
        for row in rows
        if row["type"] == "impression"
    ]
    assert len(pairs) == len(truth)
    label, probability = zip(*pairs, strict=True)
    return np.array(label), np.array(probability)


def test_bayes_auc_is_that_of_the_truth_and_is_informative(shop: tuple[Tables, dict]) -> None:
    label, probability = labels_and_truth(shop[0])
    assert shop[1]["bayes_auc"] == pytest.approx(roc_auc_score(label, probability), abs=1e-6)
    assert 0.78 < shop[1]["bayes_auc"] < 0.88
    assert shop[1]["click_through_rate"] == pytest.approx(label.mean(), abs=1e-6)


def test_the_truth_is_calibrated(world: World) -> None:
    shown = world.slates.item >= 0
    probability, clicked = world.slates.probability[shown], world.slates.clicked[shown]
    assert 0.08 < clicked.mean() < 0.15
    for low, high in ((0.0, 0.05), (0.05, 0.15), (0.15, 0.4), (0.4, 1.0)):
        inside = (probability >= low) & (probability < high)
        error = np.sqrt(probability[inside].mean() / inside.sum())
        assert clicked[inside].mean() == pytest.approx(probability[inside].mean(), abs=4 * error)


def test_earlier_positions_are_clicked_more_for_the_same_liking(world: World) -> None:
    clicks = world.slates.clicked.sum(axis=0)
    if_examined = (world.slates.probability / behaviour.EXAMINATION).sum(axis=0)
    assert clicks / if_examined == pytest.approx(behaviour.EXAMINATION, rel=0.15)
    assert clicks[0] > 1.3 * clicks[4] > 1.3 * clicks[9]


def test_nothing_happens_before_it_can(tables: Tables) -> None:
    items = dict(zip(*(tables.items.column(n).to_pylist() for n in ("item_id", "first_seen")), strict=True))
    users = dict(zip(*(tables.users.column(n).to_pylist() for n in ("user_id", "first_seen")), strict=True))
    impressions = {}
    order = {"impression": 0, "click": 1, "cart": 2, "purchase": 3}
    reached: dict[tuple[int, int], int] = {}
    previous = None
    for event in tables.events.to_pylist():
        assert event["event_time"] >= items[event["item_id"]]
        assert event["event_time"] >= users[event["user_id"]]
        lag = (event["available_time"] - event["event_time"]).total_seconds()
        assert 1 <= lag <= 30
        assert previous is None or event["event_time"] >= previous
        previous = event["event_time"]
        key = (event["request_id"], event["item_id"])
        if event["type"] == "impression":
            impressions[key] = (event["user_id"], event["position"], event["query_id"])
        assert impressions[key] == (event["user_id"], event["position"], event["query_id"])
        assert reached.get(key, -1) == order[event["type"]] - 1
        reached[key] = order[event["type"]]


def test_a_slate_holds_each_item_once_at_consecutive_positions(tables: Tables) -> None:
    slates: dict[int, list[dict]] = {}
    for event in tables.events.to_pylist():
        if event["type"] == "impression":
            slates.setdefault(event["request_id"], []).append(event)
    for slate in slates.values():
        assert [event["position"] for event in slate] == list(range(len(slate)))
        assert len({event["item_id"] for event in slate}) == len(slate)
        assert len({event["event_time"] for event in slate}) == 1


def test_new_items_arrive_and_are_shown(world: World) -> None:
    catalogue = world.catalogue
    new = catalogue.first_seen_us >= START_US
    assert 0.15 < new.mean() < 0.30
    assert catalogue.first_seen_us.max() > START_US + (DAYS - 5) * 86_400_000_000
    shown = np.unique(world.slates.item[world.slates.item >= 0])
    assert np.isin(np.flatnonzero(new), shown).mean() > 0.5


def test_searches_come_in_words_and_pictures(tables: Tables) -> None:
    text, image = tables.queries.column("text"), tables.queries.column("image_id")
    assert all((a is None) != (b is None) for a, b in zip(text.to_pylist(), image.to_pylist(), strict=True))
    words = [value for value in text.to_pylist() if value]
    assert len(words) == len(set(words)) > 20
    impressions = tables.events.filter(pc.equal(tables.events.column("type"), "impression"))
    assert 1 - impressions.column("query_id").null_count / impressions.num_rows == pytest.approx(
        0.25, abs=0.06
    )


def test_judgements_grade_what_the_text_asked_for(tables: Tables) -> None:
    catalogue = make_catalogue_of(tables)
    text = dict(zip(*(tables.queries.column(n).to_pylist() for n in ("query_id", "text")), strict=True))
    row_of = {item: row for row, item in enumerate(catalogue.item_id.tolist())}
    values = {value.lower(): (column, number) for column, (_, words) in enumerate(FACETS.items())
              for number, value in enumerate(words)}  # fmt: skip
    checked = 0
    for judgement in tables.judgements.to_pylist():
        asked = text[judgement["query_id"]]
        if asked is None:
            continue
        facet = catalogue.facet[row_of[judgement["item_id"]]]
        has = [facet[values[word][0]] == values[word][1] for word in asked.split()]
        assert judgement["relevance"] == pytest.approx(
            np.mean(has) if has[-1] else 0.0
        )  # the last is the leaf
        checked += 1
    assert checked > 500
    parts = {(row["query_id"], row["part"]) for row in tables.judgements.to_pylist()}
    assert len(parts) == len({query for query, _ in parts})
    assert {part for _, part in parts} == {"train", "test"}


def make_catalogue_of(tables: Tables) -> Catalogue:
    catalogue = play(EVENTS, seed=7).catalogue
    assert sorted(catalogue.item_id.tolist()) == tables.items.column("item_id").to_pylist()
    return catalogue


def named_colour(picture: bytes) -> str:
    """The colour word nearest to the middle of a picture, by saturation-weighted mean hue."""
    middle = np.asarray(Image.open(io.BytesIO(picture)).convert("HSV"), dtype=float)[20:48, 20:44] / 255
    hue, saturation, value = (middle[..., channel].ravel() for channel in range(3))
    weight = np.where((saturation > 0.55) & (value > 0.3), saturation**2, 0)  # the backdrop is paler
    if weight.sum() < 20:
        return "black" if np.median(value) < 0.45 else "white"
    mean = np.angle((weight * np.exp(2j * np.pi * hue)).sum()) / (2 * np.pi)
    chromatic = {name: hsv[0] / 360 for name, hsv in COLOURS.items() if hsv[1] > 0}
    return min(chromatic, key=lambda name: abs((mean - chromatic[name] + 0.5) % 1 - 0.5))


def plain_items(tables: Tables, catalogue: Catalogue) -> Iterator[tuple[dict, bytes, int]]:
    """Items whose middle shows their body, with their picture and catalogue row."""
    image = dict(zip(*(tables.images.column(n).to_pylist() for n in ("image_id", "bytes")), strict=True))
    row_of = {item: row for row, item in enumerate(catalogue.item_id.tolist())}
    for item in tables.items.to_pylist():
        if item["image_id"] and item["category"][-1] in ("mug", "cushion", "shirt", "bag", "dress", "vase"):
            yield item, image[item["image_id"]], row_of[item["item_id"]]


def test_the_colour_word_is_the_colour_of_the_picture_up_to_the_stated_noise(tables: Tables) -> None:
    catalogue = make_catalogue_of(tables)
    seen_true = seen_word = total = 0
    for item, picture, row in plain_items(tables, catalogue):
        word = dict(item["attributes"]).get("colour")
        true = FACETS["colour"][catalogue.facet[row, 1]]
        if word is None or not COLOURS[true][1]:
            continue
        seen = named_colour(picture)
        total += 1
        seen_true += seen == true
        seen_word += seen == word
    assert total > 60
    assert seen_true / total > 0.97
    assert seen_word / total == pytest.approx(1 - NOISE["wrong_colour_word"], abs=0.06)


def test_stated_noise_rates_hold() -> None:
    catalogue = make_catalogue(20_000, np.random.default_rng(0))
    wrong = (catalogue.word != catalogue.facet).mean(axis=0)
    expected = [0, NOISE["wrong_colour_word"], NOISE["wrong_pattern_word"], 0, 0, 0]
    assert wrong == pytest.approx(expected, abs=0.005)
    assert 1 - catalogue.listed[:, 1:].mean() == pytest.approx(NOISE["attribute_missing"], abs=0.005)


def test_some_items_lack_a_picture_or_a_title(tables: Tables) -> None:
    n = tables.items.num_rows
    assert 0 < tables.items.column("image_id").null_count < 0.12 * n
    assert 0 < tables.items.column("title").null_count < 0.10 * n


def one_hot(catalogue: Catalogue, columns: slice = slice(None)) -> np.ndarray:
    sizes = [len(words) for words in FACETS.values()][columns]
    return np.concatenate(
        [np.eye(size)[numbers] for size, numbers in zip(sizes, catalogue.facet.T[columns], strict=True)],
        axis=1,
    )


PIXEL_TRAITS = 4  # the first of TRAITS, all but the price


def test_pixel_traits_cannot_be_read_off_the_text_but_can_be_off_the_picture(tables: Tables) -> None:
    catalogue = play(60_000, seed=7).catalogue
    text = np.concatenate([one_hot(catalogue), catalogue.trait[:, 4:]], axis=1)
    for trait in range(PIXEL_TRAITS):
        predicted = cross_val_predict(LinearRegression(), text, catalogue.trait[:, trait], cv=3)
        assert np.corrcoef(predicted, catalogue.trait[:, trait])[0, 1] < 0.1

    catalogue = make_catalogue_of(tables)
    hue, shown = [], []
    for _, picture, row in plain_items(tables, catalogue):
        corner = np.asarray(Image.open(io.BytesIO(picture)), dtype=float)[:8, :8].mean(axis=(0, 1)) / 255
        hue.append(colorsys.rgb_to_hsv(*corner)[0])
        shown.append(catalogue.background[row])
    off = np.abs((np.array(hue) - np.array(shown) + 0.5) % 1 - 0.5)
    assert np.median(off) < 0.02


def extent(look: Look) -> tuple[float, float]:
    """Width and height of what differs from the backdrop, in pixels."""
    picture = np.asarray(Image.open(io.BytesIO(draw(look, np.random.default_rng(0)))), dtype=float)
    product = np.abs(picture - picture[2, 2]).sum(axis=2) > 150
    return product.any(axis=0).sum(), product.any(axis=1).sum()


def test_proportions_and_density_show_in_the_picture() -> None:
    for shape in SILHOUETTES:
        squat = extent(Look(shape, "black", "plain", 0.0, -1.0, 0.3))
        slender = extent(Look(shape, "black", "plain", 0.0, 1.0, 0.3))
        assert slender[1] / slender[0] > 1.4 * squat[1] / squat[0], shape
    steps = []
    for density in (-1.0, 1.0):
        picture = draw(
            Look("cushion", "blue", "striped", density, 0.0, 0.3), np.random.default_rng(0), Camera(noise=0.0)
        )
        column = np.asarray(Image.open(io.BytesIO(picture)).convert("L"), dtype=float)[18:46, 32]
        steps.append((np.abs(np.diff(column > column.mean())) > 0).sum())
    assert steps[1] > 1.5 * steps[0]


def test_every_look_is_drawn_distinct_and_repeatable() -> None:
    looks = [
        Look(shape, colour, pattern, 0.2, -0.3, 0.6)
        for shape, colour, pattern in zip(SILHOUETTES, [*COLOURS, *COLOURS], PATTERNS * 3, strict=False)
    ]
    ids = [content_hash(draw(look, np.random.default_rng(1))) for look in looks]
    assert ids == [content_hash(draw(look, np.random.default_rng(1))) for look in looks]
    assert len(set(ids)) == len(looks) == len(SILHOUETTES)
    picture = Image.open(io.BytesIO(draw(looks[0], np.random.default_rng(1))))
    assert picture.size == (64, 64) and picture.format == "JPEG"


def auc_without(world: World, hidden: slice) -> float:
    """AUC of the true model blind to some columns of lasting taste."""
    interest = world.shoppers.interest.copy()
    interest[:, hidden] = 0
    requests, slates = world.requests, world.slates
    rows = np.arange(len(requests.user))
    asked = behaviour.query_interest(requests, rows, behaviour.asked_facets(requests), world.catalogue)
    liking = shoppers.affinity(interest[requests.user] + asked, world.catalogue, slates.item)
    liking += world.catalogue.quality[slates.item] - (requests.wanted >= 0)[:, None]
    shown = slates.item >= 0
    probability = behaviour.sigmoid(liking - 3) * behaviour.EXAMINATION
    return float(roc_auc_score(slates.clicked[shown], probability[shown]))


def test_both_modalities_are_needed(world: World) -> None:
    start = shoppers.FACET_START["material"]
    seeing_all = auc_without(world, slice(0, 0))
    assert seeing_all - auc_without(world, slice(WORDS, WORDS + PIXEL_TRAITS)) > 0.03
    assert seeing_all - auc_without(world, slice(start, WORDS)) > 0.02


def test_recent_clicks_shift_what_is_liked_next(world: World) -> None:
    """Beyond lasting taste the true log-odds hold nothing at first, then a push towards what was clicked."""
    requests, slates, catalogue = world.requests, world.slates, world.catalogue
    examined = np.clip(slates.probability / behaviour.EXAMINATION, 1e-6, 1 - 1e-6)
    taste = shoppers.affinity(world.shoppers.interest[requests.user], catalogue, slates.item)
    rest = np.log(examined / (1 - examined)) - taste - catalogue.quality[slates.item]
    browsing = requests.wanted < 0
    first = rest[browsing & (requests.turn == 0)]
    assert first.std() < 0.02

    rows = np.flatnonzero((requests.turn == 1) & browsing)
    soon = rows[(requests.time_us[rows] - requests.time_us[rows - 1]) < 1800e6]
    soon = soon[slates.clicked[soon - 1].sum(axis=1) == 1]
    last = slates.item[soon - 1, slates.clicked[soon - 1].argmax(axis=1)]
    again = catalogue.facet[slates.item[soon], 0] == catalogue.facet[last, 0][:, None]
    push = rest[soon][again].mean() - rest[soon][~again].mean()
    assert push == pytest.approx(behaviour.CLICK_SHIFT["leaf"], abs=0.1)


def test_ids_tell_nothing_about_age(world: World) -> None:
    age = pa.array(world.catalogue.first_seen_us).to_numpy()
    assert abs(np.corrcoef(age, world.catalogue.item_id)[0, 1]) < 0.1


ODD = Rules(users=100, random_share=0.3, pixels=0.0, words=2.0, behaviour=1.0)


@pytest.fixture(scope="module")
def odd() -> World:
    return play(20_000, seed=7, rules=ODD)


def test_random_slates_are_uniform_over_what_is_there_and_answer_no_query(odd: World) -> None:
    requests, slates, catalogue = odd.requests, odd.slates, odd.catalogue
    random = slates.propensity > 0
    browsing = requests.wanted < 0
    assert not random[~browsing].any()
    assert random[browsing].mean() == pytest.approx(0.3, abs=0.04)
    available = (catalogue.first_seen_us <= requests.time_us[random][:, None]).sum(axis=1)
    assert slates.propensity[random] == pytest.approx(10 / available, rel=1e-6)
    shown = slates.item[random]
    assert (catalogue.first_seen_us[shown] <= requests.time_us[random][:, None]).all()
    assert all(len(set(slate)) == 10 for slate in shown.tolist())
    old = catalogue.first_seen_us < START_US
    count = np.bincount(shown.ravel(), minlength=len(catalogue))[old]
    expected = slates.propensity[random].sum()
    # Counts of a fair draw spread like those of a Poisson law, whatever the item's popularity.
    assert count.mean() == pytest.approx(expected, rel=0.05)
    assert count.var() == pytest.approx(expected, rel=0.3)
    assert abs(np.corrcoef(count, catalogue.popularity[old])[0, 1]) < 0.15


def test_the_log_names_the_propensity_of_every_item_of_a_random_slate() -> None:
    tables, config = simulate(EVENTS, seed=7, rules=ODD)
    world = play(EVENTS, seed=7, rules=ODD)
    assert config["rules"] == ODD.record() and Rules.of(config) == ODD
    known = dict(
        zip(*(tables.propensities[name].to_pylist() for name in ("event_id", "propensity")), strict=True)
    )
    numbers = np.empty(len(world.requests.user), dtype=np.int64)
    numbers[np.argsort(world.requests.time_us, kind="stable")] = np.arange(1, len(numbers) + 1)
    of_request = dict(zip(numbers.tolist(), world.slates.propensity.tolist(), strict=True))
    shown = [row for row in tables.events.to_pylist() if row["type"] == "impression"]
    expected = {
        row["event_id"]: of_request[row["request_id"]] for row in shown if of_request[row["request_id"]] > 0
    }
    assert known == pytest.approx(expected) and 0 < len(known) < len(shown) / 2
    assert simulate(500, seed=7, rules=FIRST)[0].propensities is None


def test_taste_shares_are_stated_and_can_be_switched(odd: World, world: World) -> None:
    shares = taste_shares(odd)
    assert shares["pixels"] == 0 and sum(shares.values()) == pytest.approx(1, abs=2e-4)
    logit = odd.catalogue.properties() @ odd.shoppers.interest.T
    circles = odd.catalogue.trait[:, -3:] @ odd.shoppers.interest[:, -3:].T
    rest = logit - circles
    assert shares["behaviour"] == pytest.approx(
        circles.var(axis=0).mean() / (circles.var(axis=0).mean() + rest.var(axis=0).mean()), abs=0.06
    )
    assert auc_without(odd, slice(WORDS, WORDS + PIXEL_TRAITS)) == auc_without(odd, slice(0, 0))
    assert auc_without(odd, slice(0, 0)) - auc_without(odd, slice(WORDS + 5, WORDS + 8)) > 0.02
    start = shoppers.FACET_START["material"]
    twice = play(2_000, seed=1, rules=Rules(words=2)).shoppers.interest[:, start:WORDS]
    assert np.array_equal(twice, 2 * play(2_000, seed=1, rules=FIRST).shoppers.interest[:, start:WORDS])


def test_circles_show_in_nothing_but_behaviour(odd: World) -> None:
    assert np.linalg.norm(odd.catalogue.trait[:, -3:], axis=1) == pytest.approx(1)
    seen = one_hot(odd.catalogue)
    for axis in range(3):
        product, row = np.unique(odd.catalogue.spu, return_index=True)
        assert len(product) > 200
        guess = cross_val_predict(LinearRegression(), seen[row], odd.catalogue.trait[row, -3 + axis], cv=5)
        assert np.corrcoef(guess, odd.catalogue.trait[row, -3 + axis])[0, 1] < 0.2


def test_switching_circles_on_changes_nothing_else() -> None:
    without, within = (make_catalogue(300, np.random.default_rng(1), circles=one) for one in (False, True))
    for name in ("item_id", "facet", "word", "price", "quality", "popularity", "first_seen_us"):
        assert np.array_equal(getattr(without, name), getattr(within, name)), name
    assert np.array_equal(without.trait[:, :5], within.trait[:, :5]) and not without.trait[:, 5:].any()


def test_fewer_users_share_the_events_but_a_small_shop_keeps_its_users() -> None:
    rules = Rules(users=250)
    assert rules.user_count(60_000) == 250
    assert rules.user_count(500) == FIRST.user_count(500) == 22
    assert rules.user_count(5_000) == 100 < FIRST.user_count(5_000)


def test_the_world_of_earlier_releases_is_still_known() -> None:
    """Their datasets name no rules; their truth is made again from the seed (numbers of release 0.1.0)."""
    assert Rules.of({"seed": 3}) == FIRST == Rules()
    slates = play(2_000, seed=3, rules=FIRST).slates
    assert slates.item[0].tolist() == [113, 108, 114, 5, 15, 107, 109, 16, 21, 106]
    assert (slates.clicked.sum(), slates.purchased.sum()) == (266, 62)
    assert slates.probability.sum() == pytest.approx(261.39285, rel=1e-6)
