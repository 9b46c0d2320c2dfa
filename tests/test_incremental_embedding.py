"""Embedding again encodes what changed and nothing else; another encoder encodes all.

Run: pytest tests/test_incremental_embedding.py
"""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch
from encoder_world import START, TINY, shop
from safetensors.numpy import load_file

from dataset.contracts import ITEMS, DataError, Tables
from dataset.split import Split, split_dataset
from dataset.tables import Dataset, write_dataset
from encoder.encode import Encoder
from encoder.train import train_encoder
from feature_repo.create import create_store
from moon import stages
from run import generations
from run.artifacts import open_artifact
from run.folder import Run

CHANGED = {3: "a purple ring", 20: "something blue", 41: "the last of them"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    dataset, split = shop(tmp_path)
    train_encoder(dataset, split, TINY, tmp_path / "encoder", budget=0.02)
    create_store(tmp_path / "store", dataset, split)
    return Run(tmp_path, "shapes", "nano", 0, "embedded")


@pytest.fixture
def encoded(monkeypatch):
    """Texts of the contents handed to the encoder."""
    texts, encode = [], Encoder.encode

    def counted(self, contents, pixels=None):
        texts.extend(content.text for content in contents)
        return encode(self, contents, pixels)

    monkeypatch.setattr(Encoder, "encode", counted)
    return texts


def change_three(run):
    """The same shop, three of its items with another title, cut and stored again."""
    dataset = Dataset.open(open_artifact(run.folder / "dataset", "dataset"))
    rows = dataset.items.to_pylist()
    rows = [{**row, "title": CHANGED.get(row["item_id"], row["title"])} for row in rows]
    names = ("images", "users", "events", "queries", "judgements", "quarantine")
    others = {name: getattr(dataset, name) for name in names}
    items = pa.Table.from_pylist(rows, ITEMS)
    dataset = Dataset.open(
        write_dataset(run.folder / "dataset", Tables(items=items, **others), dataset.artifact.config)
    )
    create_store(
        run.folder / "store", dataset, Split.open(split_dataset(dataset, run.folder / "split", "time"))
    )


def embedding_of(run):
    return open_artifact(run.folder / "embedding", "embedding")


def vectors(artifact):
    table = load_file(artifact.file("items.safetensors"))
    return dict(zip(table["item_id"].tolist(), table["vector"], strict=True))


def test_three_changed_items_are_encoded_and_no_other(run, encoded, capsys):
    stages.embed(run)
    first, before = embedding_of(run), vectors(embedding_of(run))
    assert (
        len(encoded) > 40
        and "48 items embedded, 0 kept; 8 queries embedded, 0 kept" in capsys.readouterr().err
    )
    encoded.clear()
    stages.embed(run)
    assert not encoded and embedding_of(run).id == first.id
    assert "every vector is there already" in capsys.readouterr().err
    change_three(run)
    stages.embed(run)
    assert sorted(encoded) == sorted(CHANGED.values())
    assert "3 items embedded, 45 kept; 0 queries embedded, 8 kept" in capsys.readouterr().err
    after = vectors(embedding_of(run))
    assert {item for item in after if not np.array_equal(after[item], before[item])} == set(CHANGED)
    assert embedding_of(run).parents["dataset"] == open_artifact(run.folder / "dataset", "dataset").id


def test_another_encoder_encodes_everything(run, encoded):
    stages.embed(run)
    dataset, split = (
        Dataset.open(open_artifact(run.folder / "dataset", "dataset")),
        Split.open(open_artifact(run.folder / "split", "split")),
    )
    train_encoder(dataset, split, TINY, run.folder / "encoder", budget=0.02, seed=1)
    encoded.clear()
    stages.embed(run)
    artifact = embedding_of(run)
    assert (
        len(encoded) > 40 and artifact.config["items_unchanged"] == 0 and "previous" not in artifact.parents
    )


def test_shards_keep_what_did_not_change_as_well(run, encoded):
    stages.embed(run)
    change_three(run)
    encoded.clear()
    assert [stages.embed_shard(run, f"{number}/2") for number in (2, 1)] == [1, 0]
    stages.embed(run)
    assert sorted(encoded) == sorted(CHANGED.values()) and embedding_of(run).config["items_unchanged"] == 45


def test_the_generation_that_serves_remembers_what_a_former_encoder_embedded(run, encoded, monkeypatch):
    stages.embed(run)
    serving = run.folder / "generations" / "1"
    (run.folder / "generations").mkdir()
    serving.mkdir()
    (run.folder / "embedding").rename(serving / "embedding")
    monkeypatch.setattr(generations, "current", lambda folder: generations.Current(1, (), ""))
    change_three(run)
    encoded.clear()
    stages.embed(run)
    assert sorted(encoded) == sorted(CHANGED.values())


def test_an_encoder_that_knows_more_than_the_split_allows_is_refused(run, monkeypatch):
    monkeypatch.setattr(Split, "known_from", START + timedelta(minutes=30))
    with pytest.raises(DataError, match="the encoder learned from events until .* Run 'moon encoder train'"):
        stages.embed(run)
    assert not (run.folder / "embedding").exists()
