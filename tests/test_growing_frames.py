"""A frame that is made again takes the months whose inputs have not changed from the frame before, and no other.

Run: pytest tests/test_growing_frames.py
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, date, datetime, time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import TinySplit, make_requests, make_world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.create import create_store
from feature_repo.frames import shards
from feature_repo.frames.inputs import Fingerprint
from feature_repo.frames.shards import open_frame, write_frame
from feature_repo.frames.source import FrameSource
from run.artifacts import open_artifact, write_artifact

HISTORY = 4
JANUARY, FEBRUARY, MARCH = "2026-01", "2026-02", "2026-03"


@pytest.fixture(scope="module")
def world():
    return make_world(seed=3)


@pytest.fixture(scope="module")
def rows(world):
    """Requests in the order of time, in three months."""
    made = make_requests(world, seed=2, requests=60)
    return made.sort_by([("time", "ascending"), ("request_id", "ascending"), ("position", "ascending")])


@pytest.fixture
def joined(monkeypatch):
    """The months of the requests that were joined, call after call."""
    found, join = [], shards.training_frame

    def noting(store_dir, rows, *rest):
        found.append(sorted({f"{when:%Y-%m}" for when in rows["time"].to_pylist()}))
        return join(store_dir, rows, *rest)

    monkeypatch.setattr(shards, "training_frame", noting)
    return found


def until(log: pa.Table, day: date) -> pa.Table:
    return log.filter(pc.less(log["available_time"], datetime.combine(day, time.min, UTC)))


def made(world, log, rows, folder: Path) -> dict[str, bytes]:
    """Create the store and write the frame; its files."""
    create_store(folder / "store", world.dataset, TinySplit(log))
    said = Fingerprint()
    said.add(rows)
    with write_artifact(folder / "split", "split", {"rows": said.digest().hex()}):
        pass
    parents = {"split": open_artifact(folder / "split", "split")}
    frame = write_frame(FrameSource(folder / "store", lambda: [rows], HISTORY, parents), folder / "frame")
    return {
        path.relative_to(frame.path).as_posix(): path.read_bytes()
        for path in sorted(frame.path.rglob("*.parquet"))
    }


def afresh(world, log, rows, folder: Path) -> dict[str, bytes]:
    shutil.rmtree(folder / "afresh", ignore_errors=True)
    return made(world, log, rows, folder / "afresh")


def with_price(world, place: int):
    items = world.dataset.items
    price = items["price"].to_pylist()
    price[place] = 999.0
    column = items.column_names.index("price")
    table = items.set_column(column, items.field(column), pa.array(price, pa.float32()))
    return replace(world, dataset=replace(world.dataset, items=table))


def test_a_new_day_joins_the_requests_of_its_month(world, rows, tmp_path, joined):
    log = world.split.log
    made(world, until(log, date(2026, 2, 10)), rows, tmp_path)
    joined.clear()
    assert made(world, log, rows, tmp_path) == afresh(world, log, rows, tmp_path)
    assert joined == [[FEBRUARY, MARCH], [JANUARY, FEBRUARY, MARCH]]


def test_another_label_or_part_joins_the_requests_of_its_month(world, rows, tmp_path, joined):
    log = world.split.log
    made(world, log, rows, tmp_path)
    label = rows["label"].to_numpy().copy()
    label[0] = 1 - label[0]
    changed = rows.set_column(rows.column_names.index("label"), "label", pa.array(label))
    joined.clear()
    assert made(world, log, changed, tmp_path) == afresh(world, log, changed, tmp_path)
    assert joined[0] == [JANUARY]


def test_requests_that_go_take_their_month_with_them_and_the_others_stay(world, rows, tmp_path, joined):
    made(world, world.split.log, rows, tmp_path)
    late = rows.filter(pc.greater_equal(rows["time"], rows["time"][len(rows) // 2]))
    joined.clear()
    assert made(world, world.split.log, late, tmp_path) == afresh(world, world.split.log, late, tmp_path)
    assert len(joined) == 2 and joined[0] == joined[1][:1]


def test_an_item_with_another_price_joins_the_requests_of_the_months_that_show_it(
    world, rows, tmp_path, joined
):
    """An item of which one month has a candidate; and one that nobody was shown changes nothing."""
    log, shown = world.split.log, {}
    for item, when in zip(rows["item_id"].to_pylist(), rows["time"].to_pylist(), strict=True):
        shown.setdefault(item, set()).add(f"{when:%Y-%m}")
    ids = world.dataset.items["item_id"].to_pylist()
    rare = next(item for item in ids if MARCH not in shown.get(item, ()) or JANUARY not in shown[item])
    made(world, log, rows, tmp_path)
    other = with_price(world, ids.index(rare))
    joined.clear()
    assert made(other, log, rows, tmp_path) == afresh(other, log, rows, tmp_path)
    assert joined[0] == sorted(shown.get(rare, ())) != joined[1]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**20), late=st.booleans(), mixed=st.booleans())
def test_a_frame_that_grows_is_the_frame_of_the_whole(world, rows, tmp_path, seed, late, mixed):
    """Over several days, with late events, items that change, labels that come later, and requests in any order."""
    rng = np.random.default_rng(seed)
    log, now = world.split.log, world
    shutil.rmtree(tmp_path / "w", ignore_errors=True)
    part = np.sort(rng.integers(0, 3, len(log)))
    if late:
        part[rng.random(len(log)) < 0.02] = 2
    if mixed:
        number = np.unique(rows["request_id"].to_numpy(), return_inverse=True)[1]
        rows = rows.take(np.argsort(rng.permutation(number.max() + 1)[number], kind="stable"))
    for day in range(3):
        if rng.random() < 0.5:
            now = with_price(now, int(rng.integers(0, 20)))
        some = log.filter(pa.array(part <= day))
        found = made(now, some, rows, tmp_path / "w")
    assert found == afresh(now, log, rows, tmp_path / "w")
    frame = open_frame(tmp_path / "w" / "frame", tmp_path / "w" / "store")
    first = np.append(True, np.diff(rows["request_id"].to_numpy()) != 0)
    assert frame.requests["request_id"].to_pylist() == rows["request_id"].filter(pa.array(first)).to_pylist()
    assert frame.given["label"].to_pylist() == rows["label"].to_pylist()


def test_a_damaged_frame_is_made_again_and_nothing_of_it_is_kept(world, rows, tmp_path, joined):
    made(world, world.split.log, rows, tmp_path)
    path = tmp_path / "frame" / JANUARY / "items.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    joined.clear()
    assert made(world, world.split.log, rows, tmp_path) == afresh(world, world.split.log, rows, tmp_path)
    assert joined[0] == [JANUARY, FEBRUARY, MARCH]


def test_a_fingerprint_is_of_the_rows_and_not_of_how_they_are_cut():
    table = pa.table(
        {
            "n": [1, None, 0, 4],
            "x": [0.5, None, 0.0, 2.0],
            "flag": [True, None, False, True],
            "text": ["a", None, "", "a"],
            "list": [[1], None, [], [1, 2]],
        }
    )

    def of(rows, size):
        made = Fingerprint()
        for start in range(0, len(rows), size):
            made.add(rows.slice(start, size))
        return made.digest()

    assert len({of(table, size) for size in (1, 2, 3, 4)}) == 1
    others = [table.take([1, 0, 2, 3]), table.slice(0, 3), table.drop_columns(["x"])]
    for name, values in (
        ("n", [1, 0, 0, 4]),
        ("text", ["a", "", "", "a"]),
        ("list", [[1], [], None, [1, 2]]),
    ):
        others.append(table.set_column(table.column_names.index(name), name, [values]))
    assert len({of(rows, 2) for rows in (table, *others)}) == len(others) + 1
