"""The walkthrough of docs/features.md runs as printed: four features of a shop's own, from file to explanation."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, make_world, write_embedding
from ranker_world import auc
from typer.testing import CliRunner

from dataset.contracts import TIME
from feature_repo import sources as places
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.frames.join import training_frame
from feature_repo.online import OnlineReader
from feature_repo.store import REPOSITORY, activate, materialize
from feature_repo.vectors import Vectors
from moon.cli import app
from moonstore.freshness import EPOCH, US
from ranker.explain import explain
from ranker.score import Ranker
from ranker.train import train_ctr
from run.artifacts import ArtifactError
from run.sizes import size

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "features.md").read_text()
(FILE,) = re.findall(
    r"^```python\n(# feature_repo/mine/shop.py\n.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL
)
(CHECK,) = re.findall(r"^```python\n(# in the folder feature_repo.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(COMMANDS,) = re.findall(
    r"^```\n(moon ranker.*?)^```", PAGE.partition("## What a feature is worth")[0], re.MULTILINE | re.DOTALL
)
MOMENT = START + 40 * DAY
TINY = replace(size("nano"), id_width=4, history=5, ranker_slots=96)
OWN = ("discount", "brand", "minutes_since_cart", "device")


def sources(folder, item_ids, user_ids, moment=MOMENT):
    """The walkthrough's file, offers of half of the items, and carts of half of the users."""
    folder.mkdir(parents=True)
    (folder / "shop.py").write_text(FILE)
    items, users = item_ids[::2], user_ids[::2]
    discount = np.arange(len(items)) % 5 / 10
    stamp = pa.array([moment - 2 * DAY] * len(items), TIME)
    table = {
        "item_id": items,
        "discount": pa.array(discount, pa.float32()),
        "brand": [f"b{number % 3}" for number in range(len(items))],
        "event_timestamp": stamp,
    }
    pq.write_table(pa.table(table), folder / "offers.parquet")
    cart_us = (moment - DAY / 2 - EPOCH) // US
    stamp = pa.array([moment - DAY / 2] * len(users), TIME)
    table = {"user_id": users, "last_cart_us": pa.array([cart_us] * len(users)), "event_timestamp": stamp}
    pq.write_table(pa.table(table), folder / "carts.parquet")
    return dict(zip(items.tolist(), discount.astype(np.float32).tolist(), strict=True)), set(users.tolist())


