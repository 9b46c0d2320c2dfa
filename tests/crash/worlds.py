"""The tiny worlds that jobs start from, each made once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import test_generations
from conftest import make_requests, make_world
from encoder_world import TINY, shop

import encoder.embed
import encoder.train
import feature_repo.store
from dataset.split import Split
from dataset.tables import Dataset
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.store import known_until, materialize
from moon import journey
from run.artifacts import open_artifact
from tests.crash import watched

ITEMS = 120  # of the world of generations: as many as the check of vectors needs to say anything


def dataset_of(folder: Path) -> Dataset:
    """The dataset of a run."""
    return Dataset.open(open_artifact(folder / "dataset", "dataset"))


def split_of(folder: Path) -> Split:
    """The split of a run."""
    return Split.open(open_artifact(folder / "split", "split"))


def do(folder: Path, *verbs: str) -> None:
    """Commands on the run in a folder, with the repository of ``feast`` inside it."""
    feature_repo.store.REPOSITORY = folder / "repository"
    os.chdir(folder)
    run = journey.start("marketplace:500", folder / "run", "nano", 0, "embedded")
    for verb in verbs:
        journey.do(run, verb)


def empty(folder: Path) -> None:
    """A folder in which nothing has been done."""
    (folder / "repository").mkdir()


def market(folder: Path) -> None:
    """A run that has a simulated dataset, a split and a store."""
    empty(folder)
    do(folder, "dataset", "split", "store")


def store(folder: Path) -> None:
    """A store of the world that the tests of the store know, loaded."""
    world = make_world(seed=1)
    create_store(folder / "store", world.dataset, world.split)
    materialize(folder / "store", known_until(folder / "store"))
    pq.write_table(make_requests(world, seed=11, requests=20), folder / "rows.parquet")


def trained(folder: Path) -> None:
    """A run with an encoder, vectors, and a store that has them online."""
    dataset, split = shop(folder)
    encoder.train.train_encoder(dataset, split, TINY, folder / "encoder", budget=0.02)
    embedding = encoder.embed.embed(
        open_artifact(folder / "encoder", "encoder"), dataset, split.fit_until, folder / "embedding"
    )
    create_store(folder / "store", dataset, split)
    publish_embedding(folder / "store", embedding)
    materialize(folder / "store", known_until(folder / "store"))


def generations(folder: Path) -> None:
    """A run whose first two generations are published, the first and then the second active, and a third waits."""
    dataset, split = shop(folder, items=ITEMS)
    create_store(folder / "store", dataset, split)
    with mock.patch("test_generations.ITEMS", ITEMS):
        for seed in (1, 2):
            test_generations.go_live(folder, seed)
        test_generations.train(folder, 3)


WORLDS = {one.__name__: one for one in (empty, market, store, trained, generations)}


def made(name: str, scratch: Path) -> Path:
    """The folder of a world, made in a process of its own."""
    folder = scratch / name
    if not folder.exists():
        building = scratch / f"{name}.building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        ended = watched.run(lambda: WORLDS[name](building), scratch / "nowhere", lambda _: watched.GO)
        if ended.error:
            raise RuntimeError(f"the world {name!r} cannot be made\n{ended.error}")
        building.rename(folder)
    return folder
