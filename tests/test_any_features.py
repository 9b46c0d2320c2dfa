"""Whatever features a service names: offline = online = memory = a loop over the rows, on SQLite and on Redis.

Types, roles, nulls, times to live and corrections that were written late are drawn at random; a ranker trained on
them scores a request alike, whether its frame was joined or read.

Run: pytest tests/test_any_features.py
"""

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, write_embedding

from dataset.contracts import TIME
from feature_repo.create import create_store
from feature_repo.embeddings import as_stored, publish_embedding
from feature_repo.frames.join import training_frame
from feature_repo.item_matrix import embedding_of, open_item_matrix
from feature_repo.online import OnlineReader
from feature_repo.store import materialize, open_store
from feature_repo.vectors import Vectors
from moonstore.freshness import EPOCH, US
from ranker.score import Ranker
from ranker.train import train_ctr
from run.sizes import size

HOUR = DAY / 24
MOMENT = START + 20 * DAY
HISTORY = 5
TINY = replace(size("nano"), id_width=4, history=HISTORY, ranker_slots=96)
TYPES = {
    "Int32": pa.int32(),
    "Int64": pa.int64(),
    "Float32": pa.float32(),
    "Float64": pa.float64(),
    "String": pa.string(),
    "Bool": pa.bool_(),
    "UnixTimestamp": pa.timestamp("us", "UTC"),
    "Array(String)": pa.list_(pa.string()),
    "Array(Int32)": pa.list_(pa.int32()),
    "Array(Int64)": pa.list_(pa.int64()),
    "Array(Float32)": pa.list_(pa.float32()),
    "Array(Float64)": pa.list_(pa.float64()),
}
TTLS = (timedelta(0), timedelta(0), 3 * HOUR, 5 * DAY, 5 * DAY - US)
FILE = """
import json
from datetime import timedelta
from pathlib import Path
from feast import FeatureService, FeatureView, Field, FileSource
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feature_repo.entities import item, query, user

ENTITIES = {"user": user, "item": item, "query": query}
HERE = Path(__file__).parent
views = [
    FeatureView(
        name=name,
        entities=[ENTITIES[one["entity"]]],
        ttl=timedelta(microseconds=one["ttl_us"]),
        schema=[
            Field(name=f, dtype=eval(t), tags={"role": "candidate, behaviour"} if f in one["behaved"] else {})
            for f, t in one["fields"].items()
        ],
        source=FileSource(
            name=name, path=str(HERE / f"{name}.parquet"), timestamp_field="event_timestamp",
            created_timestamp_column="created" if one["created"] else "",
        ),
    )
    for name, one in json.loads((HERE / "views.json").read_text()).items()
]
globals().update({view.name: view for view in views})
ctr_v1 = FeatureService(name="ctr_v1", features=views)
retrieval_v1 = FeatureService(name="retrieval_v1", features=views[:2])
"""


def value_of(rng, kind):
    """A random value as a source may hold it."""
    if kind.startswith("Array(Float"):
        return [value_of(rng, kind[6:-1]) for _ in range(3)]  # a vector has one width
    if kind.startswith("Array"):
        return [value_of(rng, kind[6:-1]) for _ in range(rng.integers(0, 4))]
    if kind.startswith("Float"):
        return float(np.float32(rng.normal()))
    if kind == "Bool":
        return bool(rng.random() < 0.5)
    if kind == "UnixTimestamp":
        return (
            EPOCH + int(rng.integers(-(10**15), 2 * 10**15)) * US
        )  # some before 1970, all with microseconds
    if kind == "String":
        return f"é{rng.integers(0, 50)}" if rng.random() < 0.9 else ""
    return int(rng.integers(-(2**31), 2**31)) if kind == "Int32" else int(rng.integers(-(2**62), 2**62))


def planted(rng, keys, fields, created):
    """Rows of a view at random hours, some of them corrected later; every (key, time, created) once."""
    rows, seen = [], set()
    for _ in range(12 * len(keys)):
        key, hour = int(rng.choice(keys)), int(rng.integers(0, 22 * 24))
        late = int(rng.integers(0, 200)) if created else 0
        if (key, hour, late) in seen:
            continue
        seen.add((key, hour, late))
        values = {name: None if rng.random() < 0.2 else value_of(rng, kind) for name, kind in fields.items()}
        nan = {
            name: float("nan")
            for name, kind in fields.items()
            if kind.startswith("Float") and rng.random() < 0.1
        }
        rows.append(
            {"key": key, "event_timestamp": START + hour * HOUR, "created": START + (hour + late) * HOUR}
            | values
            | nan
        )
    return rows


