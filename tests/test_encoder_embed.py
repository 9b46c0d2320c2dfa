"""Bulk embedding can be interrupted, shared out and repeated: the vectors stay the same bits."""

import shutil
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from encoder_world import START, TINY, item_row, png, shop
from safetensors.numpy import load_file

from dataset.contracts import IMAGES, ITEMS, DataError, content_hash
from encoder import embed as embedding
from encoder.chunks import Pictures, content_digest
from encoder.content import Content, item_content
from encoder.embed import embed, merge_shards
from encoder.encode import Encoder
from encoder.pictures.cache import Decoded
from encoder.train import train_encoder
from feature_repo.vectors import Vectors
from run.artifacts import ArtifactError, open_artifact
from run.resume import Checkpoints
from run.shards import ShardError, parse_shard

AS_OF = START + timedelta(days=9)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    dataset, split = world
    return train_encoder(dataset, split, TINY, tmp_path_factory.mktemp("encoder") / "encoder", budget=0.02)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK", 10)  # 48 items and 8 queries: 5 chunks and 1


@pytest.fixture()
def encoded(monkeypatch):
    """Contents handed to the encoder, call by call."""
    calls = []
    encode = Encoder.encode

    def counted(self, contents, pixels=None):
        calls.append(list(contents))
        return encode(self, contents, pixels)

    monkeypatch.setattr(Encoder, "encode", counted)
    return calls


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


class Changed:
    """A dataset with other items."""

    def __init__(self, dataset, rows):
        self.artifact, self.queries = dataset.artifact, dataset.queries
        self.items = pa.Table.from_pylist(rows, ITEMS)


def test_chunks_of_another_run_are_not_taken_for_this_one(world, trained, tmp_path, monkeypatch, encoded):
    dataset, _ = world
    save = Checkpoints.save

    @contextmanager
    def killed(self, name, state):
        with save(self, name, state) as folder:
            yield folder
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        embed(trained, dataset, AS_OF, tmp_path / "out")
    monkeypatch.setattr(Checkpoints, "save", save)
    encoded.clear()
    embed(trained, dataset, AS_OF + timedelta(days=1), tmp_path / "out")
    assert len(encoded) == 6


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_merged_shards_are_the_whole_embedding_to_the_byte(world, trained, tmp_path, count):
    dataset, _ = world
    whole = embed(trained, dataset, AS_OF, tmp_path / "whole")
    shards = [
        embed(trained, dataset, AS_OF, tmp_path / f"shard-{number}", shard=(number, count))
        for number in range(1, count + 1)
    ]
    if count > 1:
        assert {shard.kind for shard in shards} == {"embedding-shard"}
        parents = {"dataset": dataset.artifact, "encoder": trained}
        merged = merge_shards(shards[::-1], parents, tmp_path / "merged")
        assert files(merged.path) == files(whole.path) and merged.id == whole.id
        assert len(Vectors.open(merged).ids) == 48
    else:
        assert shards[0].id == whole.id


def test_shards_that_do_not_make_a_whole_are_refused(world, trained, tmp_path):
    dataset, _ = world
    parents = {"dataset": dataset.artifact, "encoder": trained}
    first, second = (
        embed(trained, dataset, AS_OF, tmp_path / f"shard-{number}", shard=(number, 2)) for number in (1, 2)
    )
    later = embed(trained, dataset, AS_OF + timedelta(days=1), tmp_path / "later", shard=(2, 2))
    with pytest.raises(ShardError, match="every shard of 2 once, found 1/2: missing 2/2"):
        merge_shards([first], parents, tmp_path / "out")
    with pytest.raises(ShardError, match="found 1/2, 1/2: missing 2/2, surplus 1/2"):
        merge_shards([first, first], parents, tmp_path / "out")
    with pytest.raises(ShardError, match="found none"):
        merge_shards([], parents, tmp_path / "out")
    with pytest.raises(DataError, match="differ in as_of"):
        merge_shards([first, later], parents, tmp_path / "out")
    with pytest.raises(ArtifactError, match="made from encoder"):
        merge_shards([first, second], {**parents, "encoder": dataset.artifact}, tmp_path / "out")
    with pytest.raises(ArtifactError, match="expected parents"):
        merge_shards([first, second], {"encoder": trained}, tmp_path / "out")
    with pytest.raises(ArtifactError, match="expected a embedding artifact"):
        open_artifact(first.path, "embedding")


def test_unchanged_contents_keep_their_vector_and_changed_ones_get_a_new_one(
    world, trained, tmp_path, encoded
):
    dataset, _ = world
    first = embed(trained, dataset, AS_OF, tmp_path / "first")
    assert (first.config["items_unchanged"], first.config["queries_unchanged"]) == (0, 0)
    rows = dataset.items.to_pylist()
    rows[3] = {**rows[3], "title": "purple ring"}
    rows[20] = {**rows[20], "image_id": rows[21]["image_id"]}
    new = item_row(500, "pink", "cross", None, title="a new one")
    gone = rows.pop(40)["item_id"]
    encoded.clear()
    second = embed(trained, Changed(dataset, [*rows, new]), AS_OF, tmp_path / "second", previous=first)
    fresh = [content for call in encoded for content in call]
    assert {content.text for content in fresh} == {"purple ring", rows[20]["title"], "a new one"}
    assert second.config["items_unchanged"] == 45 and second.config["queries_unchanged"] == 8
    assert second.parents["previous"] == first.id
    before, after = (load_file(a.file("items.safetensors")) for a in (first, second))
    assert after["item_id"].tolist() == sorted({*before["item_id"].tolist(), 500} - {gone})
    old = {item: vector for item, vector in zip(before["item_id"].tolist(), before["vector"], strict=True)}
    for item, vector in zip(after["item_id"].tolist(), after["vector"], strict=True):
        if item != 500:
            assert np.array_equal(vector, old[item]) == (item not in (3, 20)), item
    row = next(row for row in rows if row["item_id"] == 3)
    alone = Encoder.open(trained).encode([item_content(row, dataset.image_bytes(row["image_id"]))])[0]
    np.testing.assert_allclose(after["vector"][after["item_id"].tolist().index(3)], alone, atol=1e-5)


