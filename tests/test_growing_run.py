"""A run that grew by a day goes on from there: what is made from it equals what a run of all files at once makes.

Run: pytest tests/test_growing_run.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from encoder_world import COLOURS, SHAPES, TINY, png
from safetensors.numpy import load_file
from test_append import hm_files
from test_importers import article, put, write

from dataset.adapters import movielens
from dataset.contracts import DataError
from encoder.encode import Encoder
from encoder.train import train_encoder
from feature_repo.event_log import open_event_log
from feature_repo.frames.logged import logged_source
from feature_repo.frames.shards import write_frame
from feature_repo.store import open_store
from moon import journey, stages, verbs
from moon.journey import Stage
from retrieval.cooccurrence import build_cooccurrence
from run.artifacts import open_artifact
from run.folder import JourneyError, Run

FILMS, FIRST_FILMS = 36, 30
PROFILES = ("item_profile", "user_profile")
LOGGED = ("item_stats", "query_stats", "user_events", "user_history")


def films(numbers):
    """Films with posters, and their titles say what the posters show."""
    rows = [
        {"movieId": n, "title": f"{list(COLOURS)[n % 8]} {SHAPES[n // 8]}", "genres": "Crime"}
        for n in numbers
    ]
    return rows, {n: png(list(COLOURS)[n % 8], SHAPES[n // 8]) for n in numbers}


def write_day(folder: Path, numbers, ratings):
    rows, posters = films(numbers)
    write(folder / "movies.csv", movielens.RAW_SCHEMAS["movies.csv"], rows)
    write(folder / "ratings.csv", movielens.RATING, ratings)
    for n, content in posters.items():
        put(folder / f"posters/{n}.png", content)


def ratings(count, start, most, seed):
    rng = np.random.default_rng(seed)
    names = ("userId", "movieId", "rating", "timestamp")
    at = start + np.sort(rng.integers(0, 20 * 86_400, count))
    drawn = zip(
        rng.integers(1, 13, count), rng.integers(0, most, count), rng.integers(1, 6, count), at, strict=True
    )
    return [dict(zip(names, (int(u), int(m), float(r), int(t)), strict=True)) for u, m, r, t in drawn]


def begun(folder: Path, raw: Path) -> Run:
    run = Run(folder, f"ml_posters:{raw}", "nano", 0, "embedded")
    stages.dataset(run)
    stages.split(run)
    stages.store(run)
    return run


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """(the run that grew, the run of all files, texts encoded after it grew, both with the same encoder)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("growing")
    first, later = ratings(240, 1_000_000_000, FIRST_FILMS, 0), ratings(90, 1_001_800_000, FILMS, 1)
    write_day(folder / "raw/1", range(FIRST_FILMS), first)
    write_day(folder / "raw/2", [3, *range(FIRST_FILMS, FILMS)], later)
    write_day(folder / "raw/all", range(FILMS), [*first, *later])
    encoded, encode = [], Encoder.encode

    def counted(self, contents, pixels=None):
        encoded.extend(content.text for content in contents)
        return encode(self, contents, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        grew = begun(folder / "grew", folder / "raw/1")
        dataset, split = stages.open_dataset(grew), stages.open_split(grew)
        train_encoder(dataset, split, TINY, grew.folder / "encoder", budget=0.02)
        stages.embed(grew)
        stages.materialize(grew)
        said = verbs.append(grew, [folder / "raw/2"])
        patch.setattr(Encoder, "encode", counted)
        for stage in (stages.split, stages.store, stages.embed, stages.materialize):
            stage(grew)
        patch.undo()
        patch.chdir(folder)
        whole = begun(folder / "whole", folder / "raw/all")
        shutil.copytree(grew.folder / "encoder", whole.folder / "encoder")
        stages.embed(whole)
        stages.materialize(whole)
    assert "6 new items, 6 new images, 90 new events; 0 events already there" in said
    return grew, whole, encoded


def source(run, view):
    return pq.read_table(run.folder / f"store/data/{view}.parquet")


def test_the_cut_the_event_log_and_the_statistics_are_those_of_all_files(worlds):
    grew, whole, _ = worlds
    one, other = stages.open_split(grew), stages.open_split(whole)
    assert one.log.equals(other.log) and len(one.log) == 330
    assert one.ranking.equals(other.ranking) and one.retrieval.equals(other.retrieval)
    assert (one.fit_until, one.test_from) == (other.fit_until, other.test_from)
    assert open_event_log(grew.folder / "store").version == open_event_log(whole.folder / "store").version
    for view in LOGGED:
        assert source(grew, view).equals(source(whole, view)), view
    for view in PROFILES:
        key = f"{view.split('_')[0]}_id"
        first, second = (source(run, view).sort_by(key).to_pylist() for run in (grew, whole))
        assert first == second and len(first) > 10


def test_the_training_frame_is_that_of_all_files(worlds):
    made = []
    for run in worlds[:2]:
        frame = write_frame(logged_source(run.folder, stages.open_split(run), TINY), run.folder / "frame")
        made.append(
            {
                path.relative_to(frame.path).as_posix(): pq.read_table(path)
                for path in sorted(frame.path.rglob("*.parquet"))
            }
        )
    assert made[0] == made[1] and made[0] and all(map(len, made[0].values()))


def test_only_new_items_are_embedded_and_the_vectors_are_those_of_all_files(worlds):
    grew, whole, encoded = worlds
    rows, _ = films(range(FIRST_FILMS, FILMS))
    assert len(encoded) == len(rows) == 6
    tables = []
    for run in (grew, whole):
        table = load_file(open_artifact(run.folder / "embedding", "embedding").file("items.safetensors"))
        tables.append(dict(zip(table["item_id"].tolist(), table["vector"], strict=True)))
    assert tables[0].keys() == tables[1].keys() == set(range(FILMS))
    for item, vector in tables[0].items():
        np.testing.assert_allclose(vector, tables[1][item], atol=1e-6)


def test_cooccurrences_are_those_of_all_files(worlds):
    made = []
    for run in worlds[:2]:
        split = stages.open_split(run)
        build_cooccurrence(split.test_log, run.folder / "cooccurrence", {"split": split.artifact})
        folder = run.folder / "cooccurrence"
        made.append(
            {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
        )
    assert made[0] == made[1] and made[0]


def test_what_is_online_is_what_all_files_would_have_loaded(worlds):
    keys = [{"item_id": n} for n in range(FILMS)], [{"user_id": n} for n in range(1, 13)]
    features = (["item_stats:shown_all", "item_stats:positive_28d", "item_profile:first_seen_us"], [
        "user_history:recent_item_id", "user_history:recent_time_us"
    ])  # fmt: skip
    read = [
        [
            open_store(run.folder / "store").get_online_features(features=some, entity_rows=rows).to_dict()
            for some, rows in zip(features, keys, strict=True)
        ]
        for run in worlds[:2]
    ]
    assert read[0] == read[1] and any(read[0][0]["shown_all"]) and any(read[0][1]["recent_item_id"])


def test_the_kept_encoder_is_tested_on_nothing_that_it_learned_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_day(tmp_path / "raw/1", range(FIRST_FILMS), ratings(60, 1_000_000_000, 5, 0))
    write_day(tmp_path / "raw/2", range(FIRST_FILMS, FILMS), ratings(60, 1_001_800_000, 5, 1))
    write_day(tmp_path / "raw/3", [], ratings(30, 1_003_600_000, 5, 2))
    run = begun(tmp_path / "run", tmp_path / "raw/1")
    cut = stages.open_split(run)
    learned = set(cut.encoder_items(stages.open_dataset(run).items).tolist())
    assert len(cut.pool) == FIRST_FILMS // 5 and len(learned) == FIRST_FILMS - FIRST_FILMS // 5
    verbs.append(run, [tmp_path / "raw/2"])
    verbs.append(run, [tmp_path / "raw/3"])
    stages.split(run)
    pool = set(stages.open_split(run).pool.tolist())
    assert len(pool) == FILMS // 5 and not pool & learned


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """The first stage imports; later ones note that they ran."""
    monkeypatch.chdir(tmp_path)
    ran = []
    real = journey.STAGES[0]
    later = [
        Stage(verb, needs, lambda run, verb=verb: ran.append(verb), "")
        for verb, needs in (
            ("split", "dataset"),
            ("store", "split"),
            ("encoder", "store"),
            ("embed", "store"),
        )
    ]
    monkeypatch.setattr(journey, "STAGES", (real, *later))
    articles = [article(f"0{100 + n}001") for n in range(12)]
    hm_files(tmp_path / "1", articles, [], [(0, 1, 0), (1, 2, 1)])
    hm_files(tmp_path / "2", sales=[(2, 1, 0), (2, 2, 1)])
    run = journey.start(f"hm_fashion:{tmp_path / '1'}", tmp_path / "run", "nano", 0, "embedded")
    journey.travel(run)
    ran.clear()
    return run, ran


def test_the_journey_goes_on_with_what_was_appended_and_keeps_the_encoder(noted, tmp_path):
    run, ran = noted
    said = journey.do(run, "dataset --append", folders=[tmp_path / "2"])
    assert "2 new events; 0 events already there" in said
    with pytest.raises(JourneyError, match="'store' needs 'split' first"):
        journey.do(run, "store")
    journey.travel(run)
    assert ran == ["split", "store", "embed"]
    said = journey.do(run, "dataset --append", folders=[tmp_path / "2", tmp_path / "2"])
    assert said.count("nothing new; 2 events already there") == 2 and "go on" not in said
    journey.travel(run)
    assert ran == ["split", "store", "embed"]


def test_an_append_that_fails_or_is_killed_leaves_the_run_as_it_was(noted, tmp_path, monkeypatch):
    run, ran = noted
    hm_files(tmp_path / "bad", sales=[(2, 1, 0)])
    (tmp_path / "bad/transactions_train.csv").write_text("t_dat\n")
    with pytest.raises(DataError, match="missing"):
        journey.do(run, "dataset --append", folders=[tmp_path / "bad"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("run.artifacts._seal", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        journey.do(run, "dataset --append", folders=[tmp_path / "2"])
    journey.travel(run)
    assert not ran and len(stages.open_dataset(run).events) == 2
    journey.do(run, "dataset --append", folders=[tmp_path / "2"])
    (run.folder / "dataset").rename(
        run.folder / "dataset.previous"
    )  # killed between two renames of the next one
    with pytest.raises(JourneyError, match="'store' needs 'split' first"):
        journey.do(run, "store")
    journey.travel(run)
    assert ran == ["split", "store", "embed"] and len(stages.open_dataset(run).events) == 4


def test_importing_anew_does_not_drop_what_was_appended(noted, tmp_path):
    run, ran = noted
    journey.do(run, "dataset --append", folders=[tmp_path / "2"])
    with pytest.raises(JourneyError, match="found 1 appended sources in it, first .'2'."):
        journey.do(run, "dataset")
    assert len(stages.open_dataset(run).events) == 4
    journey.travel(run)
    assert ran == ["split", "store", "embed"]
