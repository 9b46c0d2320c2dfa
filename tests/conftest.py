"""A small world every test can use, and a real Redis server.

``tiny_world`` is random but seeded and holds the awkward cases on purpose: several events known at the same
microsecond, requests at exactly the time something became known, users and items without any event, missing
ages, prices, categories and attributes.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from needs import NEEDS, missing

from dataset import contracts
from dataset.contracts import TIME
from dataset.months import Month, months_of
from evaluation.bench import local_redis
from evaluation.bench.local_redis import RedisServer, free_port  # noqa: F401
from run.artifacts import Artifact, open_artifact, write_artifact

pytest.register_assert_rewrite("contracts")  # the suites: what failed is shown as in a test module


ROOT = Path(__file__).resolve().parents[1]
REDIS = local_redis.BINARY
START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that takes a Redis server by its fixture needs Redis: it is marked so, before ``-m`` chooses."""
    for item in items:
        if isinstance(item, pytest.Function) and {"redis_server", "own_redis"} & set(item.fixturenames):
            item.add_marker("redis")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test where what it needs is missing; one that does not ask for Redis does not find it either."""
    asked = item.get_closest_marker("redis") is not None
    local_redis.BINARY = REDIS if asked else "redis-server of a test without the marker 'redis'"
    for name in NEEDS:
        for marker in item.iter_markers(name):
            if why := missing(name, *marker.args):
                pytest.skip(why)


@dataclass(frozen=True)
class TinyDataset:
    """The attributes of ``dataset.tables.Dataset`` that do not need a file."""

    items: pa.Table
    users: pa.Table
    queries: pa.Table

    @property
    def artifact(self) -> Artifact:
        """Its configuration says nothing."""
        return Artifact(Path("tiny"), "dataset", "0" * 16, {}, {})

    def image_bytes(self, image_id: str | None) -> bytes | None:
        """There are no pictures."""
        return None


@dataclass(frozen=True)
class TinySplit:
    """The attributes of ``dataset.split.Split`` that features are made from."""

    log: pa.Table

    @property
    def months(self) -> list[Month]:
        """The log in months."""
        return months_of(self.log)


@dataclass(frozen=True)
class TinyWorld:
    dataset: TinyDataset
    split: TinySplit

    @property
    def end(self) -> datetime:
        return START + 60 * DAY

    @cached_property
    def item_ids(self) -> np.ndarray:
        return self.dataset.items.column("item_id").to_numpy()

    @cached_property
    def user_ids(self) -> np.ndarray:
        return self.dataset.users.column("user_id").to_numpy()


def times(values: list[datetime]) -> pa.Array:
    return pa.array(values, TIME)


def make_world(seed: int, users: int = 12, items: int = 20, events: int = 400, days: int = 55) -> TinyWorld:
    """A world of ``events`` log events; times are whole hours, so that many coincide."""
    rng = np.random.default_rng(seed)
    item_ids = np.sort(rng.choice(2**40, items, replace=False)).astype(np.int64) + 1
    user_ids = np.sort(rng.choice(2**40, users, replace=False)).astype(np.int64) + 1
    query_ids = np.arange(1, 6, dtype=np.int64)
    item_seen = [START + int(hour) * DAY / 24 for hour in rng.integers(0, days * 12, items)]
    item_table = pa.table(
        [
            pa.array(item_ids),
            pa.array([f"i{n}" for n in range(items)]),
            pa.array([f"item {n}" if n % 5 else None for n in range(items)]),
            pa.nulls(items, pa.string()),
            pa.array([[["shop", f"c{n % 3}", f"leaf{n % 4}"], ["shop"], []][n % 3] for n in range(items)]),
            pa.array(
                [[("colour", "red"), ("shape", f"s{n}")] if n % 2 else [] for n in range(items)],
                contracts.ITEMS.field("attributes").type,
            ),
            pa.array([float(n) + 0.5 if n % 4 else None for n in range(items)], pa.float32()),
            pa.array(item_ids // 2),
            pa.nulls(items, pa.string()),
            times(item_seen),
        ],
        schema=contracts.ITEMS,
    )
    user_table = pa.table(
        [
            pa.array(user_ids),
            pa.array([f"u{n}" for n in range(users)]),
            pa.array([20.0 + 3 * n if n % 3 else None for n in range(users)], pa.float32()),
            pa.array([f"g{n % 2}" if n % 4 else None for n in range(users)]),
            times([START + int(hour) * DAY / 24 for hour in rng.integers(0, days * 6, users)]),
        ],
        schema=contracts.USERS,
    )
    query_table = pa.table(
        [
            pa.array(query_ids),
            pa.array([f"query {n}" for n in query_ids]),
            *[pa.nulls(5, pa.string())] * 2,
        ],
        schema=contracts.QUERIES,
    )
    # The last item and the last user never appear in the log.
    log = _log(rng, user_ids[:-1], item_ids[:-1], query_ids, events, days)
    return TinyWorld(TinyDataset(item_table, user_table, query_table), TinySplit(log))


def _log(rng, user_ids, item_ids, query_ids, events, days) -> pa.Table:
    hour = rng.integers(0, days * 24, events)
    event_time = [START + int(h) * DAY / 24 for h in hour]
    kind = rng.choice(
        contracts.EVENT_TYPES, events, p=[0.5, 0.25, 0.05, 0.05, 0.15] if events else None
    ).tolist()
    table = pa.table(
        [
            pa.array(rng.permutation(events).astype(np.int64) + 1),
            pa.array(rng.choice(user_ids, events)),
            pa.array(rng.choice(item_ids, events)),
            pa.array(kind, pa.string()),
            times(event_time),
            times([when + timedelta(hours=1) for when in event_time]),
            pa.array([int(q) if q else None for q in rng.integers(0, 6, events)], pa.int64()),
            pa.nulls(events, pa.int32()),
            pa.nulls(events, pa.int64()),
            pa.array([float(rng.integers(1, 6)) if k == "rating" else None for k in kind], pa.float32()),
            pa.nulls(events, pa.int64()),  # as in a log of release 0.1.0: the rows are in order
        ],
        schema=contracts.EVENTS,
    )
    return table.sort_by([("available_time", "ascending"), ("event_id", "ascending")])


def make_requests(world: TinyWorld, seed: int, requests: int = 40, most: int = 6) -> pa.Table:
    """Logged request rows, many of them at exactly an hour at which something became known."""
    rng = np.random.default_rng(seed)
    rows = []
    for request in range(requests):
        when = START + int(rng.integers(0, 60 * 24)) * DAY / 24
        user = int(rng.choice(np.append(world.user_ids, 77)))
        query = int(rng.integers(1, 6)) if rng.random() < 0.3 else None
        for position in range(int(rng.integers(1, most + 1))):
            item = int(rng.choice(np.append(world.item_ids, 99)))
            rows.append((request * 3 + 1, user, when, query, item, position, float(rng.random() < 0.3)))
    names = ("request_id", "user_id", "time", "query_id", "item_id", "position", "label")
    types = (pa.int64(), pa.int64(), TIME, pa.int64(), pa.int64(), pa.int32(), pa.float32())
    columns = zip(*rows, strict=True)
    return pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})


def write_embedding(
    folder: Path,
    world: TinyWorld,
    width: int,
    as_of: datetime,
    seed: int = 0,
    vectors: np.ndarray | None = None,
):
    """An embedding artifact of unit vectors for every item and query of a world; those of items random or given."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    config = {"encoder_id": f"encoder{seed}", "width": width, "as_of": as_of.isoformat(), "widths": [width]}
    with write_artifact(folder, "embedding", config) as out:
        for key, ids in (("item_id", world.item_ids), ("query_id", np.arange(1, 6, dtype=np.int64))):
            given = vectors if key == "item_id" else None
            vector = (rng.normal(size=(len(ids), width)) if given is None else given).astype(np.float32)
            vector /= np.linalg.norm(vector, axis=1, keepdims=True)
            name = {"item_id": "items", "query_id": "queries"}[key]
            save_file({key: ids, "vector": vector}, out / f"{name}.safetensors")
    return open_artifact(folder, "embedding")


