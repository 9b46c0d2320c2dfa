"""A generation is published whole, checked, switched, rolled back and cleared away; a kill at any step is repeated.

Models are stand-ins here; the dataset, the split, the vectors and the feature store are real.

Run: pytest tests/test_generations.py
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from encoder_world import shop
from safetensors.numpy import save_file
from typer.testing import CliRunner

from dataset.split import Split
from dataset.tables import Dataset
from feature_repo.create import create_store
from feature_repo.embedding_check import EmbeddingError
from feature_repo.store import open_store, use_profile
from feature_repo.vectors import Vectors
from feature_repo.views import EmbeddingRecord
from moon import journey
from moon import releases as embeddings
from moon.cli import app
from moonstore.matrix import read_matrix
from run import generations
from run.artifacts import ArtifactError, open_artifact, write_artifact
from run.generations import GenerationError

ITEMS, WIDTH = 1040, 16


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generations")
    dataset, split = shop(folder, items=ITEMS)
    create_store(folder / "store", dataset, split)
    return folder


@pytest.fixture
def run(base, tmp_path):
    """A run folder with everything but what is trained."""
    shutil.copytree(base, tmp_path / "run")
    return tmp_path / "run"


def vectors_of(seed, width=WIDTH):
    """Items in 40 groups, which every seed's encoder finds again."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=(40, width))
    matrix = centre[np.arange(ITEMS) % 40] + 0.4 * rng.normal(size=(ITEMS, width))
    return unit(matrix)


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def write(run, name, kind, parents, seed, **config):
    with write_artifact(run / name, kind, {"seed": seed, **config}, parents) as folder:
        (folder / "weights.json").write_text(str(seed))
    return open_artifact(run / name, kind, "test")


def write_encoder(run, seed):
    """An encoder that learned from an earlier dataset, as it may."""
    earlier = {"dataset": write(run, "earlier", "dataset", {}, 0)}
    return write(run, "encoder", "encoder", earlier, seed, widths=[WIDTH, 8], recipe="ours")


def write_embedding(run, encoder, matrix, ids=None, dataset=None):
    dataset, split = (
        dataset or open_artifact(run / "dataset", "dataset"),
        Split.open(open_artifact(run / "split", "split")),
    )
    config = {
        "encoder_id": encoder.id, "as_of": split.fit_until.isoformat(), "width": matrix.shape[1], "widths": [WIDTH],
    }  # fmt: skip
    parents = {"dataset": dataset, "encoder": encoder}
    ids = np.arange(ITEMS) if ids is None else ids
    with write_artifact(run / "embedding", "embedding", config, parents) as out:
        save_file({"item_id": ids, "vector": matrix}, out / "items.safetensors")
        queries = unit(np.random.default_rng(1).normal(size=(8, matrix.shape[1])))
        save_file({"query_id": np.arange(8), "vector": queries}, out / "queries.safetensors")
    return open_artifact(run / "embedding", "embedding")


def train(run, seed, matrix=None, ids=None):
    """Everything a generation is made of, in the run folder; returns the embedding."""
    split = open_artifact(run / "split", "split")
    embedding = write_embedding(
        run, write_encoder(run, seed), vectors_of(seed) if matrix is None else matrix, ids
    )
    write(run, "index", "index", {"embedding": embedding}, seed)
    write(run, "cooccurrence", "cooccurrence", {"split": split}, 0)
    write(run, "ranker_full", "ranker", {"split": split, "embedding": embedding}, seed)
    return embedding


def go_live(run, seed):
    embedding = train(run, seed)
    return embeddings.activate(run, embeddings.publish(run).number), embedding


def state(run):
    """What a service and a reader of Feast would find."""
    now, record = generations.current(run), EmbeddingRecord.load(run / "store")
    assert now is None or generations.open_parts(generations.folder_of(run, now.generation))
    return now, record, [one.number for one in generations.generations(run)]


def online(run, version, embedding):
    vectors = Vectors.open(embedding)
    stored = read_matrix(open_store(run / "store"), f"item_embedding_v{version}", vectors.ids, ["vector"])
    return stored.found.all() and np.array_equal(np.stack(stored.columns["vector"].values), vectors.matrix)