def known(rows, key, when, ttl):
    """The row that was known of ``key`` before ``when``: the newest one, of equal times the one created last."""
    before = [row for row in rows if row["key"] == key and row["event_timestamp"] < when]
    if not before:
        return {}
    row = max(before, key=lambda row: (row["event_timestamp"], row["created"]))
    return row if not ttl or row["event_timestamp"] + ttl >= when - US else {}


def expected(row, name, kind):
    value = row.get(name)
    if value is None or value != value:
        return None
    if kind == "UnixTimestamp":  # Feast's online stores keep whole seconds, cut towards 1970
        return EPOCH + timedelta(seconds=int((value - EPOCH) / timedelta(seconds=1)))
    return value


class Repository:
    """Four random views in a repository of their own, and the rows they were given."""

    def __init__(self, folder, world, seed):
        rng = np.random.default_rng(seed)
        keys = {"user": world.user_ids[:-1], "item": world.item_ids[:-1], "query": np.arange(1, 5)}
        self.views, self.rows = {}, {}
        folder.mkdir(parents=True)
        for number, entity in enumerate(("user", "item", "item", "query")):
            fields = {
                f"f{number}_{place}": str(kind) for place, kind in enumerate(rng.choice(list(TYPES), 5))
            }
            behaved = [name for name in fields if entity == "item" and rng.random() < 0.6]
            created, ttl = bool(rng.random() < 0.5), TTLS[rng.integers(0, len(TTLS))]
            rows = planted(rng, keys[entity], fields, created)
            types = {"event_timestamp": TIME, "created": TIME} | {
                name: TYPES[of] for name, of in fields.items()
            }
            columns = {name: pa.array([row[name] for row in rows], of) for name, of in types.items()}
            table = pa.table({f"{entity}_id": pa.array([row["key"] for row in rows], pa.int64()), **columns})
            pq.write_table(table.take(rng.permutation(len(rows))), folder / f"view{number}.parquet")
            self.rows[f"view{number}"] = rows
            self.views[f"view{number}"] = {
                "entity": entity, "fields": fields, "created": created, "ttl_us": ttl // US,
                "behaved": behaved,
            }  # fmt: skip
        (folder / "views.json").write_text(json.dumps(self.views))
        (folder / "random_features.py").write_text(FILE)

    def expected(self, entity, key, when):
        """What a loop over the rows finds."""
        found = {}
        for name, view in self.views.items():
            if view["entity"] == entity:
                row = known(self.rows[name], key, when, timedelta(microseconds=view["ttl_us"]))
                found |= {field: expected(row, field, kind) for field, kind in view["fields"].items()}
        return found

    def of_behaviour(self, item, when):
        """What the same loop finds of an item as of a behaviour."""
        loop, behaved = self.expected("item", item, when), [v["behaved"] for v in self.views.values()]
        return {f"behaviour_{name}": loop[name] for some in behaved for name in some}


def behaved_rows(frame):
    """Of each behaviour: its item, its moment, and its features."""
    moments = [EPOCH + int(one) * US for one in frame.history.time_us]
    rows = frame.history.table().to_pylist()
    return [(row.pop("item_id"), when, row) for row, when in zip(rows, moments, strict=True)]


def trained(folder, store_dir, world, vectors):
    """A ranker that has seen all features; what it learned is of no matter."""
    rng = np.random.default_rng(0)
    count, each = 60, 4
    rows = {
        "request_id": np.repeat(np.arange(count), each),
        "user_id": np.repeat(rng.choice(world.user_ids, count), each),
        "time": pa.array(
            np.repeat([MOMENT - int(hour) * HOUR for hour in rng.integers(0, 400, count)], each), TIME
        ),
        "query_id": pa.array(np.repeat(rng.integers(1, 6, count), each), pa.int64()),
        "item_id": rng.choice(world.item_ids, count * each),
        "label": rng.integers(0, 2, count * each).astype(np.float32),
    }
    train = training_frame(store_dir, pa.table(rows), HISTORY)
    return Ranker.open(
        train_ctr(train, train, vectors, TINY, folder / "ranker", {}), vectors, train.signature
    )


