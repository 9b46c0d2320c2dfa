"""On-demand views are computed by the same code for training and for an answer, from the store and from the request.

Run: pytest tests/test_on_demand.py
"""

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, write_embedding

from dataset.contracts import TIME, DataError
from feature_repo.create import create_store
from feature_repo.embeddings import publish_embedding
from feature_repo.frames.context import context_unknown
from feature_repo.frames.join import training_frame
from feature_repo.frames.shards import open_frame, write_frame
from feature_repo.frames.source import FrameSource
from feature_repo.item_matrix import embedding_of, open_item_matrix
from feature_repo.online import OnlineReader
from feature_repo.repository import definitions
from feature_repo.store import materialize, open_store
from feature_repo.views import EmbeddingRecord
from moonstore.errors import StoreError
from moonstore.freshness import EPOCH, US

MOMENT = START + 20 * DAY
MINUTE_US = 60_000_000
CARTS = {100: START + 2 * DAY, 101: START + 19 * DAY}  # place of a user -> when the last cart was
FILE = """
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import FeatureService, FeatureView, Field, FileSource, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float64, Int64, String

from feature_repo.entities import item, user
from feature_repo.features import item_profile, user_profile

HERE = Path(__file__).parent
carts = FeatureView(
    name="carts", entities=[user], ttl=timedelta(0),
    schema=[Field(name="last_cart_us", dtype=Int64), Field(name="budget", dtype=Float64)],
    source=FileSource(name="carts", path=str(HERE / "carts.parquet"), timestamp_field="event_timestamp"),
)
request = RequestSource(name="request", schema=[
    Field(name="device", dtype=String), Field(name="time_us", dtype=Int64),
])


@on_demand_feature_view(
    sources=[carts, request], schema=[Field(name="minutes_since_cart", dtype=Float64)]
)
def since_cart(inputs: pd.DataFrame) -> pd.DataFrame:
    minute_us = 60_000_000
    minutes = (inputs["time_us"] - inputs["last_cart_us"]) / minute_us
    return pd.DataFrame({"minutes_since_cart": minutes})


@on_demand_feature_view(sources=[request], schema=[Field(name="device", dtype=String)], mode="python")
def sent(inputs: dict) -> dict:
    return {"device": [None if one is None else one.lower() for one in inputs["device"]]}


@on_demand_feature_view(sources=[item_profile, carts, request], schema=[Field(name="affordable", dtype=Bool)])
def offer(inputs: pd.DataFrame) -> pd.DataFrame:
    known = inputs["price"].notna() & inputs["budget"].notna()
    return pd.DataFrame({"affordable": (inputs["price"] <= inputs["budget"]).where(known, None)})


ctr_v1 = FeatureService(
    name="ctr_v1", features=[user_profile, item_profile[["category", "spu"]], since_cart, sent, offer],
    tags={"vectors": "item"},
)
"""


