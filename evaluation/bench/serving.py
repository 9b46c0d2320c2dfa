"""The service of a run: how long an answer takes, and how soon a new item is recommended.

Measured on a copy of the run's store, so that the run is not changed.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from fastapi.testclient import TestClient

from dataset.tables import Dataset
from evaluation.bench.lines import Line, line, line_below
from feature_repo.store import known_until, materialize, use_profile
from run.artifacts import open_artifact
from run.generations import folder_of
from serving.app import create_app
from serving.live import Live
from serving.opening import open_recommender
from serving.settings import Settings

USERS, ROUNDS, NEW = 50, 4, 5
NEW_GOAL_S, PATIENCE_S = 10.0, 60.0
FIRST_ID = 2**62  # id of the first new item


def bench_serving(run: Path) -> Iterator[Line]:
    """Measure a finished run, on SQLite.

    Raises:
        GenerationError: no generation is active.
        RuntimeError: a new item was not recommended within ``PATIENCE_S``.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="moon_bench_") as name:
        copied = copy_run(run, Path(name) / "run")
        settings = Settings(run=copied)
        yield from _answers(settings)
        yield from _new_items(settings, Dataset.open(open_artifact(copied / "dataset", "dataset")))


def _answers(settings: Settings) -> Iterator[Line]:
    live = Live.open(settings)
    held = live.current
    assert held.items is not None and held.generation is not None, live.stale_reason
    asked = open_recommender(settings, folder_of(settings.run, held.generation), held.generation)
    users = list(held.example_users)[:USERS]
    sides = {"items in memory": held, "items from the online store": asked}
    took: dict[str, list[float]] = {side: [] for side in sides}
    features: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for user in users:
            for side, moon in sides.items():
                began = time.perf_counter()
                answer = moon.recommend(user, 20)
                took[side].append((time.perf_counter() - began) * 1e3)
                features[side].append(answer.timings_ms["features"])
    for side in sides:
        yield line(f"an answer to /recommend, {side}: ms", took[side])
        yield line(f"an answer to /recommend, {side}: p99 ms", [float(np.quantile(took[side], 0.99))])
        yield line(f"of it for features, {side}: ms", features[side])


def _new_items(settings: Settings, dataset: Dataset) -> Iterator[Line]:
    rows = [row for row in dataset.items.to_pylist() if row["title"] and row["image_id"]][:NEW]
    took = []
    with TestClient(create_app(settings), base_url=f"http://{settings.host}") as client:
        for number, row in enumerate(rows):
            image = dataset.image_bytes(row["image_id"]) or b""
            content = {
                "item_id": FIRST_ID + number,
                "title": row["title"],
                "category": row["category"],
                "image_base64": base64.b64encode(image).decode(),
            }
            began = time.monotonic()
            client.post("/items", json=content).raise_for_status()
            _until_recommended(client, FIRST_ID + number, row["item_id"], began)
            took.append(time.monotonic() - began)
    yield line_below(
        "a new item, from its picture and title to its first recommendation: s", took, NEW_GOAL_S
    )


def _until_recommended(client: TestClient, item_id: int, like: int, began: float) -> None:
    """Wait until the new item is recommended to a visitor who looks at an item with the same content."""
    asked = {"user_id": 0, "k": 200, "session": like}
    while True:
        hits = client.get("/recommend", params=asked).json()["hits"]
        if item_id in [hit["item_id"] for hit in hits]:
            return
        if time.monotonic() - began > PATIENCE_S:
            raise RuntimeError(f"item {item_id} was not recommended within {PATIENCE_S:g} s")
        time.sleep(0.02)


def copy_run(run: Path, out: Path) -> Path:
    """Link the run into ``out``, with its own materialized copy of the store on SQLite."""
    out.mkdir()
    for path in run.iterdir():
        if path.name not in ("store", "run.json"):
            (out / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
    shutil.copytree(run / "store", out / "store")
    choices = json.loads((run / "run.json").read_text()) | {"profile": "embedded"}
    (out / "run.json").write_text(json.dumps(choices))
    use_profile(out / "store", "embedded")
    materialize(out / "store", known_until(out / "store"))
    return out
