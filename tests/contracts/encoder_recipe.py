"""What every encoder recipe keeps. A new one inherits it by a line:

class TestDual(EncoderRecipeContract): recipe = staticmethod(dual)

Each is trained once, for seconds, on a shop whose pictures are a shape in a colour and whose words name both. The
planted truth: a colour's name finds pictures of that colour, and learns it with half of a nano model's steps.
"""

import numpy as np
import pyarrow as pa
import pytest
import torch
from encoder_world import COLOURS, SHAPES, TINY, png, shop
from ranker_world import auc

from dataset.contracts import IMAGES, JUDGEMENTS, QUARANTINE, QUERIES, DataError, Tables, content_hash
from dataset.split import Split, split_dataset
from dataset.tables import Dataset, write_dataset
from encoder.content import Content, item_content
from encoder.encode import Encoder, save_encoder, width_of
from encoder.train import train_encoder
from run.artifacts import open_artifact

STEP = 0.02  # a budget of one step a stage


def opened(artifact):
    return Encoder.open(artifact)


def photographed(folder):
    """The shop with a judged photo of every item, so that every kind of pair and photo is there to learn from."""
    plain, _ = shop(folder / "plain", items=96)  # enough that colours repeat: a chain tells what repeats
    draw = np.random.default_rng(5)
    images = {row["image_id"]: row for row in plain.images.to_pylist()}
    queries, judged = plain.queries.to_pylist(), []
    for row in plain.items.to_pylist():
        photo = png(*row["title"].split(), px=40, jitter=int(draw.integers(-2, 3)))
        name = content_hash(photo)
        images[name] = {"image_id": name, "bytes": photo, "width": 40, "height": 40}
        queries.append({"query_id": 100 + row["item_id"], "text": None, "image_id": name})
        judged.append(
            {"query_id": 100 + row["item_id"], "item_id": row["item_id"], "relevance": 1.0, "part": "train"}
        )
    tables = Tables(
        items=plain.items,
        images=pa.Table.from_pylist(list(images.values()), IMAGES),
        users=plain.users,
        events=plain.events,
        queries=pa.Table.from_pylist(queries, QUERIES),
        judgements=pa.Table.from_pylist(judged, JUDGEMENTS),
        quarantine=QUARANTINE.empty_table(),
    )
    write_dataset(folder / "dataset", tables, {"name": "shapes", "source": "test"})
    dataset = Dataset.open(open_artifact(folder / "dataset", "dataset"))
    split_dataset(dataset, folder / "split", "time")
    return dataset, Split.open(open_artifact(folder / "split", "split"))


@pytest.fixture(scope="session")
def photo_shop(tmp_path_factory):
    return photographed(tmp_path_factory.mktemp("photo_shop"))


@pytest.fixture(scope="session")
def contents(photo_shop):
    """Pictures with words, alone, words alone, short and long."""
    dataset, _ = photo_shop
    both = [item_content(row, dataset.image_bytes(row["image_id"])) for row in dataset.items.to_pylist()[:12]]
    words = [
        "red",
        "blue disc",
        "a very long title of many words about a yellow triangle and a black ring",
        "?",
    ]
    return [*both, *(Content(one.image, None) for one in both[:3]), *(Content(None, text) for text in words)]


