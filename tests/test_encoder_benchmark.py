"""The benchmark holds whole products out, asks every encoder the same, and an encoder that knows gets it right."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from encoder_world import COLOURS, SHAPES, START, event, item_row, png
from needs import DATA
from sklearn.feature_extraction.text import TfidfVectorizer

from dataset.contracts import (
    EVENTS,
    IMAGES,
    ITEMS,
    JUDGEMENTS,
    QUARANTINE,
    QUERIES,
    USERS,
    Tables,
    content_hash,
)
from dataset.importers import import_dataset
from dataset.split import Split
from dataset.tables import Dataset, write_dataset
from encoder.content import Content
from evaluation.measurements import write_measurements
from evaluation.metrics import Measurement
from evaluation.science.encoders.compare import ComparisonError, compare
from evaluation.science.encoders.exam import Exam, Vectors, run_benchmark
from evaluation.science.encoders.held_out import hold_out
from evaluation.science.encoders.model_free import (
    TfIdf,
    both,
    histogram,
    model_free,
    random_vectors,
    thumbnail,
    unit,
)
from evaluation.science.encoders.table import EncoderTable
from run.artifacts import open_artifact
from run.sizes import size

ITEM_ROWS = 96
NAMES = list(COLOURS)


def written(folder, rows, images, events=(), queries=(), judgements=()):
    users = sorted({one["user_id"] for one in events})
    tables = Tables(
        items=pa.Table.from_pylist(rows, ITEMS),
        images=pa.Table.from_pylist(
            [{"image_id": k, "bytes": v, "width": 32, "height": 32} for k, v in images.items()], IMAGES
        ),
        users=pa.Table.from_pylist(
            [{"user_id": u, "external_id": str(u), "first_seen": START} for u in users], USERS
        ),
        events=pa.Table.from_pylist(list(events), EVENTS),
        queries=pa.Table.from_pylist(list(queries), QUERIES),
        judgements=pa.Table.from_pylist(list(judgements), JUDGEMENTS),
        quarantine=QUARANTINE.empty_table(),
    )
    write_dataset(folder, tables, {"name": "t", "source": "test"})
    return Dataset.open(open_artifact(folder, "dataset"))


def a_shop(folder):
    """Products of one shape in two colours (a third item has no picture); 2n and 2n + 1 are bought together."""
    rows, images = [], {}
    for item_id in range(ITEM_ROWS):
        product, variant = divmod(item_id, 3)
        colour, shape = NAMES[(product + variant) % 8], SHAPES[product % 6]
        picture = None if variant == 2 else png(colour, shape, jitter=product % 3 - 1)
        if picture is not None:
            images[content_hash(picture)] = picture
        rows.append(item_row(item_id, colour, shape, picture, spu=product, description=f"product p{product}"))
    events, number = [], 0
    for product in range(0, ITEM_ROWS // 3, 2):
        for user in (product, product + 1):
            for bought in (3 * product, 3 * product + 3, 3 * product + 1):
                at = START + timedelta(days=product, seconds=number)
                events.append(event(number, user, bought, at))
                number += 1
    return written(folder, rows, images, events)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    dataset = a_shop(folder / "dataset")
    return dataset, hold_out(dataset, folder / "split", seed=3, items=24)


def test_whole_products_are_held_out_with_all_that_happened_to_them(shop):
    dataset, bench = shop
    spu = dict(zip(dataset.items["item_id"].to_pylist(), dataset.items["spu"].to_pylist(), strict=True))
    held = bench.split.pool.tolist()
    assert len(bench.pool_items) == 24 and set(bench.pool_items) < set(held)
    assert len(held) == 36, "the pictureless variant of a held-out product is held out too"
    assert not {spu[item] for item in held} & {spu[item] for item in bench.train_items.tolist()}
    assert sorted([*held, *bench.train_items.tolist()]) == sorted(spu)
    pictured = {
        row["item_id"] for row in dataset.items.to_pylist() if row["image_id"] is not None and row["title"]
    }
    assert set(bench.pool_items.tolist()) == set(held) & pictured
    logged = set(bench.split.log["item_id"].to_pylist())
    assert logged and not logged & set(held)
    kept = [one for one in dataset.events["item_id"].to_pylist() if one not in set(held)]
    assert bench.split.log.num_rows == len(kept)


def test_the_split_is_what_training_takes(shop):
    dataset, bench = shop
    assert isinstance(bench.split, Split) and bench.split.log.schema.equals(EVENTS)
    assert (bench.split.encoder_items(dataset.items) == bench.train_items).all()
    assert bench.split.fit_log.num_rows == bench.split.log.num_rows, "every event is known by fit_until"
    assert bench.split.ranking.num_rows == bench.split.retrieval.num_rows == 0


def test_the_split_is_fixed_by_its_seed(shop, tmp_path):
    dataset, bench = shop
    again = hold_out(dataset, tmp_path / "again", seed=3, items=24)
    other = hold_out(dataset, tmp_path / "other", seed=4, items=24)
    assert again.split.artifact.id == bench.split.artifact.id
    assert other.pool_items.tolist() != bench.pool_items.tolist()
    odd = hold_out(dataset, tmp_path / "odd", items=25)
    assert len(odd.pool_items) == 24, "products of two items never fill 25 places, and never exceed them"


def test_a_product_brings_the_product_bought_along_with_it(shop):
    dataset, bench = shop
    products = {item // 3 for item in bench.pool_items.tolist()}
    assert all(product ^ 1 in products for product in products)


def test_truths_are_what_was_planted(shop):
    dataset, bench = shop
    exam = Exam.of(dataset, bench)
    items = bench.pool_items.tolist()

    def found(truth):
        return {
            items[q]: {items[row] for row in truth.rows[truth.offsets[q] : truth.offsets[q + 1]]}
            for q in range(len(items))
            if truth.offsets[q] < truth.offsets[q + 1]
        }

    assert found(exam.same_product) == {item: {item + 1 if item % 3 == 0 else item - 1} for item in items}
    expected = {}
    for product in {item // 3 for item in items if item // 3 % 2 == 0}:
        first, variant, other = 3 * product, 3 * product + 1, 3 * product + 3
        expected |= {first: {other}, variant: {other}, other: {first, variant}}
    assert found(exam.bought) == expected, "variants bought together are no co-purchase"
    assert len(exam.pool["item"]) == 24 and len(exam.learn) == 40
    assert exam.same_product.queries == 24 and exam.bought.queries == 18
    assert len(exam.queries) == len(exam.candidates) == 0


def test_a_pair_one_user_bought_and_another_looked_at_is_not_bought_together(tmp_path):
    rows, images = [], {}
    for item_id in range(4):
        picture = png(NAMES[item_id], "disc")
        images[content_hash(picture)] = picture
        rows.append(item_row(item_id, NAMES[item_id], "disc", picture))
    log = [(1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0), (1, 2, 1), (1, 3, 1), (1, 2, 2), (1, 3, 2)]
    events = [
        event(n, user, item, START + timedelta(days=day, seconds=n))
        for n, (user, item, day) in enumerate(log)
    ]
    looks = [event(90 + n, 2, 2 + n, START + timedelta(days=1, seconds=n), type="click") for n in range(2)]
    dataset = written(tmp_path / "dataset", rows, images, [*events, *looks])
    exam = Exam.of(dataset, hold_out(dataset, tmp_path / "split", items=4))
    assert len(exam.bought.rows) // 2 == 1 and exam.bought.queries == 2


def test_every_view_shows_only_what_it_says(shop):
    exam = Exam.of(*shop)
    for name, (picture, words) in {
        "item": (True, r"\w+ \w+\. shapes \w+\. \w+\. product p\d+"),
        "text": (False, r"\w+ \w+\. shapes \w+\. \w+\. product p\d+"),
        "image": (True, ""),
        "title": (False, r"\w+ \w+"),
        "shown": (True, r"\w+ \w+"),
    }.items():
        for content in exam.pool[name]:
            assert (content.image is not None) == picture, name
            assert re.fullmatch(words, content.words), name
    assert all(content.image and re.fullmatch(r"\w+ \w+", content.words) for content in exam.learn)


def test_questions_are_category_levels_and_attributes(shop):
    exam = Exam.of(*shop)
    asked = {question.name: question.classes for question in exam.facets.labels}
    assert set(asked) == {"category_2", "attribute_colour"}, "one top category is no question"
    assert set(asked["category_2"]) == {f"shapes {shape}" for shape in SHAPES}
    assert set(asked["attribute_colour"]) <= set(NAMES)


@cache
def drawn() -> dict[bytes, tuple[str, str]]:
    """What every picture of the shop shows."""
    return {
        png(colour, shape, jitter=jitter): (colour, shape)
        for colour in NAMES
        for shape in SHAPES
        for jitter in (-1, 0, 1)
    }


def knowing(contents: list[Content]) -> np.ndarray:
    """An encoder that reads colour and shape off words and pictures alike."""
    pictures = drawn()
    out = np.zeros((len(contents), len(NAMES) + len(SHAPES)), dtype=np.float32)
    for row, content in enumerate(contents):
        assert not content.is_empty
        seen = [*pictures.get(content.image, ()), *re.findall(r"\w+", content.words)]
        for place, word in enumerate([*NAMES, *SHAPES]):
            out[row, place] = word in seen
    return unit(out)


def test_an_encoder_that_knows_gets_it_right(shop):
    found = {one.name: one for one in run_benchmark(knowing, Exam.of(*shop))}
    assert found["encoder/category_2/zero_shot/accuracy"].value == 1.0
    assert found["encoder/category_2/probe/accuracy"].value == 1.0
    assert found["encoder/attribute_colour/probe/macro_f1"].value == 1.0
    assert found["encoder/attributes/probe/accuracy"].value == 1.0
    assert (
        found["encoder/facets/category_2/accuracy"].value
        == found["encoder/facets/colour/accuracy"].value
        == 1.0
    )
    assert found["encoder/facets/accuracy"].value == 1.0
    assert found["encoder/image_to_text/own/recall@10"].value == 1.0
    assert found["encoder/item_to_item/variants/recall@10"].value > 0.9
    assert found["encoder/image_to_text/own/recall@10"].split == "24 held-out items"
    for name, one in found.items():
        kind = name.removeprefix("encoder/")
        if "/chance/" not in name and kind not in (
            *("anisotropy", "effective_rank", "facets/accuracy", "facets/price/r2"),
        ):
            assert f"encoder/chance/{kind}" in found, name
        assert one.n > 0


def test_a_prefix_is_the_same_exam_on_shorter_vectors(shop):
    exam = Exam.of(*shop)
    found = {one.name: one.value for one in run_benchmark(knowing, exam, widths=(8, 14))}
    assert (
        found["encoder/width_14/image_to_text/own/recall@10"] == found["encoder/image_to_text/own/recall@10"]
    )
    only_colours = {one.name: one.value for one in run_benchmark(lambda c: unit(knowing(c)[:, :8]), exam)}
    names = {name for name in found if "/width_8/" in name}
    assert names == {name.replace("encoder/", "encoder/width_8/", 1) for name in only_colours}
    for name in names:
        assert found[name] == pytest.approx(only_colours[name.replace("width_8/", "")]), name
    short = Vectors.of(knowing, exam).prefix(8).pool["item"]
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)


def photos(folder):
    """A catalogue without a log: products judged in both parts, and one in part "test" only."""
    rows, images, queries, judgements = [], {}, [], []
    for item_id in range(6):
        picture = png(NAMES[item_id], "disc")
        images[content_hash(picture)] = picture
        rows.append(item_row(item_id, NAMES[item_id], "disc", picture))
        for number, (part, shape) in enumerate((("train", "square"), ("test", "ring"))):
            if item_id == 5 and part == "train":
                continue
            photo = png(NAMES[item_id], shape)
            images[content_hash(photo)] = photo
            queries.append({"query_id": 10 * item_id + number, "text": None, "image_id": content_hash(photo)})
            judgements.append(
                {"query_id": 10 * item_id + number, "item_id": item_id, "relevance": 1.0, "part": part}
            )
    queries.append({"query_id": 99, "text": "pink disc", "image_id": None})
    judgements.append({"query_id": 99, "item_id": 5, "relevance": 1.0, "part": "test"})
    judgements.append({"query_id": 99, "item_id": 1, "relevance": 0.5, "part": "test"})
    rows.append(item_row(6, "", "", None, title=None, category=[], attributes=[]))  # nothing to encode
    judgements.append({"query_id": 99, "item_id": 6, "relevance": 0.0, "part": "test"})
    return written(folder, rows, images, (), queries, judgements)


def test_without_a_log_the_sources_own_division_holds(tmp_path):
    dataset = photos(tmp_path / "dataset")
    bench = hold_out(dataset, tmp_path / "split")
    assert bench.pool_items.tolist() == [5] and bench.train_items.tolist() == [0, 1, 2, 3, 4]
    exam = Exam.of(dataset, bench)
    assert len(exam.candidates) == 7 and sorted(exam.kind) == ["image"] * 6 + ["text"]
    found = {one.name: one for one in run_benchmark(knowing, exam)}
    assert found["encoder/query_to_item/image/recall@1"].value == 1.0
    assert found["encoder/query_to_item/image/recall@1"].n == 6
    assert found["encoder/query_to_item/text/recall@1"].value == 1.0
    assert found["encoder/chance/query_to_item/image/recall@1"].value == pytest.approx(1 / 7)
    assert found["encoder/query_to_item/image/recall@1"].split == "test queries among 7 items"


@pytest.mark.real("grocery_store")
def test_grocery_store_is_held_out_by_its_photos(tmp_path):
    import_dataset("grocery_store", DATA / "grocery_store", tmp_path / "dataset")
    dataset = Dataset.open(open_artifact(tmp_path / "dataset", "dataset"))
    bench = hold_out(dataset, tmp_path / "split")
    assert len(bench.train_items) == 81 and len(bench.pool_items) == 0
    exam = Exam.of(dataset, bench)
    assert (len(exam.queries), len(exam.candidates), set(exam.kind)) == (2485, 81, {"image"})
    found = {one.name: one for one in run_benchmark(histogram, exam)}
    assert found["encoder/query_to_item/image/recall@1"].value == pytest.approx(0.074, abs=0.002)


def test_words_are_those_of_scikit_learn():
    texts = ["red shoe red", "blue shoe", "Blue. hat 42!", "red hat"]
    encode = TfIdf.fit([Content(image=None, text=text) for text in texts])
    other = TfidfVectorizer(token_pattern="[a-z0-9]+").fit(texts)
    asked = [*texts, "green hat", "nothing known"]
    mine = encode([Content(image=None, text=text) for text in asked])
    np.testing.assert_allclose(mine, other.transform(asked).toarray(), atol=1e-6)
    assert list(encode.column) == list(other.get_feature_names_out())


def test_colours_are_counted_wherever_they_are():
    left, right = (png("red", "disc", jitter=jitter) for jitter in (-2, 2))
    blue = png("blue", "disc")
    vectors = histogram(
        [Content(image=one) if one else Content(None, "red") for one in (left, right, blue, None)]
    )
    assert vectors[0] @ vectors[1] > 0.999 > vectors[0] @ vectors[2] and not vectors[3].any()
    assert (np.count_nonzero(vectors[:3], axis=1) == 2).all(), "a colour and white"
    # 12 x 4 x 4 cells of hue, saturation, value: white has none of the first two
    assert vectors[0].argmax() == 3


def test_model_free_rows_pass_the_same_exam(shop):
    exam = Exam.of(*shop)
    rows = {name: made() for name, made in model_free(exam.pool["item"], width=16).items()}
    found = {
        name: {one.name: one.value for one in run_benchmark(encode, exam)} for name, encode in rows.items()
    }
    assert found["tf_idf"]["encoder/text_to_item/own/recall@10"] == 1.0
    assert "encoder/image_to_item/own/recall@1" not in found["tf_idf"]
    assert "encoder/text_to_item/own/recall@1" not in found["colour_histogram"]
    assert found["colour_histogram"]["encoder/attribute_colour/probe/accuracy"] > 0.7
    assert found["colour_tf_idf"]["encoder/image_to_text/own/recall@10"] == pytest.approx(10 / 24)
    assert found["random"]["encoder/image_to_text/own/recall@1"] < 0.3
    assert set(rows) == {
        "random", "colour_histogram", "colour_thumbnail", "tf_idf", "colour_tf_idf", "histogram_tf_idf", "tf_idf_svd",
        "colour_tf_idf_svd",
    }  # fmt: skip
    assert (
        found["tf_idf_svd"]["encoder/facets/colour/accuracy"]
        > found["random"]["encoder/facets/colour/accuracy"]
    )
    assert rows["colour_tf_idf_svd"](exam.pool["item"]).shape == (24, 16)
    content = exam.pool["item"][:2]
    pair = both(thumbnail, rows["tf_idf"])(content)
    apart = [thumbnail(content), rows["tf_idf"](content)]
    assert pair[0] @ pair[1] == pytest.approx(np.mean([one[0] @ one[1] for one in apart]), abs=1e-6)
    assert (random_vectors(0)(content) == random_vectors(0)(content)).all()


def test_the_table_shows_mean_and_deviation_over_seeds(tmp_path):
    def file(name, value, n=10):
        write_measurements(tmp_path / name, [Measurement("encoder/a", value, n, "test")])
        return tmp_path / name

    write_measurements(tmp_path / "c.json", [Measurement("encoder/b", 0.5, 4, "test")])
    files = {"moon": [file("0.json", 0.1), file("1.json", 0.3)], "random": [tmp_path / "c.json"]}
    table = EncoderTable.read(files)
    cell = table.cell("moon", "encoder/a")
    assert (cell.mean, cell.sd, cell.seeds, cell.n) == (0.2, pytest.approx(np.std([0.1, 0.3], ddof=1)), 2, 10)
    assert table.cell("random", "encoder/b").sd is None and table.cell("random", "encoder/a") is None
    assert table.markdown({"encoder/a": "A", "encoder/b": "B"}).splitlines() == [
        "| encoder | A | B |",
        "|---|---|---|",
        "| moon | 0.200 ± 0.141 | – |",
        "| random | – | 0.500 |",
    ]
    assert '"mean": 0.5' in table.to_json() and '"encoder/a"' in table.to_json()
    files["moon"].append(file("2.json", 0.3, n=11))
    with pytest.raises(ValueError, match=r"moon: expected encoder/a in each of 3 seeds .* n \[10, 11\]"):
        EncoderTable.read(files).cell("moon", "encoder/a")
    files["moon"][2] = tmp_path / "c.json"
    with pytest.raises(ValueError, match="found it in 2"):
        EncoderTable.read(files).cell("moon", "encoder/a")


def test_a_catalogue_alone_is_held_out_by_products(tmp_path):
    """Neither a log nor judgements: whole products, so that encoders can be compared."""
    dataset = a_shop(tmp_path / "dataset")
    alone = written_without_log(tmp_path / "alone", dataset)
    bench = hold_out(alone, tmp_path / "split", seed=3, items=24)
    assert len(bench.pool_items) == 24 and not set(bench.pool_items) & set(bench.train_items)
    spu = dict(zip(alone.items["item_id"].to_pylist(), alone.items["spu"].to_pylist(), strict=True))
    assert not {spu[item] for item in bench.pool_items} & {spu[item] for item in bench.train_items}


def test_nothing_to_compare_encoders_by_is_said_before_anything_is_trained(tmp_path):
    rows = [item_row(n, "red", "disc", None) for n in range(30)]
    written(tmp_path / "dataset", rows, {})
    with pytest.raises(
        ComparisonError, match="not measured: expected at least 10 items .* found 0 such items of 30"
    ):
        compare(tmp_path / "dataset", tmp_path / "out", size("nano"), {}, {})
    assert not (tmp_path / "out" / "split").exists()


def written_without_log(folder, dataset):
    """The same catalogue, without events and judgements."""
    images = dict(zip(*(dataset.images[name].to_pylist() for name in ("image_id", "bytes")), strict=True))
    return written(folder, dataset.items.to_pylist(), images)