def test_equal_contents_of_a_chunk_are_encoded_once(world, trained, tmp_path, encoded):
    dataset, _ = world
    row = dataset.items.to_pylist()[0]
    copies = Changed(dataset, [{**row, "item_id": number, "external_id": str(number)} for number in range(9)])
    artifact = embed(trained, copies, AS_OF, tmp_path / "copies")
    assert [len(call) for call in encoded] == [1, 8]
    assert len(np.unique(load_file(artifact.file("items.safetensors"))["vector"], axis=0)) == 1


def test_an_embedding_of_another_encoder_is_no_previous_one(world, trained, tmp_path):
    dataset, split = world
    other = train_encoder(dataset, split, TINY, tmp_path / "other", budget=0.02, seed=1)
    previous = embed(other, dataset, AS_OF, tmp_path / "previous")
    with pytest.raises(ArtifactError, match="made from encoder"):
        embed(trained, dataset, AS_OF, tmp_path / "out", previous=previous)
    assert not (tmp_path / "out.partial").exists()


def test_an_embedding_without_hashes_is_no_previous_one(world, trained, tmp_path):
    dataset, _ = world
    first = embed(trained, dataset, AS_OF, tmp_path / "first")
    first.file("items_content.safetensors").unlink()
    with pytest.raises(ArtifactError, match="what changed is unknown"):
        embed(trained, dataset, AS_OF, tmp_path / "second", previous=first)


@pytest.mark.parametrize("text", ["3/2", "0/2", "1/0", "1", "a/b", "-1/2", "1/2/3", ""])
def test_a_shard_that_does_not_exist_is_refused(text):
    with pytest.raises(ShardError, match="shard"):
        parse_shard(text)


def test_a_shard_is_a_number_and_how_many(world, trained, tmp_path):
    assert parse_shard(" 2/4") == (2, 4)
    with pytest.raises(ShardError, match="found 3/2"):
        embed(trained, world[0], AS_OF, tmp_path / "out", shard=(3, 2))


def test_pictures_are_read_from_disk_and_never_all_at_once(world, trained, tmp_path):
    """``dataset.images`` is every picture in memory; bulk embedding must not ask for it."""
    dataset, _ = world

    class Blind(Changed):
        @property
        def images(self):
            raise AssertionError("all pictures at once")

    embed(trained, Blind(dataset, dataset.items.to_pylist()), AS_OF, tmp_path / "out")


def test_pictures_by_id_in_the_order_asked(tmp_path):
    bytes_of = {content_hash(png(c, "disc")): png(c, "disc") for c in ("red", "blue", "green")}
    rows = [{"image_id": k, "bytes": v, "width": 32, "height": 32} for k, v in bytes_of.items()]
    pa.parquet.write_table(pa.Table.from_pylist(rows, IMAGES), tmp_path / "images.parquet", row_group_size=2)
    pictures = Pictures(tmp_path / "images.parquet", tmp_path / "copy.arrow")
    ids = [*bytes_of, None, "unknown", next(iter(bytes_of))]
    assert pictures.read(ids) == ([bytes_of.get(key) for key in ids], [None] * len(ids))
    decoded = Decoded([ids[2], ids[0]], np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3))
    _, pixels = Pictures(tmp_path / "images.parquet", tmp_path / "copy.arrow", decoded).read(ids)
    assert [one is not None for one in pixels] == [True, False, True, False, False, True]
    np.testing.assert_array_equal(np.stack([pixels[2], pixels[0]]), decoded.pixels)


def test_pictures_that_training_decoded_are_not_decoded_again(trained, world, tmp_path, monkeypatch):
    dataset, _ = world
    again = embed(trained, dataset, AS_OF, tmp_path / "again")
    monkeypatch.setattr("encoder.encode.decode_image", lambda *_: 1 / 0)
    kept = embed(trained, dataset, AS_OF, tmp_path / "kept")
    assert kept.id == again.id
    shutil.rmtree(dataset.artifact.path.with_name(f"{dataset.artifact.path.name}.pixels_{TINY.image_px}"))
    with pytest.raises(DataError, match="none of 10 contents can be encoded.*ZeroDivisionError"):
        embed(trained, dataset, AS_OF, tmp_path / "new")


def test_a_digest_tells_contents_apart_field_by_field():
    same = Content(b"picture", "ab", "c", "d", "e")
    others = [
        Content(b"picturf", "ab", "c", "d", "e"), Content(None, "ab", "c", "d", "e"),
        Content(b"picture", "a", "bc", "d", "e"), Content(b"picture", "ab", "c", "d", None),
        Content(b"picture", "ab", "c", "d", ""), Content(b"picture", "ab", "c", "e", "d"),
    ]  # fmt: skip
    assert content_digest(same) == content_digest(Content(b"picture", "ab", "c", "d", "e"))
    assert len({content_digest(content) for content in [same, *others]}) == 7
    assert content_digest(Content(None, "\ud800")) != content_digest(Content(None, "?"))
