"""The jobs that are stages of a run."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import test_generations
import test_resume
from encoder_world import TINY

import encoder.embed
import encoder.train
from dataset.importers import append_files, import_dataset
from dataset.marketplace.simulate import simulate
from dataset.tables import write_dataset
from encoder.pictures.cache import decoded
from evaluation.bench.imports import write_hm
from evaluation.measurements import write_measurements
from evaluation.metrics import Measurement
from evaluation.report import render_page
from feature_repo.check import check_store
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.frames import shards
from feature_repo.frames.source import FrameSource
from feature_repo.online import OnlineReader
from feature_repo.sources import DATA
from feature_repo.store import apply_definitions, known_until, materialize
from feature_repo.vectors import Vectors
from moon import releases, stages
from moonstore.files import write_json
from ranker.judgements import JudgedPairs
from ranker.relevance import train_relevance
from retrieval.build import build_lifts, build_taste
from retrieval.cooccurrence import build_cooccurrence
from retrieval.fusion import Weights
from retrieval.index import ItemIndex
from retrieval.search.search import Search
from retrieval.taken import Taken
from retrieval.word_vectors import WordVectors
from retrieval.words import Words
from run.artifacts import ArtifactError, open_artifact
from run.folder import Run
from tests.crash.contents import contents
from tests.crash.job import Job
from tests.crash.worlds import dataset_of, do, split_of

RUN = "run"


def _two_days(folder: Path) -> None:
    """A dataset of the first of two folders of files."""
    for day in (1, 2):
        write_hm(folder / "raw" / str(day), 60 * day, seed=day)
    import_dataset("hm_fashion", folder / "raw" / "1", folder / "dataset")


def _append(folder: Path) -> None:
    append_files("hm_fashion", folder / "raw" / "2", dataset_of(folder))


def _encode_in_chunks(folder: Path, out: str, shard: tuple[int, int] = (1, 1)) -> None:
    encoder.embed.CHUNK = 20
    trained = open_artifact(folder / "encoder", "encoder")
    encoder.embed.embed(trained, dataset_of(folder), split_of(folder).known_from, folder / out, shard)


def _train_encoder(folder: Path) -> None:
    encoder.train.CHECKPOINT_EVERY = 2
    encoder.train.train_encoder(dataset_of(folder), split_of(folder), TINY, folder / "encoder", budget=0.02)


def _without(*names: str):
    def prepare(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name)

    return prepare


def _embed_in_shards(folder: Path) -> None:
    """As ``moon embed --shard`` does, on each of two machines, and the join."""
    encoder.embed.CHUNK = 20
    run = Run(folder, "shapes", "nano", 0, "embedded")
    for shard in ("1/2", "2/2"):
        stages.embed(run, shard)


def _publish_vectors(folder: Path) -> None:
    publish_embedding(folder / "store", open_artifact(folder / "embedding", "embedding"))


def _fresh_store(folder: Path) -> None:
    """A store that holds no vectors and was never loaded."""
    create_store(folder / "store", dataset_of(folder), split_of(folder))


def _load(folder: Path) -> None:
    materialize(folder / "store", known_until(folder / "store"))


def _empty_online(folder: Path) -> None:
    """A store that was never loaded, with a row that no load takes."""
    data = folder / "store" / DATA
    for path in [*data.glob("online.db*"), *(data / "reports").glob("*")]:
        path.unlink()
    rows = pq.read_table(data / "user_profile.parquet").to_pydict()
    rows["event_timestamp"][0] += timedelta(days=36_500)  # of the future: set aside
    pq.write_table(
        pa.table(rows, pq.read_schema(data / "user_profile.parquet")), data / "user_profile.parquet"
    )
    apply_definitions(folder / "store")


def _reads(folder: Path) -> str:
    """Every user can be read while a load is cut off."""
    reader = OnlineReader(folder / "store", 5)
    users = pq.read_table(folder / "store" / DATA / "user_profile.parquet").column("user_id").to_pylist()
    for user in users:
        reader.read_user(user, known_until(folder / "store"))
    return "readable"


def _frame(folder: Path) -> None:
    rows = pq.read_table(folder / "rows.parquet")
    for number in (1, 2):
        source = FrameSource(folder / "store", lambda: [rows], 5, {})
        shards.write_or_join(source, folder / "frames" / "logged", (number, 2))


def _vectors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    vectors = Vectors.open(open_artifact(folder / "embedding", "embedding"))
    return vectors.ids, vectors.matrix


def _retrieval(folder: Path) -> None:
    split, embedding = split_of(folder), open_artifact(folder / "embedding", "embedding")
    build_cooccurrence(split.test_log, folder / "cooccurrence", {"split": split.artifact})
    ids, matrix = _vectors(folder)
    index = ItemIndex.build(ids, matrix, ["shapes"] * len(ids))
    index.save(folder / "index", {"embedding": embedding})
    dataset = dataset_of(folder)
    Search.of(dataset.items, index, index).save(folder / "search", {"embedding": embedding})
    words = Words.of(dataset.items)
    said = words.save(folder / "words", {"dataset": dataset.artifact})
    WordVectors.of(words).save(folder / "word_vectors", {"words": said})
    Weights({"popular": [0, 0.5, 0]}).save(folder / "fusion", {"split": split.artifact}, {})
    build_taste(dataset, split, embedding, folder / "taste")
    build_lifts(dataset, split, folder / "lifts")
    Taken.of(split.log).save(folder / "taken", {"split": split.artifact}, {})


def _relevance(folder: Path) -> None:
    _, matrix = _vectors(folder)
    judged = (np.arange(len(matrix)) % 2).astype(np.float32)
    pairs = JudgedPairs(matrix, matrix[::-1].copy(), judged, np.arange(len(matrix)))
    train_relevance(pairs, folder / "relevance", {}, seed=0)


def _towers(folder: Path) -> None:
    test_resume.train_towers(folder, folder / "two_tower", lambda: None)


def _ranker(folder: Path) -> None:
    test_resume.train_ranker(folder, folder / "ranker_full", lambda: None)


def _which(name: str, kind: str):
    """Which artifact is found: its id, or that there is none."""

    def look(folder: Path) -> str:
        try:
            return open_artifact(folder / name, kind).id
        except ArtifactError:
            assert not (folder / name).exists(), "half an artifact has the name of a whole one"
            return "none"

    return look


def _serves(folder: Path) -> list:
    """What a service and a reader of Feast find: the active generation, whole, with its vectors online."""
    now, record, _ = test_generations.state(folder)
    assert now is not None
    active = releases.generations.open_parts(releases.generations.folder_of(folder, now.generation))[
        "embedding"
    ]
    version = record.find(active.id)
    assert version is not None and test_generations.online(folder, version.version, active)
    return [now.generation, list(now.before)]


def _generations(folder: Path) -> dict[str, object]:
    """The folder without the numbers of generations: one that was taken by a killed publication is not used again."""
    now, record, numbers = test_generations.state(folder)
    parts = {
        f"{place}/{role}": artifact.id
        for place, number in enumerate(numbers)
        for role, artifact in releases.generations.open_parts(
            releases.generations.folder_of(folder, number)
        ).items()
    }
    inside = {name.split("/")[1] for name in contents(folder) if name.startswith("generations/")}
    left = sorted(name for name in inside if not name.isdigit())
    outside = {name: one for name, one in contents(folder).items() if not name.startswith("generations/")}
    return {
        "active": numbers.index(now.generation), "parts": parts, "reads": record.active,
        "versions": [one.version for one in record.embeddings], "left": left, **outside,
    }  # fmt: skip


def _publish_and_activate(folder: Path) -> None:
    releases.activate(folder, releases.publish(folder).number)


def _roll_back_if_needed(folder: Path) -> None:
    """A user looks first: to go back twice is to go back two generations."""
    if releases.generations.serving(folder).generation == 2:
        releases.rollback(folder)


def _write_results(folder: Path) -> None:
    """What ``evaluate`` and ``seeds`` write, without measuring."""
    write_measurements(folder / "metrics.json", [Measurement("auc", 0.5, 10, "test")])
    write_json(folder / "example.json", {"hits": [1, 2, 3]})
    render_page(folder / "store.html", "store_template.html", facts={}, lines=[], growths=[], comparisons=[])


def _check(folder: Path) -> None:
    check_store(folder / "store")


STAGES = (
    Job("start a run", "empty", lambda folder: do(folder)),
    Job("dataset", "empty", lambda folder: do(folder, "dataset")),
    Job("dataset, replaced", "market", lambda folder: write_dataset(
        folder / RUN / "dataset", *simulate(events=500, seed=2)), look=_which("run/dataset", "dataset")),
    Job("dataset, appended", "empty", _append, prepare=_two_days, look=_which("dataset", "dataset")),
    Job("split", "market", lambda folder: do(folder, "split"), look=_which("run/split", "split")),
    Job("store", "market", lambda folder: do(folder, "store"), prepare=_without("run/store")),
    Job("store, replaced", "market", lambda folder: do(folder, "store")),
    Job("encoder", "trained", _train_encoder, prepare=_without("encoder")),
    Job("pictures decoded", "trained", lambda folder: decoded(dataset_of(folder), 16) and None,
        prepare=lambda folder: [shutil.rmtree(path) for path in folder.glob("dataset.pixels_*")]),
    Job("embed", "trained", lambda folder: _encode_in_chunks(folder, "embedding"), prepare=_without("embedding")),
    Job("embed in shards", "trained", _embed_in_shards, prepare=_without("embedding")),
    Job("publish vectors", "trained", _publish_vectors, prepare=_fresh_store),
    Job("materialize", "store", _load, prepare=_empty_online, look=_reads),
    Job("check the store", "store", _check),
    Job("frame in shards", "store", _frame),
    Job("retrieval", "trained", _retrieval),
    Job("two tower", "empty", _towers),
    Job("ranker", "empty", _ranker),
    Job("relevance", "trained", _relevance),
    Job("publish", "generations", releases.publish, look=_serves, state=_generations),
    Job("publish and activate", "generations", _publish_and_activate, look=_serves, state=_generations),
    Job("activate", "generations", lambda folder: releases.activate(folder, 1), look=_serves, state=_generations),
    Job("roll back", "generations", releases.rollback, look=_serves, state=_generations, again=_roll_back_if_needed),
    Job("collect", "generations", lambda folder: releases.collect(folder), look=_serves, state=_generations,
        prepare=lambda folder: (_publish_and_activate(folder), None)[1]),
    Job("results", "empty", _write_results),
)  # fmt: skip