@pytest.mark.parametrize("profile", ["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def test_a_new_generation_is_written_beside_the_old_and_takes_over_whole(request, run, profile):
    if profile == "redis":
        use_profile(run / "store", "redis", request.getfixturevalue("redis_server").url(11))
    first, old = go_live(run, 1)
    assert (first.number, first.figures["coverage"], first.figures["overlap"]) == (1, 1.0, None)
    new = train(run, 2)
    second = embeddings.publish(run)
    assert generations.serving(run).generation == 1 and EmbeddingRecord.load(run / "store").active == 1
    assert second.figures["common"] == ITEMS and second.figures["overlap"] > 3 * second.figures["chance"]
    embeddings.activate(run, 2)
    assert generations.serving(run).generation == 2 and EmbeddingRecord.load(run / "store").active == 2
    sealed = generations.open_parts(generations.folder_of(run, 1))
    assert sealed["embedding"].id == old.id != new.id
    for version, embedding in ((1, sealed["embedding"]), (2, new)):
        assert online(run, version, embedding)
    for name in ("embedding/items.safetensors", "ranker_full/manifest.json"):  # hard links: no second copy
        assert (run / name).stat().st_ino == (generations.folder_of(run, 2) / name).stat().st_ino
    assert embeddings.rollback(run).number == 1 == EmbeddingRecord.load(run / "store").active


def test_publishing_and_activating_again_changes_nothing(run):
    go_live(run, 1)
    before, record = state(run), generations.folder_of(run, 1) / generations.RECORD
    written = record.stat().st_mtime_ns
    assert embeddings.publish(run).number == 1 and embeddings.activate(run, 1).number == 1
    assert state(run) == before and record.stat().st_mtime_ns == written


def test_a_ranker_trained_anew_on_the_same_vectors_is_a_generation_with_the_same_version(run):
    _, embedding = go_live(run, 1)
    write(
        run,
        "ranker_full",
        "ranker",
        {"split": open_artifact(run / "split", "split"), "embedding": embedding},
        9,
    )
    embeddings.activate(run, embeddings.publish(run).number)
    now, record, numbers = state(run)
    assert now.generation == 2 and numbers == [1, 2] and [one.version for one in record.embeddings] == [1]


def another_encoder(run):
    write_encoder(run, 7)


def another_embedding(run):
    write_embedding(run, write_encoder(run, 7), vectors_of(7))


def a_relevance_of_before(run):
    write(run, "relevance", "relevance", {"embedding": open_artifact(run / "embedding", "embedding")}, 1)
    another_embedding(run)
    write(run, "index", "index", {"embedding": open_artifact(run / "embedding", "embedding")}, 7)
    parents = {"embedding": open_artifact(run / "embedding", "embedding")}
    write(run, "ranker_full", "ranker", parents, 7)


def another_dataset(run):
    encoder = open_artifact(run / "encoder", "encoder")
    other = write(run, "other", "dataset", {}, 3)
    embedding = write_embedding(run, encoder, vectors_of(1), dataset=other)
    write(run, "index", "index", {"embedding": embedding}, 1)
    write(run, "ranker_full", "ranker", {"embedding": embedding}, 1)


def another_split(run):
    write(run, "cooccurrence", "cooccurrence", {"split": write(run, "other", "split", {}, 1)}, 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (another_encoder, "embedding: made from encoder"),
        (another_embedding, "index: made from embedding"),
        (a_relevance_of_before, "relevance: made from embedding"),
        (another_dataset, "embedding: made from dataset"),
        (another_split, "cooccurrence: made from split"),
        (lambda run: shutil.rmtree(run / "index"), "expected a index artifact.*Run 'moon retrieval'"),
    ],
)
def test_a_mixture_is_not_published(run, change, named):
    go_live(run, 1)
    change(run)
    before = state(run)
    with pytest.raises(ArtifactError, match=named):
        embeddings.publish(run)
    assert state(run) == before


def with_nan(matrix):
    matrix[17, 3] = np.nan
    return matrix


@pytest.mark.parametrize(
    ("matrix", "ids", "named"),
    [
        (lambda: unit(vectors_of(2) * 0.1 + np.ones(WIDTH)), None, r"collapsed: mean cosine of two items 0\.9"),
        (
            lambda: np.random.default_rng(0).permutation(vectors_of(2)), None,
            r"items have different neighbours than before: \d+ of 1000 kept none \(item_id \[",
        ),
        (
            lambda: vectors_of(2)[:1000], np.arange(1000),
            r"40 of 1040 items with content have no vector \(item_id \[1000, 1001, 1002\]\): coverage 0.9615",
        ),
        (lambda: with_nan(vectors_of(2)), None, r"1 of 1040 vectors are not finite \(item_id \[17\]\)"),
        (lambda: 2 * vectors_of(2), None, "1040 of 1040 vectors are not of unit norm"),
        (lambda: vectors_of(2, width=8), None, "vectors of width 8, expected 16, the encoder's"),
    ],
)  # fmt: skip
def test_vectors_that_may_not_serve_are_not_published(run, matrix, ids, named):
    go_live(run, 1)
    train(run, 2, matrix(), ids)
    before = state(run)
    with pytest.raises((EmbeddingError, ArtifactError), match=named):
        embeddings.publish(run)
    assert state(run) == before


PUBLISHING = [
    "feature_repo.sources.pq.write_table",
    "feature_repo.embeddings.EmbeddingRecord.save",
    "feature_repo.embeddings.apply_definitions",
    "feature_repo.store.materialize",
    "moonstore.files.os.link",
    "run.generations.write_json",
    "run.generations.folder_of",
]
ACTIVATING = [
    "feature_repo.embeddings.EmbeddingRecord.save",
    "feature_repo.embeddings.apply_definitions",
    "moonstore.registry_store.fsync",
    "run.generations.point",
    "run.generations.write_json",
]


@pytest.mark.parametrize("step", PUBLISHING)
def test_a_killed_publication_leaves_the_old_generation_serving_and_is_repeated(run, monkeypatch, step):
    first, old = go_live(run, 1)
    before = generations.current(run)
    new = train(run, 2)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(step, failing(step))
        embeddings.publish(run)
    assert state(run)[0] == before and state(run)[1].active == 1 and state(run)[2] == [1]
    assert online(run, 1, generations.open_parts(generations.folder_of(run, 1))["embedding"])
    number = embeddings.publish(run).number
    assert number == (
        3 if step.endswith(("folder_of", "link")) else 2
    )  # a number once taken is not given again
    embeddings.activate(run, number)
    assert online(run, 2, new) and state(run)[1].active == 2 and state(run)[0].generation == number


@pytest.mark.parametrize("step", ACTIVATING)
def test_a_killed_activation_leaves_the_old_generation_serving_and_is_repeated(run, monkeypatch, step):
    go_live(run, 1)
    before = generations.current(run)
    train(run, 2)
    embeddings.publish(run)
    for switch in (lambda: embeddings.activate(run, 2), lambda: embeddings.rollback(run)):
        with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
            broken.setattr(step, interrupted)
            if step.endswith("point"):
                broken.setattr("run.generations.point_back", interrupted)
            switch()
        assert state(run)[0] == before
        switch()
        before = generations.current(run)
        active = generations.open_parts(generations.folder_of(run, before.generation))["embedding"]
        record = state(run)[1]
        assert record.find(active.id).version == record.active
        names = {
            one.name
            for one in open_store(run / "store").get_feature_service("ctr_v1").feature_view_projections
        }
        assert f"item_embedding_v{record.active}" in names


def test_the_switch_is_the_replacement_of_one_file(run, monkeypatch):
    go_live(run, 1)
    train(run, 2)
    embeddings.publish(run)
    before, replaced = generations.current(run), []
    real = Path.replace

    def replace(self, target):
        if Path(target).name == generations.CURRENT:
            replaced.append(generations.current(run))
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        embeddings.activate(run, 2)
    assert replaced == [before] == [generations.current(run)]


def failing(step):
    """Fails at once, or, where the step runs before as well, at the call that publishes."""
    if step.endswith("folder_of"):  # the rename: the last thing that sealing does
        real, calls = generations.folder_of, []

        def folder_of(run, number):
            calls.append(number)
            return interrupted() if number == 2 else real(run, number)

        return folder_of
    return interrupted


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_going_back_follows_the_history_and_ends_at_its_beginning(run):
    with pytest.raises(GenerationError, match="no generation was active before"):
        embeddings.rollback(run)
    for seed in (1, 2, 3):
        go_live(run, seed)
    assert embeddings.rollback(run).number == 2
    embeddings.activate(run, 3)
    embeddings.activate(run, 1)
    assert [embeddings.rollback(run).number for _ in range(3)] == [3, 2, 1]
    with pytest.raises(GenerationError, match="no generation was active before"):
        embeddings.rollback(run)
    with pytest.raises(GenerationError, match=r"no generation 9; there are \[1, 2, 3\]"):
        embeddings.activate(run, 9)


def test_clearing_away_keeps_what_serves_and_what_a_rollback_returns_to(run):
    with pytest.raises(GenerationError, match="no generation is active"):
        embeddings.collect(run)
    for seed in (1, 2, 3):
        go_live(run, seed)
    train(run, 4)
    embeddings.publish(run)
    train(run, 5)
    waiting = open_artifact(run / "embedding", "embedding")
    embeddings.put_online(run, waiting)  # as 'moon embed' does, before it is a generation
    removed = embeddings.collect(run)
    assert [line.split(" of ")[0] for line in removed] == [
        "generation 1", "generation 4", "vectors version 1", "vectors version 4",
    ]  # fmt: skip
    now, record, numbers = state(run)
    assert (
        now.generation == 3 and numbers == [2, 3] and [one.version for one in record.embeddings] == [2, 3, 5]
    )
    assert embeddings.collect(run) == []
    for number in (2, 3):
        with pytest.raises(GenerationError, match=f"generation {number} serves, or a rollback returns to it"):
            generations.remove(run, [number])
    assert embeddings.rollback(run).number == 2
    with pytest.raises(GenerationError, match="no generation was active before"):
        embeddings.rollback(run)  # the first is gone


def test_a_removal_that_was_killed_is_finished_by_the_next(run, monkeypatch):
    for seed in (1, 2, 3):
        go_live(run, seed)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("run.generations.shutil.rmtree", interrupted)
        embeddings.collect(run)
    assert embeddings.collect(run) and not list((run / "generations").glob("leaving*"))
    assert [one.version for one in state(run)[1].embeddings] == [2, 3]


def test_the_list_shows_what_was_measured_and_which_serves(run):
    assert "no generation yet" in embeddings.table(run)
    go_live(run, 1)
    go_live(run, 2)
    head, first, second = embeddings.table(run).splitlines()
    assert head.split() == list(embeddings.COLUMNS)
    assert first.startswith("1 ") and first.endswith("rollback returns to it") and "1,040" in first
    assert second.startswith("2 ") and second.endswith("active") and " with 1, 0.0096 by chance" in second
    encoder = open_artifact(run / "encoder", "encoder").id
    assert encoder[:8] in second and encoder[:8] not in first


def test_a_damaged_generation_is_not_activated(run):
    go_live(run, 1)
    train(run, 2)
    embeddings.publish(run)
    file = generations.folder_of(run, 2) / "index" / "weights.json"
    file.unlink()
    file.write_text("3")
    before = state(run)
    with pytest.raises(ArtifactError, match="sha256"):
        embeddings.activate(run, 2)
    assert state(run) == before
    train(run, 3)  # a retraining does not reach into a sealed one
    assert generations.open_parts(generations.folder_of(run, 1))["index"].config["seed"] == 1


def test_a_store_made_anew_gets_the_vectors_of_what_is_activated(run):
    _, embedding = go_live(run, 1)
    create_store(
        run / "store",
        Dataset.open(open_artifact(run / "dataset", "dataset")),
        Split.open(open_artifact(run / "split", "split")),
    )
    assert EmbeddingRecord.load(run / "store") == EmbeddingRecord()
    embeddings.activate(run, 1)
    assert online(run, 1, embedding) and EmbeddingRecord.load(run / "store").active == 1


def test_where_links_are_impossible_files_are_copied(run, monkeypatch):
    def refused(*_):
        raise OSError("cross-device link")

    monkeypatch.setattr("moonstore.files.os.link", refused)
    go_live(run, 1)
    name = "embedding/items.safetensors"
    assert (generations.folder_of(run, 1) / name).read_bytes() == (run / name).read_bytes()
    assert (generations.folder_of(run, 1) / name).stat().st_ino != (run / name).stat().st_ino


def test_a_service_starts_while_an_encoder_is_trained_and_says_what_waits(run, monkeypatch, capsys):
    served = []
    monkeypatch.setattr("serving.server.serve", lambda settings: served.append(settings.run))
    options = {"host": "127.0.0.1", "port": 8000, "profile": None, "clock": "log"}
    one = journey.Run(run, "marketplace", "nano", 0, "embedded")
    with pytest.raises(GenerationError, match="no generation is active. Run 'moon demo'"):
        journey.do(one, "serve", **options)
    go_live(run, 1)
    journey.do(one, "serve", **options)
    assert served == [run] and capsys.readouterr().err == ""
    write_encoder(run, 2)
    journey.do(one, "serve", **options)
    said = capsys.readouterr().err
    assert (
        len(served) == 2 and "serving generation 1" in said and "holds another encoder: run 'moon emb" in said
    )


def test_the_commands_publish_switch_go_back_and_clear_away(run):
    (run / "run.json").write_text('{"data": "shapes", "size_name": "nano", "seed": 0, "profile": "embedded"}')

    def moon(*words):
        done = CliRunner().invoke(app, ["embeddings", *words, "--run", str(run)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    train(run, 1)
    assert moon("publish").splitlines()[1].startswith("1 ") and generations.current(run) is None
    assert moon("publish", "--activate").splitlines()[1].endswith("active")
    train(run, 2)
    moon("publish")
    assert generations.serving(run).generation == 1
    assert moon("activate", "2") == "generation 2 serves\n"
    assert moon("rollback") == "generation 1 serves\n"
    assert len(moon("list").splitlines()) == 3
    assert moon("gc").splitlines() == ["removed generation 2"]  # its vectors are still the run folder's own
    assert moon("gc") == "nothing to remove\n"