def asked(world, requests, seed):
    """Requests of MOMENT; phones click seven of eight items, other devices one of eight."""
    draw = np.random.default_rng(seed)
    phone = draw.random(requests) < 0.5
    items = [draw.choice(world.item_ids, 5, replace=False) for _ in range(requests)]
    each = np.repeat(phone, 5)
    return pa.table(
        {
            "request_id": np.repeat(np.arange(requests), 5),
            "user_id": np.repeat(draw.choice(world.user_ids, requests), 5),
            "time": pa.array([MOMENT] * 5 * requests, TIME),
            "query_id": pa.nulls(5 * requests, pa.int64()),
            "item_id": np.concatenate(items),
            "device": pa.array(np.where(each, "phone", "desk").tolist()),
            "label": (draw.random(5 * requests) < np.where(each, 0.875, 0.125)).astype(np.float32),
        }
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder, world = tmp_path_factory.mktemp("walkthrough"), make_world(seed=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("feature_repo.store.REPOSITORY", folder / "repository")
        discount, carts = sources(folder / "repository" / "mine", world.item_ids, world.user_ids)
        create_store(folder / "store", world.dataset, world.split)
        artifact = write_embedding(folder / "e", world, 4, START)
        publish_embedding(folder / "store", artifact)
        materialize(folder / "store", MOMENT)
        train, valid, test = (
            training_frame(folder / "store", asked(world, count, seed), 5)
            for count, seed in ((150, 0), (40, 1), (60, 2))
        )
        vectors = Vectors.open(artifact)
        made = train_ctr(train, valid, vectors, TINY, folder / "ranker", {})
        yield folder, world, made, vectors, test, discount, carts


def test_every_frame_holds_the_four_features(shop):
    _, world, _, _, test, discount, carts = shop
    frame = test.take(0, len(test))
    place = {item: number for number, item in enumerate(world.item_ids[::2].tolist())}
    for row in frame.candidates.to_pylist():
        number = place.get(row["item_id"])
        assert row["discount"] == discount.get(row["item_id"])
        assert row["brand"] == (None if number is None else f"b{number % 3}")
    for row in frame.requests.to_pylist():
        assert row["minutes_since_cart"] == (720 if row["user_id"] in carts else None)
        assert row["device"] in ("phone", "desk")


def test_the_ranker_reads_explains_and_needs_them(shop):
    folder, _, made, vectors, test, *_ = shop
    ranker, frame = Ranker.open(made, vectors, test.signature), test.take(0, len(test))
    assert auc(frame.candidates["label"].to_numpy() > 0, ranker.score(frame)) > 0.75
    parts = explain(ranker, frame)
    weight = {name: float(np.abs(part).mean()) for name, part in parts.items()}
    assert set(OWN) <= set(weight) and max(weight, key=weight.__getitem__) == "device"
    ours = replace(test.signature, features=tuple(f for f in test.signature.features if f.name not in OWN))
    with pytest.raises(ArtifactError) as refused:
        Ranker.open(made, vectors, ours)
    assert all(f"lost: {name} " in str(refused.value) for name in OWN)


def test_the_service_scores_as_the_frame_does(shop):
    folder, _, made, vectors, test, *_ = shop
    ranker, reader = Ranker.open(made, vectors), OnlineReader(folder / "store", 5)
    for place in range(5):
        frame = test.take(place, place + 1)
        (request,) = frame.requests.to_pylist()
        items = frame.candidates["item_id"].to_pylist()
        online = reader.read(request["user_id"], items, MOMENT, context={"device": request["device"]})
        np.testing.assert_allclose(ranker.score(online), ranker.score(frame), atol=1e-6)
        other = reader.read(request["user_id"], items, MOMENT, context={})
        assert not np.allclose(ranker.score(other), ranker.score(frame), atol=1e-3)


@pytest.mark.slow
def test_the_commands_do_as_printed(finished_run, tmp_path, monkeypatch, capsys):
    """On a run of a small shop, one epoch and one seed: the file alone is new, and no command but these is needed."""
    run = shutil.copytree(finished_run[0], tmp_path / "runs" / "marketplace")
    (tmp_path / "runs" / "last.json").write_text(json.dumps({"folder": str(run)}))
    data = run / "store" / places.DATA
    items, users = (
        pq.read_table(data / f"{one}_profile.parquet")[f"{one}_id"].to_numpy() for one in ("item", "user")
    )
    log = pq.read_table(data / places.LOG, columns=["available_time"])["available_time"]
    moment = log[len(log) // 2].as_py()
    discount, _ = sources(tmp_path / "repository" / "mine", items, users, moment)
    monkeypatch.setattr("feature_repo.store.REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr("ranker.train.EPOCHS", 1)
    monkeypatch.setattr("ranker.train.PATIENCE", (2, 2))
    monkeypatch.setattr("evaluation.ablation.SEEDS", (0, 1))
    monkeypatch.chdir(tmp_path)

    printed = {}
    for line in COMMANDS.splitlines():
        program, *words = shlex.split(line, comments=True)
        done = CliRunner().invoke(app, words)
        assert program == "moon" and done.exit_code == 0, (line, done.output, done.exception)
        printed[" ".join(words[:2])] = done.stdout
    config = json.loads((run / "ranker_full" / "config.json").read_text())
    assert set(OWN) <= {one["name"] for one in config["inputs"]["signature"]["features"]}
    assert set(OWN) <= set(config["inputs"]["rules"])
    for name in OWN:
        assert re.search(
            rf"^{name} +auc 0\.\d+ with all, 0\.\d+ without", printed["ranker --without"], re.MULTILINE
        )
    online = OnlineReader(run / "store", 5).read_items(items, moment).columns["discount"]
    assert online.to_pylist() == [discount.get(item) for item in items.tolist()]

    shutil.copy(REPOSITORY / "feature_store.yaml", tmp_path / "repository")
    activate(run / "store")  # as the journey does
    monkeypatch.chdir(tmp_path / "repository")
    before = OnlineReader(run / "store", 5)
    exec(compile(CHECK, "docs/features.md", "exec"), {})
    assert (
        capsys.readouterr().out
        == f"discount: expected 0 to 0.4, found 1 others in {len(discount):,}, such as 0.9\n"
    )
    (pushed,) = before.read_items(items[::2][-1:], moment).columns["discount"].to_pylist()
    assert pushed == np.float32(0.9)