class EncoderRecipeContract:
    recipe = None
    budget = 0.4  # of the schedule, enough to learn the planted truth

    @pytest.fixture(scope="class", autouse=True)
    def one_thread(self):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    @pytest.fixture(scope="class")
    def checkpoint(self):
        """The folder of weights that training starts from, for a recipe that needs one."""
        return None

    @pytest.fixture(scope="class")
    def trained(self, photo_shop, checkpoint, tmp_path_factory):
        out = tmp_path_factory.mktemp("recipe") / "encoder"
        recipe = type(self).recipe()
        return train_encoder(*photo_shop, TINY, out, recipe=recipe, checkpoint=checkpoint, budget=self.budget)

    @pytest.fixture(scope="class")
    def encoder(self, trained):
        return opened(trained)

    @pytest.fixture(scope="class")
    def vectors(self, encoder, contents):
        return encoder.encode(contents)

    def test_every_stage_has_something_to_learn_and_does(self, trained):
        recipe = type(self).recipe()
        assert trained.config["recipe"] == recipe.name
        names = [f"{number}.{stage.name}" for number, stage in enumerate(recipe.stages)]
        assert list(trained.config["steps"]) == names and all(trained.config["steps"].values())
        for curve in trained.config["losses"].values():
            assert np.isfinite(curve["loss"]).all()

    def test_a_colour_s_name_finds_pictures_of_the_colour(self, encoder):
        shown = [(colour, shape) for colour in COLOURS for shape in SHAPES]
        pictures = encoder.encode([Content(png(*one, px=48, jitter=1), None) for one in shown])
        names = encoder.encode([Content(None, colour) for colour in COLOURS])
        found = [
            auc([one == colour for one, _ in shown], pictures @ name)
            for colour, name in zip(COLOURS, names, strict=True)
        ]
        assert np.mean(found) > 0.85

    def test_a_vector_of_unit_norm_for_whatever_parts_there_are(self, trained, encoder, vectors, contents):
        assert (vectors.dtype, vectors.shape) == (np.float32, (len(contents), encoder.width))
        assert width_of(trained) == encoder.width
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        both, image = vectors[:3], vectors[12:15]  # the same pictures with and without words
        assert (np.abs(both - image).max(axis=1) > 1e-3).all()

    def test_a_batch_is_its_contents_one_by_one(self, encoder, vectors, contents):
        """Short beside long, too: padding changes nothing."""
        alone = np.concatenate([encoder.encode([one]) for one in contents])
        np.testing.assert_allclose(vectors, alone, atol=1e-5)

    def test_the_order_of_a_batch_changes_nothing(self, encoder, vectors, contents):
        order = np.random.default_rng(0).permutation(len(contents))
        mixed = encoder.encode([contents[place] for place in order])
        np.testing.assert_allclose(mixed, vectors[order], atol=1e-5)

    def test_nothing_to_encode_is_no_vector_and_what_has_no_content_is_named(self, encoder):
        assert encoder.encode([]).shape == (0, encoder.width)
        with pytest.raises(DataError, match=r"neither in 2, first \[1, 2\]"):
            encoder.encode([Content(None, "red"), Content(None, None), Content(None, " ")])
        with pytest.raises(DataError, match="expected a picture"):
            encoder.encode([Content(b"junk", "red")])

    def test_words_and_pictures_never_seen_have_a_vector(self, encoder):
        noise = png("red", "disc", px=9)
        unseen = [Content(None, "zyxwv 裙子 \U0001f457"), Content(None, "0" * 500), Content(noise, "裙子")]
        found = encoder.encode(unseen)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)

    def test_saved_and_opened_it_encodes_the_same(self, trained, encoder, vectors, contents, tmp_path):
        np.testing.assert_array_equal(opened(trained).encode(contents), vectors)
        save_encoder(encoder.model, encoder.tokenizer, tmp_path)
        tensors = sorted(path.name for path in tmp_path.glob("*.safetensors"))
        assert tensors == sorted(path.name for path in trained.path.glob("*.safetensors"))
        for name in tensors:
            assert (tmp_path / name).read_bytes() == trained.file(name).read_bytes(), name

    def test_equal_seeds_give_equal_weights_and_others_do_not(self, photo_shop, checkpoint, tmp_path):
        recipe, more = type(self).recipe(), {"checkpoint": checkpoint, "budget": STEP}
        first, second, other = (
            train_encoder(*photo_shop, TINY, tmp_path / name, seed=seed, recipe=recipe, **more)
            for name, seed in (("first", 0), ("second", 0), ("other", 1))
        )
        tensors = [path.name for path in first.path.iterdir() if path.suffix == ".safetensors"]
        for name in tensors:
            assert first.file(name).read_bytes() == second.file(name).read_bytes(), name
        assert any(first.file(name).read_bytes() != other.file(name).read_bytes() for name in tensors)
