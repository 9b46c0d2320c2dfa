"""Decoded pictures kept beside a dataset: the same pixels, made once, made again when the dataset changes."""

import numpy as np
import pyarrow as pa
import pytest
from encoder_world import shop

from dataset.contracts import DataError
from encoder.examples.corpus import catalogue_texts, read_corpus
from encoder.pictures import cache as module
from encoder.pictures.cache import decoded
from encoder.pictures.decode import decode_images
from encoder.tokenizer import train_tokenizer

PX = 16


@pytest.fixture
def dataset(tmp_path):
    return shop(tmp_path)[0]


def plain(dataset):
    ids = dataset.images["image_id"].to_pylist()
    return decode_images(dict(zip(ids, dataset.images["bytes"].to_pylist(), strict=True)), ids, PX)[1]


def refuse(*_):
    raise AssertionError("decoded again")


def test_what_is_kept_is_what_is_decoded_and_is_decoded_once(dataset, monkeypatch):
    first = decoded(dataset, PX)
    monkeypatch.setattr(module, "decode_images", refuse)
    again = decoded(dataset, PX)
    assert list(again.image_ids) == dataset.images["image_id"].to_pylist()
    np.testing.assert_array_equal(first.pixels, plain(dataset))
    np.testing.assert_array_equal(again.pixels, plain(dataset))


def test_damaged_pictures_are_decoded_again(dataset, monkeypatch):
    decoded(dataset, PX)
    kept = dataset.artifact.path.with_name(dataset.artifact.path.name + f".pixels_{PX}") / "pixels.npy"
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    np.testing.assert_array_equal(decoded(dataset, PX).pixels, plain(dataset))
    (kept.parent / "manifest.json").unlink()
    monkeypatch.setattr(module, "decode_images", refuse)
    with pytest.raises(AssertionError, match="decoded again"):
        decoded(dataset, PX)


def test_of_another_dataset_only_what_is_new_is_decoded(dataset, monkeypatch):
    everything = plain(dataset)
    images = dataset.images
    object.__setattr__(dataset, "images", images.slice(0, len(images) - 3))
    decoded(dataset, PX)
    object.__setattr__(dataset, "images", images.take(np.arange(len(images))[::-1]))
    object.__setattr__(dataset.artifact, "id", "another dataset")
    assert module.kept(dataset, PX) is None
    asked = []

    def watched(contents, image_ids, px):
        asked.extend(image_ids)
        return decode_images(contents, image_ids, px)

    monkeypatch.setattr(module, "decode_images", watched)
    np.testing.assert_array_equal(decoded(dataset, PX).pixels, everything[::-1])
    assert sorted(asked) == sorted(images["image_id"].to_pylist()[-3:])


def test_a_picture_that_does_not_decode_costs_itself(dataset, caplog):
    images = dataset.images.to_pylist()
    images[1]["bytes"] = images[1]["bytes"][:70]
    wanted = np.delete(plain(dataset), 1, axis=0)
    object.__setattr__(dataset, "images", pa.Table.from_pylist(images, dataset.images.schema))
    found = decoded(dataset, PX)
    assert list(found.image_ids) == [one["image_id"] for one in images if one is not images[1]]
    np.testing.assert_array_equal(found.pixels, wanted)
    assert (
        f"1 of {len(images)} pictures do not decode (image {images[1]['image_id']}: expected" in caplog.text
    )
    caplog.clear()
    np.testing.assert_array_equal(decoded(dataset, PX).pixels, wanted)
    assert not caplog.text, "it is not tried again"

    ids = dataset.items["item_id"].to_numpy()
    tokenizer = train_tokenizer(catalogue_texts(dataset, ids))
    for kept in (None, found):
        corpus = read_corpus(dataset, tokenizer, 16, PX, ids, regions=True, decoded=kept)
        pictured = [one["image_id"] not in (None, images[1]["image_id"]) for one in corpus.records]
        assert corpus.items.has_image.tolist() == pictured and not all(pictured)
        assert corpus.items.has_text.all()


def test_pictures_of_which_none_decodes_are_nobodys_fault(dataset):
    with pytest.raises(DataError, match="2 of 2 pictures do not decode .image a: .*Run 'moon dataset' again"):
        decode_images({"a": b"junk", "b": b"junk"}, ["a", "b"], PX)
    assert decode_images({}, [], PX)[0] == [] == decode_images({"a": b"junk"}, ["a"], PX)[0]


def test_a_corpus_reads_the_same_from_both(dataset):
    ids = dataset.items["item_id"].to_numpy()[::2]
    tokenizer = train_tokenizer(catalogue_texts(dataset, ids))
    alone = read_corpus(dataset, tokenizer, 16, PX, ids, regions=True)
    kept = read_corpus(dataset, tokenizer, 16, PX, ids, regions=True, decoded=decoded(dataset, PX))
    for one, other in ((alone.items, kept.items), (alone.queries, kept.queries)):
        for left, right in zip(one.image.tolist(), other.image.tolist(), strict=True):
            assert len(alone.pictures(left)) == len(kept.pictures(right))
            for a, b in zip(alone.pictures(left), kept.pictures(right), strict=True):
                np.testing.assert_array_equal(a, b)
