"""One bad item in a thousand costs itself when the catalogue is embedded; mended, it gets its vector.

Run: pytest tests/test_embedding_goes_on.py
"""

import shutil
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoder_world import TINY, shop
from safetensors.numpy import load_file

from dataset.contracts import DataError
from dataset.split import Split, split_dataset
from dataset.tables import Dataset
from encoder.embed import embed
from encoder.encode import Encoder
from encoder.train import train_encoder
from feature_repo import dead_letters
from feature_repo.create import create_store
from feature_repo.store import materialize
from moon import journey, refused, stages
from run.artifacts import open_artifact, write_artifact
from run.folder import Run

COUNT, PICTURE, RAISES, NAN, LONG, QUERY = 1000, 501, 502, 503, 504, 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A shop whose dataset an older release wrote: one picture is cut short, and some titles are special."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("thousand")
    dataset, split = shop(folder, items=COUNT)
    train_encoder(dataset, split, TINY, folder / "encoder", budget=0.001)
    (folder / "dataset").rename(folder / "sound")
    sound = open_artifact(folder / "sound", "dataset")
    with write_artifact(folder / "dataset", "dataset", sound.config) as out:
        for name in ("items", "users", "events", "queries", "judgements", "quarantine", "images"):
            shutil.copy2(sound.file(f"{name}.parquet"), out)
        rows = dataset.items.to_pylist()
        titles = {RAISES: "boom", NAN: "nan", LONG: "long " * 200_000}
        rows = [{**row, "title": titles.get(row["item_id"], row["title"])} for row in rows]
        rows[PICTURE]["image_id"] = "f" * 16
        pq.write_table(pa.Table.from_pylist(rows, dataset.items.schema), out / "items.parquet")
        images = dataset.images.to_pylist()
        images.append({**images[0], "image_id": "f" * 16, "bytes": images[0]["bytes"][:70]})
        pq.write_table(pa.Table.from_pylist(images, dataset.images.schema), out / "images.parquet")
        queries = dataset.queries.to_pylist()
        queries[QUERY]["text"] = "boom"
        pq.write_table(pa.Table.from_pylist(queries, dataset.queries.schema), out / "queries.parquet")
    bad = Dataset.open(open_artifact(folder / "dataset", "dataset"))
    create_store(folder / "store", bad, Split.open(split_dataset(bad, folder / "split", "time")))
    return Run(folder, "shapes", "nano", 0, "embedded")


def fails_on(monkeypatch, words):
    """The encoder raises on these titles, and gives NaN for one."""
    encode = Encoder.encode

    def failing(self, contents, pixels=None):
        if any(one.text in words for one in contents):
            raise RuntimeError("out of luck")
        vectors = encode(self, contents, pixels)
        vectors[[one.text == "nan" for one in contents]] = np.nan
        return vectors

    monkeypatch.setattr(Encoder, "encode", failing)


def vectors_of(artifact, table="items"):
    found = load_file(artifact.file(f"{table}.safetensors"))
    return found["query_id" if table == "queries" else "item_id"].tolist(), found["vector"]


def test_the_others_are_embedded_and_the_mended_ones_follow(run, monkeypatch, capsys):
    encoder, split = stages.open_encoder(run), stages.open_split(run)
    sound = Dataset.open(open_artifact(run.folder / "sound", "dataset"))
    ids, wanted = vectors_of(embed(encoder, sound, split.known_from, run.folder / "whole"))
    assert ids == list(range(COUNT))
    with monkeypatch.context() as poison:
        fails_on(poison, {"boom"})
        stages.embed(run)
    artifact = open_artifact(run.folder / "embedding", "embedding")
    found, vectors = vectors_of(artifact)
    bad = {PICTURE, RAISES, NAN}
    assert found == [one for one in range(COUNT) if one not in bad]
    same = [place for place, one in enumerate(found) if one != LONG]
    np.testing.assert_allclose(vectors[same], wanted[[found[place] for place in same]], atol=2e-5)
    assert np.isclose(np.linalg.norm(vectors[found.index(LONG)]), 1, atol=1e-5)
    assert vectors_of(artifact, "queries")[0] == [one for one in range(8) if one != QUERY]
    letters = {one.id: one for one in dead_letters.letters(run.folder / "store")}
    reasons = {name: letter.reason for name, letter in letters.items()}
    assert set(reasons) == {f"embeddings/items-{one}" for one in bad} | {f"embeddings/queries-{QUERY}"}
    assert "do not decode" in reasons[f"embeddings/items-{PICTURE}"]
    assert "RuntimeError: out of luck" in reasons[f"embeddings/items-{RAISES}"]
    assert reasons[f"embeddings/items-{NAN}"] == "its vector is not finite"
    assert letters[f"embeddings/items-{RAISES}"].record["title"] == "boom"
    assert "997 items embedded, 0 kept, 3 set aside" in capsys.readouterr().err
    store = run.folder / "store"
    reports = materialize(store, datetime.fromisoformat("2026-01-01T00:00:00+00:00"), ["item_embedding_v1"])
    assert reports["item_embedding_v1"].written == COUNT - 3

    monkeypatch.setattr(journey, "load", lambda folder: run)
    monkeypatch.setattr(journey, "do", lambda run, verb: getattr(stages, verb)(run))
    with pytest.raises(
        refused.StillRefused, match="do not decode"
    ):  # the encoder is mended, the picture is not
        refused.retry(run.folder, f"embeddings/items-{PICTURE}")
    again = open_artifact(run.folder / "embedding", "embedding")
    assert vectors_of(again)[0] == [one for one in range(COUNT) if one != PICTURE]
    assert again.config["items_unchanged"] == COUNT - 3
    assert dead_letters.counts(store) == {"embeddings": 1}


def test_an_encoder_is_trained_on_the_others(run, tmp_path, caplog):
    made = train_encoder(
        stages.open_dataset(run), stages.open_split(run), TINY, tmp_path / "encoder", budget=0.001
    )
    assert made.config["losses"] and f"image {'f' * 16}: expected a picture" in caplog.text


def test_an_encoder_that_fails_on_everything_is_no_items_fault(run, monkeypatch, tmp_path):
    monkeypatch.setattr(Encoder, "encode", lambda *_: 1 / 0)
    sound = Dataset.open(open_artifact(run.folder / "sound", "dataset"))
    with pytest.raises(
        DataError, match="none of 1000 contents can be encoded .item_id .0, 1, 2.*ZeroDivision"
    ):
        embed(stages.open_encoder(run), sound, stages.open_split(run).known_from, tmp_path / "none")