def offline(store_dir, user, items, when, query):
    rows = pa.table(
        {
            "request_id": pa.array([0] * len(items), pa.int64()),
            "user_id": pa.array([user] * len(items), pa.int64()),
            "time": pa.array([when] * len(items), TIME),
            "query_id": pa.array([query] * len(items), pa.int64()),
            "item_id": pa.array(items, pa.int64()),
        }
    )
    return training_frame(store_dir, rows, HISTORY).take(0, 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("profile", ["embedded", pytest.param("redis", marks=pytest.mark.redis)])
def test_any_features_are_read_alike_everywhere(request, tiny_world, tmp_path, monkeypatch, profile, seed):
    monkeypatch.setattr("feature_repo.store.REPOSITORY", tmp_path / "repository")
    repository = Repository(tmp_path / "repository" / "mine", tiny_world, seed)
    url = request.getfixturevalue("redis_server").url(40 + seed) if profile == "redis" else None
    store_dir = tmp_path / "store"
    create_store(store_dir, tiny_world.dataset, tiny_world.split, profile, url)
    artifact = write_embedding(tmp_path / "e", tiny_world, 4, START)
    publish_embedding(store_dir, artifact)
    materialize(store_dir, MOMENT)
    reader = OnlineReader(store_dir, HISTORY)
    memory = reader.with_items(open_item_matrix(open_store(store_dir), embedding_of(store_dir, artifact.id)))
    items = [*tiny_world.item_ids.tolist(), 99]
    vectors = as_stored(Vectors.open(artifact), store_dir)
    ranker = trained(tmp_path, store_dir, tiny_world, vectors)
    some = behaved = 0
    for user, query in zip([*tiny_world.user_ids[-4:].tolist(), 77], (1, None, 3, 4, 5), strict=True):
        frame = offline(store_dir, user, items, MOMENT, query)
        for read in (reader, memory):
            online = read.read(user, items, MOMENT, query)
            assert online.requests.equals(frame.requests) and online.candidates.equals(frame.candidates)
            assert behaved_rows(online) == behaved_rows(frame)
            np.testing.assert_allclose(ranker.score(online), ranker.score(frame), rtol=0, atol=1e-6)
        for item, when, told in behaved_rows(frame):
            assert told == repository.of_behaviour(item, when)
            behaved += sum(value is not None for value in told.values())
        (told,) = frame.requests.to_pylist()
        for name, value in (
            repository.expected("user", user, MOMENT) | repository.expected("query", query, MOMENT)
        ).items():
            assert told[name] == value, name
            some += value is not None
        for item, told in zip(items, frame.candidates.to_pylist(), strict=True):
            loop = repository.expected("item", item, MOMENT)
            assert {name: told[name] for name in loop} == loop, item
            some += sum(value is not None for value in loop.values())
    assert some > 50 and behaved > 10, "a test of nulls alone"


def test_earlier_requests_see_what_was_known_then(tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr("feature_repo.store.REPOSITORY", tmp_path / "repository")
    repository = Repository(tmp_path / "repository" / "mine", tiny_world, 5)
    create_store(tmp_path / "store", tiny_world.dataset, tiny_world.split)
    rng, items = np.random.default_rng(0), tiny_world.item_ids.tolist()
    for hour in rng.integers(0, 22 * 24, 6).tolist():
        for when in (START + hour * HOUR, START + hour * HOUR + US):
            user, query = int(rng.choice(tiny_world.user_ids)), int(rng.integers(1, 6))
            frame = offline(tmp_path / "store", user, items, when, query)
            (told,) = frame.requests.to_pylist()
            loop = repository.expected("user", user, when) | repository.expected("query", query, when)
            assert {name: told[name] for name in loop} == loop
            for item, told in zip(items, frame.candidates.to_pylist(), strict=True):
                loop = repository.expected("item", item, when)
                assert {name: told[name] for name in loop} == loop