@pytest.fixture(scope="session")
def tiny_world() -> TinyWorld:
    return make_world(seed=1)


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch computes with one thread while a module's tests run: small models are faster, results the same."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """The Redis server of this session: a test takes a database of it that no other test uses."""
    with RedisServer("--dir", str(tmp_path_factory.mktemp("redis")), "--databases", "64") as server:
        yield server


@pytest.fixture
def own_redis(tmp_path_factory):
    """A Redis server of one test, which may kill it."""
    with RedisServer("--dir", str(tmp_path_factory.mktemp("own_redis"))) as server:
        yield server


@pytest.fixture(scope="session")
def measured(request, tmp_path_factory):
    """``measured(name)`` runs a benchmark once in this session; a test of one that starts Redis is marked so."""
    from bench_world import measure  # late: it imports every benchmark

    @cache
    def measured(name):
        return measure(
            name, tmp_path_factory.mktemp(name), lambda: request.getfixturevalue("finished_run")[0]
        )

    return measured


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished run of a small shop (copy it before changing it), what it printed, and what it printed again."""
    link = ROOT / "feature_repo" / "data"
    active = os.readlink(link) if link.is_symlink() else None
    folder = tmp_path_factory.mktemp("journey")
    command = [sys.executable, "-m", "moon", "demo", "--data", "marketplace:3000"]
    try:
        done = [
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)
            for _ in range(2)
        ]
    finally:
        link.unlink(missing_ok=True)
        if active is not None:
            link.symlink_to(active, target_is_directory=True)
    return folder / "runs" / "marketplace", *done