def make_repository(folder, world, text=FILE):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "carts.py").write_text(text)
    users = {int(world.user_ids[place % len(world.user_ids)]): when for place, when in CARTS.items()}
    rows = {
        "user_id": pa.array(list(users), pa.int64()),
        "last_cart_us": pa.array([(when - EPOCH) // US for when in users.values()], pa.int64()),
        "budget": pa.array([3.0, 8.0], pa.float64()),
        "event_timestamp": pa.array([START + DAY] * 2, TIME),
    }
    pq.write_table(pa.table(rows), folder / "carts.parquet")
    return users


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def shop(request, tiny_world, tmp_path, monkeypatch):
    """A loaded store with on-demand views, who had a cart when, and readers with and without memory."""
    monkeypatch.setattr("feature_repo.store.REPOSITORY", tmp_path / "repository")
    carts = make_repository(tmp_path / "repository" / "mine", tiny_world)
    url = request.getfixturevalue("redis_server").url(45) if request.param == "redis" else None
    store_dir = tmp_path / "store"
    create_store(store_dir, tiny_world.dataset, tiny_world.split, request.param, url)
    artifact = write_embedding(tmp_path / "e", tiny_world, 4, START)
    publish_embedding(store_dir, artifact)
    materialize(store_dir, MOMENT)
    reader = OnlineReader(store_dir, 5)
    memory = reader.with_items(open_item_matrix(open_store(store_dir), embedding_of(store_dir, artifact.id)))
    return store_dir, carts, (reader, memory)


def rows_of(users, items, devices, when: datetime = MOMENT):
    each = len(items)
    return pa.table(
        {
            "request_id": pa.array(np.repeat(np.arange(len(users)), each)),
            "user_id": pa.array(np.repeat(np.array(users, np.int64), each)),
            "time": pa.array([when] * (each * len(users)), TIME),
            "query_id": pa.nulls(each * len(users), pa.int64()),
            "item_id": pa.array(np.tile(np.array(items, np.int64), len(users))),
            "device": pa.array(np.repeat(np.array(devices, object), each).tolist(), pa.string()),
        }
    )


def test_training_and_answer_compute_the_same_values_and_the_right_ones(tiny_world, shop):
    store_dir, carts, readers = shop
    users = [*carts, 77]
    items, devices = [*tiny_world.item_ids.tolist(), 99], ["Phone", None, "TABLET"]
    frames = training_frame(store_dir, rows_of(users, items, devices), 5)
    computed = [one for one in frames.signature.features if one.view in ("since_cart", "sent", "offer")]
    assert [(one.name, one.role) for one in computed] == [
        ("minutes_since_cart", "request"), ("device", "request"), ("affordable", "candidate"),
    ]  # fmt: skip
    budget = dict(zip(carts, (3.0, 8.0), strict=True))
    price = {
        one["item_id"]: one["price"]
        for one in tiny_world.dataset.items.to_pylist()
        if one["first_seen"] < MOMENT
    }
    judged = set()
    for place, (user, device) in enumerate(zip(users, devices, strict=True)):
        frame = frames.take(place, place + 1)
        (told,) = frame.requests.to_pylist()
        since = (MOMENT - carts[user]) / US / MINUTE_US if user in carts else None
        assert told["minutes_since_cart"] == since and told["device"] == (device and device.lower())
        for item, row in zip(items, frame.candidates.to_pylist(), strict=True):
            known = price.get(item) is not None and user in budget
            assert row["affordable"] == (price[item] <= budget[user] if known else None)
            judged.add(row["affordable"])
        for reader in readers:
            online = reader.read(user, items, MOMENT, context={"device": device} if device else None)
            assert online.candidates.select(frame.candidates.column_names).equals(frame.candidates)
            names = [name for name in frame.requests.column_names if name != "request_id"]
            assert online.requests.select(names).equals(frame.requests.select(names))
    assert judged == {True, False, None}


def test_feasts_own_reader_computes_the_same(shop):
    store_dir, carts, (reader, _) = shop
    user = next(iter(carts))
    answer = (
        open_store(store_dir)
        .get_online_features(
            ["since_cart:minutes_since_cart"],
            [{"user_id": user, "device": "Phone", "time_us": (MOMENT - EPOCH) // US}],
        )
        .to_dict()
    )
    ours = reader.read_user(user, MOMENT, context={"device": "Phone"}).requests
    assert answer["minutes_since_cart"] == ours["minutes_since_cart"].to_pylist()


def test_a_frame_on_disk_keeps_what_was_computed(tiny_world, shop, tmp_path):
    store_dir, carts, _ = shop
    rows = rows_of([*carts], tiny_world.item_ids[:3].tolist(), ["Phone", "desk"])
    source = FrameSource(store_dir, lambda: [rows], 5, {})
    frame = open_frame(write_frame(source, tmp_path / "frame").path, store_dir)
    direct = training_frame(store_dir, rows, 5)
    assert frame.signature == direct.signature
    assert frame.take(0, 2).candidates.equals(direct.take(0, 2).candidates)
    assert frame.take(0, 2).requests.equals(direct.take(0, 2).requests)
    assert frame.requests["device"].to_pylist() == ["phone", "desk"]


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ({"devise": "phone"}, r"^context: expected some of device, found 'devise'. Did you mean device\?$"),
        ({"device": 3}, "^context: expected device as string, found int"),
        ({"time_us": 3}, "^context: expected some of device, found 'time_us'"),
    ],
)
def test_a_context_that_no_view_reads_is_refused(shop, context, said):
    _, carts, (reader, _) = shop
    with pytest.raises(DataError, match=said):
        reader.read_user(next(iter(carts)), MOMENT, context=context)


GIVES = 'return pd.DataFrame({"minutes_since_cart": minutes})'
REAL = "    if (inputs['time_us'] > 10**15).all():  # not the row that Feast tries when it registers a view\n        "


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "return pd.DataFrame({'minutes': minutes})",
            "KeyError: .*must give minutes_since_cart .double. and",
        ),
        ("raise ValueError('no cart')", "ValueError: no cart"),
        ("return pd.DataFrame({'minutes_since_cart': ['long'] * len(minutes)})", "ArrowInvalid"),
        (
            "return pd.DataFrame({'minutes_since_cart': [1.0, 2.0, 3.0]})",
            "expected 1 values each, found .* 3",
        ),
    ],
)
def test_a_function_that_does_not_give_what_it_says_is_named(tiny_world, tmp_path, monkeypatch, wrong, said):
    monkeypatch.setattr("feature_repo.store.REPOSITORY", tmp_path / "repository")
    text = FILE.replace(f"    {GIVES}", f"{REAL}{wrong}\n    {GIVES}")
    assert text != FILE
    carts = make_repository(tmp_path / "repository" / "mine", tiny_world, text)
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    with pytest.raises(StoreError, match=f"^on-demand view since_cart: .*{said}"):
        training_frame(tmp_path / "store", rows_of([next(iter(carts))], [1], ["phone"]), 5)


