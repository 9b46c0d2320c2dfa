"""The service starts on the artifacts of one run: mixed, missing or damaged ones are refused by name."""

import json
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from fake_shop import (
    ITEM_IDS,
    NOW,
    WIDTH,
    FakeEncoder,
    FakeRanker,
    FakeReader,
    items_table,
    paths_of,
    picture,
    vectors_of,
)
from safetensors.numpy import save_file
from test_cooccurrence import log_of

from retrieval.cooccurrence import build_cooccurrence
from retrieval.index import ItemIndex
from retrieval.retriever import open_retrieval
from run.artifacts import ArtifactError, open_artifact, require_agreement, write_artifact
from serving import opening
from serving.recommend import Recommender
from serving.settings import Settings


def write(run, name, kind, parents, seed=0):
    """A stand-in artifact that nobody reads the content of."""
    with write_artifact(run / name, kind, {"seed": seed, "loss": "listwise"}, parents) as folder:
        (folder / "weights.json").write_text(str(seed))
    return open_artifact(run / name, kind, "test")


def write_embedding(run, encoder):
    with write_artifact(run / "embedding", "embedding", {"width": WIDTH}, {"encoder": encoder}) as folder:
        save_file({"item_id": ITEM_IDS, "vector": vectors_of(len(ITEM_IDS))}, folder / "items.safetensors")
        empty = {"query_id": np.empty(0, np.int64), "vector": np.empty((0, WIDTH), np.float32)}
        save_file(empty, folder / "queries.safetensors")
    return open_artifact(run / "embedding", "embedding")


def write_index(run, embedding):
    index = ItemIndex.build(ITEM_IDS, vectors_of(len(ITEM_IDS)), paths_of(len(ITEM_IDS)))
    return index.save(run / "index", {"embedding": embedding})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with every artifact the service opens, its models replaced by fakes."""
    dataset, split = write(tmp_path, "dataset", "dataset", {}), write(tmp_path, "split", "split", {})
    encoder = write(tmp_path, "encoder", "encoder", {"dataset": dataset, "split": split})
    embedding = write_embedding(tmp_path, encoder)
    write_index(tmp_path, embedding)
    log = log_of([(user, int(ITEM_IDS[user % 4]), "click", user) for user in range(12)])
    build_cooccurrence(log, tmp_path / "cooccurrence", {"split": split})
    write(tmp_path, "ranker_full", "ranker", {"split": split, "embedding": embedding})
    (tmp_path / "run.json").write_text(
        json.dumps({"size_name": "nano", "profile": "embedded", "seed": 0, "data": "x"})
    )
    opened_dataset = SimpleNamespace(
        items=items_table(ITEM_IDS, paths_of(len(ITEM_IDS))),
        image_bytes=lambda image_id: picture(),
    )
    opened_split = SimpleNamespace(
        end=NOW + timedelta(seconds=1),
        retrieval=pa.table({"user_id": [4, 5, 4], "part": ["test", "train", "test"]}),
    )
    monkeypatch.setattr(opening, "Dataset", SimpleNamespace(open=lambda artifact: opened_dataset))
    monkeypatch.setattr(opening, "Split", SimpleNamespace(open=lambda artifact: opened_split))
    monkeypatch.setattr(FakeReader, "store", None, raising=False)
    monkeypatch.setattr(opening, "open_signature", lambda store, service: None)
    monkeypatch.setattr(opening, "check_loaded", lambda *given: None)
    monkeypatch.setattr(opening, "OnlineReader", lambda store, history: FakeReader())
    monkeypatch.setattr(opening, "Ranker", SimpleNamespace(open=lambda *given: FakeRanker()))
    monkeypatch.setattr(opening, "Encoder", SimpleNamespace(open=lambda artifact: FakeEncoder()))
    return tmp_path


def test_a_whole_run_starts_warms_up_and_names_its_artifacts(run):
    moon = opening.open_recommender(Settings(run=run), run)
    assert moon.example_users == (4,) and moon.counts["answers"] == 1 and not moon.unready() + moon.degraded()
    assert set(moon.artifacts) == {"embedding", "index", "cooccurrence", "encoder", "ranker"}
    assert moon.artifacts["index"] == open_artifact(run / "index", "index").id
    answer = moon.recommend(4, 3)
    assert answer.order == "ranker" and answer.fallbacks == ()
    assert moon.now() == NOW + timedelta(seconds=1)  # the end of the log is known


def test_a_run_with_judgements_serves_their_head_and_warms_up_once(run, monkeypatch):
    embedding = open_artifact(run / "embedding", "embedding")
    head = write(run, "relevance", "relevance", {"embedding": embedding})
    opened, answered = [], []
    monkeypatch.setattr(
        opening, "Relevance", SimpleNamespace(open=lambda artifact, signature: opened.append(artifact))
    )
    real = Recommender.recommend
    monkeypatch.setattr(
        Recommender,
        "recommend",
        lambda moon, user, k: answered.append((user, k)) or real(moon, user, k),
    )
    moon = opening.open_recommender(Settings(run=run), run)
    assert opened == [head] and moon.artifacts["relevance"] == head.id
    assert answered == [(4, 10)] and moon.behaviours == 50


def remake_encoder(run):
    write(run, "encoder", "encoder", {}, seed=1)


def remake_embedding(run):
    write_embedding(run, write(run, "encoder", "encoder", {}, seed=1))


def remake_embedding_and_index(run):
    write_index(run, write_embedding(run, write(run, "encoder", "encoder", {}, seed=1)))


def forget_the_rankers_embedding(run):
    write(run, "ranker_full", "ranker", {"split": open_artifact(run / "split", "split")})


def count_another_split(run):
    log = log_of([(1, int(ITEM_IDS[0]), "click", 1)])
    build_cooccurrence(log, run / "cooccurrence", {"split": write(run, "other", "split", {}, seed=7)})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (remake_encoder, "embedding: made from encoder"),
        (remake_embedding, "index: made from embedding"),
        (remake_embedding_and_index, "ranker_full: made from embedding"),
        (forget_the_rankers_embedding, "ranker_full: made from embedding None"),
        (count_another_split, "cooccurrence: made from split"),
    ],
)
def test_artifacts_that_do_not_belong_together_are_refused_at_the_start(run, change, named):
    change(run)
    with pytest.raises(ArtifactError, match=named):
        opening.open_recommender(Settings(run=run), run)


@pytest.mark.parametrize("name", ["index", "embedding", "cooccurrence", "ranker_full", "encoder"])
def test_a_missing_artifact_is_refused_at_the_start_with_the_command(run, name):
    (run / name).rename(run / "elsewhere")
    with pytest.raises(ArtifactError, match=f"{name}.*Run 'moon "):
        opening.open_recommender(Settings(run=run), run)


def test_a_damaged_index_is_refused_at_the_start(run):
    file = run / "index" / "items.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="sha256"):
        open_retrieval(run)


def test_a_run_loaded_into_another_store_is_refused(run):
    with pytest.raises(ValueError, match="loaded into the embedded store, asked to serve from redis"):
        opening.open_recommender(Settings(run=run, profile="redis"), run)


def test_agreement_needs_both_sides():
    with pytest.raises(ArtifactError, match="expected the artifacts index and embedding"):
        require_agreement({}, [("index", "embedding")])