def test_a_function_that_needs_its_module_is_refused_because_feast_keeps_its_text_alone(tiny_world, tmp_path):
    text = FILE.replace("    minute_us = 60_000_000\n", "").replace(
        "HERE =", "minute_us = 60_000_000\nHERE ="
    )
    make_repository(tmp_path / "mine", tiny_world, text)
    with pytest.raises(
        StoreError, match="on-demand view since_cart: its function uses minute_us of its module"
    ):
        definitions(EmbeddingRecord(), tmp_path)


def test_logged_context_trains_what_a_caller_sends(tiny_world, shop, tmp_path):
    """The device of each event, kept beside the log, is that of its requests; each frame of it is another one."""
    store_dir, carts, (reader, _) = shop
    items, logged = tiny_world.item_ids[:2].tolist(), ["Phone", None, "TABLET"]
    sent = rows_of([*carts, 77], items, logged)
    rows = sent.drop_columns(["device"]).append_column("event_id", pa.array([10, 11, 20, 21, 30, 31]))
    blank = FrameSource(store_dir, lambda: [rows], 5, {}).config["store"]
    columns = {"event_id": [99, 30, 10, 11, 31, 20], "device": ["no", "TABLET", "Phone", "web", "web", None]}
    pq.write_table(pa.table({**columns, "colour": list("abcdef")}), store_dir / "data/event_context.parquet")
    found, expected = training_frame(store_dir, rows, 5), training_frame(store_dir, sent, 5)
    assert found.requests["device"].to_pylist() == ["phone", None, "tablet"]
    assert found.requests.equals(expected.requests)
    assert "colour" not in found.given.column_names
    source = FrameSource(store_dir, lambda: [rows], 5, {})
    assert source.config["store"] != blank  # a frame without the context is not taken for one with it
    frame = open_frame(write_frame(source, tmp_path / "frame").path, store_dir)
    assert frame.requests["device"].to_pylist() == ["phone", None, "tablet"]
    online = reader.read_user(77, MOMENT, context={"device": "TABLET"}).requests
    assert online["device"].to_pylist() == ["tablet"]


def test_logged_context_of_another_type_is_refused(tiny_world, shop):
    store_dir, carts, _ = shop
    rows = rows_of([77], tiny_world.item_ids[:1].tolist(), [None]).drop_columns(["device"])
    lists = pa.array([["a"]], pa.list_(pa.string()))
    pq.write_table(pa.table({"event_id": [1], "device": lists}), store_dir / "data/event_context.parquet")
    with pytest.raises(DataError, match="reads device as string, the log has list"):
        training_frame(store_dir, rows.append_column("event_id", pa.array([1])), 5)


@pytest.mark.parametrize("shop", ["embedded"], indirect=True)
def test_what_callers_send_is_said_to_be_unknown_where_no_impressions_tell_it(shop):
    store_dir, *_ = shop
    assert "trained without what callers send (device)" in context_unknown(store_dir, shows=False)
    assert context_unknown(store_dir, shows=True) == ""
