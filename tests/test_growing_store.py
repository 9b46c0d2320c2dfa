"""What a store derives from its log is the same to the byte whether the log came at once or day by day.

The brute force beside every draw is the store of all files at once, made in an empty folder.

Run: pytest tests/test_growing_store.py
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TinySplit, make_world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset.contracts import EVENTS, TIME
from dataset.importers import append_described, import_path
from dataset.months import months_of
from dataset.split import Split, split_dataset
from dataset.tables import Dataset
from feature_repo import behaviour
from feature_repo.behaviour import RECORD, write_behaviour
from feature_repo.create import create_store
from feature_repo.event_log import EventLog, open_event_log
from feature_repo.frames.logged import logged_source
from feature_repo.frames.shards import write_frame
from feature_repo.ingest.fold import with_events
from feature_repo.sources import LOG, read_source, replace_source
from run.artifacts import open_artifact
from run.sizes import size

DAY_US = 86_400_000_000
START_US = 1_700_000_000_000_000  # in November 2023
DERIVED = ("item_stats.parquet", "query_stats.parquet", "user_events.parquet", LOG)


def drawn_log(rng: np.random.Generator, count: int, days: int) -> pa.Table:
    """Events of every type, several a second, some with a query; in order."""
    type_ = rng.choice(["impression", "click", "purchase", "rating"], count)
    time_us = START_US + rng.integers(0, days * 24, count) * (DAY_US // 24)
    query = rng.integers(0, 4, count)
    columns = {
        "event_id": rng.permutation(count),
        "user_id": rng.integers(0, 7, count),
        "item_id": rng.integers(0, 9, count),
        "type": type_,
        "event_time": pa.array(time_us).cast(TIME),
        "available_time": pa.array(time_us + 1_000_000).cast(TIME),
        "query_id": pa.array(query, mask=query == 0),
        "value": pa.array(rng.integers(1, 6, count).astype(np.float32), mask=type_ != "rating"),
        "sequence": rng.permutation(count),
    }
    rows = [columns.get(field.name, pa.nulls(count, field.type)) for field in EVENTS]
    table = pa.table(dict(zip(EVENTS.names, rows, strict=True))).cast(EVENTS)
    return table.sort_by([("available_time", "ascending"), ("sequence", "ascending")])


def files(data: Path) -> dict[str, bytes]:
    """What lies in the data folder of a store, but for earlier versions of the event log."""
    return {
        path.relative_to(data).as_posix(): path.read_bytes()
        for path in sorted(data.rglob("*"))
        if path.is_file()
    }


def derived(log: pa.Table, data: Path, previous: Path | None = None) -> dict[str, bytes]:
    data.mkdir(exist_ok=True)
    write_behaviour(data, months_of(log), previous)
    return files(data)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(0, 70),
    days=st.sampled_from([1, 40, 150]),
    parts=st.integers(2, 4),
    late=st.sampled_from([0.0, 0.1, 1.0]),
    gone=st.booleans(),
)
def test_a_store_that_grows_is_the_store_of_the_whole_log(tmp_path, seed, count, days, parts, late, gone):
    """Days in order, with late events, or events in any order; and a log that loses some, as a new cut may."""
    rng = np.random.default_rng(seed)
    log = drawn_log(rng, count, days)
    part = np.sort(rng.integers(0, parts, count))
    moved = rng.random(count) < late
    part[moved] = rng.integers(0, parts, int(moved.sum()))
    shutil.rmtree(tmp_path / "w", ignore_errors=True)
    (tmp_path / "w").mkdir()
    previous = None
    for number in range(parts):
        now = log.filter(pa.array(part <= number))
        if gone and number < parts - 1:
            now = now.filter(pa.array(rng.random(len(now)) < 0.8))
        made = derived(now, tmp_path / "w" / str(number), previous)
        previous = tmp_path / "w" / str(number)
    assert made == derived(log, tmp_path / "w" / "whole")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**20), count=st.integers(1, 60), days=st.sampled_from([1, 40, 100]))
def test_events_folded_into_a_store_are_as_if_they_had_been_there(tmp_path, seed, count, days):
    """In place, some of them there already under another time: of two with one id the first stays."""
    rng = np.random.default_rng(seed)
    log = drawn_log(rng, count, days)
    held = rng.random(count) < 0.7
    received = log.filter(pa.array(~held | (rng.random(count) < 0.2)))
    shutil.rmtree(tmp_path / "w", ignore_errors=True)
    (tmp_path / "w").mkdir()
    data = tmp_path / "w" / "data"
    derived(log.filter(pa.array(held)), data)
    months, added = with_events(behaviour.stored_months(data / LOG), received)
    assert added == int((~held).sum())
    write_behaviour(data, months, data)
    whole = derived(log, tmp_path / "w" / "whole")
    current = EventLog.open(data / "event_log" / open_version(data)).version
    assert {name: made for name, made in files(data).items() if is_of(name, current)} == whole


def open_version(data: Path) -> str:
    version = behaviour.log_version(data)
    assert version is not None
    return version


def is_of(name: str, version: str) -> bool:
    return not name.startswith("event_log/") or name.split("/")[1] == version


def test_a_new_day_leaves_the_months_before_as_they_are(tmp_path):
    """The same files under a second name."""
    log = drawn_log(np.random.default_rng(0), 400, 200)
    cut = int(np.searchsorted(log["available_time"].cast(pa.int64()).to_numpy(), START_US + 190 * DAY_US))
    since = months_of(log.slice(cut))[0].name
    derived(log.slice(0, cut), tmp_path / "1")
    derived(log, tmp_path / "2", tmp_path / "1")
    for name in DERIVED[:3]:
        months = sorted(path.name for path in (tmp_path / "2" / name).iterdir())
        assert len(months) >= 7
        same = [
            month
            for month in months
            if (tmp_path / "1" / name / month).exists()
            and (tmp_path / "1" / name / month).samefile(tmp_path / "2" / name / month)
        ]
        assert same == [month for month in months if month < since] and len(same) >= 5
    old, new = (EventLog.open(next((tmp_path / n / "event_log").iterdir())) for n in "12")
    months = set(old.months.values())
    assert new.holds(months - {old.version}) and not new.holds([old.version]) and len(months) >= 6


def test_a_late_event_changes_the_months_from_its_own_on(tmp_path):
    log = drawn_log(np.random.default_rng(1), 400, 200)
    late = int(np.searchsorted(log["available_time"].cast(pa.int64()).to_numpy(), START_US + 100 * DAY_US))
    month = str(months_of(log.slice(late, 1))[0].name)
    derived(pa.concat_tables([log.slice(0, late), log.slice(late + 1)]), tmp_path / "1")
    assert derived(log, tmp_path / "2", tmp_path / "1") == derived(log, tmp_path / "3")
    for path in (tmp_path / "2/item_stats.parquet").iterdir():
        before = tmp_path / "1/item_stats.parquet" / path.name
        assert before.samefile(path) == (path.stem < month)


@pytest.mark.parametrize("harm", ["cut", "other", "gone", "format", "event log"])
def test_what_is_not_as_it_was_written_is_made_again(tmp_path, harm):
    log = drawn_log(np.random.default_rng(2), 300, 200)
    derived(log.slice(0, 290), tmp_path / "1")
    part = min((tmp_path / "1/item_stats.parquet").iterdir())
    if harm == "cut":
        part.write_bytes(part.read_bytes()[:-9])
    elif harm == "other":  # a sound file with another number in it
        table = pq.read_table(part)
        place = table.column_names.index("shown_all")
        replace_source(part, table.set_column(place, "shown_all", pa.array([7] * len(table))))
    elif harm == "gone":
        part.unlink()
    elif harm == "format":
        record = tmp_path / "1" / RECORD
        record.write_text(record.read_text().replace('"format": 1', '"format": 0'))
        pq.write_table(pq.read_table(part).slice(0, 1), part)
    else:
        path = next((tmp_path / "1/event_log").iterdir()) / "item_id.npy"
        content = bytearray(path.read_bytes())
        content[128] ^= 1  # of the first behaviour, behind the header
        path.write_bytes(bytes(content))
    assert derived(log, tmp_path / "2", tmp_path / "1") == derived(log, tmp_path / "3")


def test_a_store_of_an_earlier_release_is_folded_into_months(tmp_path):
    """One file a view, and an event log that knows no months."""
    log = drawn_log(np.random.default_rng(3), 200, 100)
    data, whole = tmp_path / "data", tmp_path / "whole"
    derived(log.slice(0, 150), data)
    for name in DERIVED:
        tables = [pq.read_table(path) for path in sorted((data / name).iterdir())]
        shutil.rmtree(data / name)
        pq.write_table(pa.concat_tables(tables, promote_options="default"), data / name)
    (data / RECORD).unlink()
    months, added = with_events(behaviour.stored_months(data / LOG), log.slice(150))
    write_behaviour(data, months, data)
    version = open_version(data)
    assert added == 50
    assert {name: one for name, one in files(data).items() if is_of(name, version)} == derived(log, whole)


TOML = """
[data]
name = "shop"
ids = { item = "text", user = "integer" }

[[items]]
files = ["items*.csv"]
id = "sku"
title = "name"
price = "price"

[[events]]
files = ["log*.csv"]
id = "event"
user = "user"
item = "sku"
time = "time"
type = "impression"
clicked = "clicked"
"""


def write_files(folder: Path, name: str, items: list[str], log: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "moon.toml").write_text(TOML)
    (folder / f"items{name}.csv").write_text("\n".join(["sku,name,price", *items]) + "\n")
    (folder / f"log{name}.csv").write_text("\n".join(["event,user,sku,time,clicked", *log]) + "\n")
    return folder


def row(rng: np.random.Generator, number: int, time_us: int) -> str:
    """An impression, of ten items one that no file lists, of an item that a later file lists, or of any other."""
    moment = np.datetime64(time_us, "us").astype("datetime64[s]")
    return f"{number},{rng.integers(1, 9)},S{rng.integers(0, 10)},{moment}Z,{int(rng.random() < 0.4)}"


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_grows_day_by_day_is_the_run_of_all_files(tmp_path, seed):
    """New items, an item with another price, events of an item nobody lists, late events, and a day sent twice."""
    rng = np.random.default_rng(seed)
    times = START_US + np.sort(rng.choice(150 * 24 * 3600, 300, replace=False)) * 1_000_000
    log = [row(rng, number + 1, int(time)) for number, time in enumerate(times)]
    day = np.minimum(np.arange(300) // 75, 3)
    day[rng.random(300) < 0.05] = 3  # late
    items = [[f"S{n},lamp {n},{n + 1}" for n in some] for some in (range(6), [6, 2], [7], [8])]
    items[1][1] = "S2,lamp 2,50"
    days = [
        write_files(tmp_path / str(n), str(n), items[n], [log[row] for row in np.flatnonzero(day == n)])
        for n in range(4)
    ]
    run, stores, frames = tmp_path / "run", [], []
    import_path(days[0], run / "dataset")
    for number in range(4):
        dataset = Dataset.open(open_artifact(run / "dataset", "dataset"))
        if number:
            append_described(days[0], days[number], dataset)
            dataset = Dataset.open(open_artifact(run / "dataset", "dataset"))
            assert append_described(
                days[0], days[number], dataset
            ).is_nothing  # as if killed when it was done
        stores.append(made_of(run, dataset))
        frames.append(frame_of(run, tmp_path / "frame"))
    listed = {name.split(",")[0]: name for some in items for name in some}
    everything = write_files(tmp_path / "all", "", list(listed.values()), log)
    whole = Dataset.open(import_path(everything, tmp_path / "whole" / "dataset"))
    assert len(whole.items) == 10 and len(whole.events) > 300
    assert stores[-1] == made_of(tmp_path / "whole", whole)
    assert len({str(one["log"]) for one in stores}) == 4
    assert frames[-1] == frame_of(tmp_path / "whole", tmp_path / "whole" / "frame")
    assert len({str(one) for one in frames}) == 4


def made_of(run: Path, dataset: Dataset) -> dict[str, object]:
    """Split a dataset and make its store: its log, without the rows' numbers in the files, and what it derives."""
    cut = Split.open(split_dataset(dataset, run / "split", "time"))
    create_store(run / "store", dataset, cut)
    version = open_event_log(run / "store").version
    made = files(run / "store/data")
    kept = {name: one for name, one in made.items() if name.startswith((*DERIVED[:3], "event_log"))}
    kept["log"] = read_source(run / "store/data" / LOG).drop_columns(["sequence"]).to_pylist()
    return {name: one for name, one in kept.items() if is_of(name, version)}


def frame_of(run: Path, out: Path) -> dict[str, str]:
    cut = Split.open(open_artifact(run / "split", "split"))
    frame = write_frame(logged_source(run, cut, replace(size("nano"), history=5)), out)
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(frame.path.rglob("*.parquet"))
    }


def test_a_kill_while_a_store_is_made_again_leaves_the_old_one_to_grow_from(tmp_path, monkeypatch):
    world = make_world(seed=5)
    log = world.split.log
    create_store(tmp_path / "store", world.dataset, TinySplit(log.slice(0, 380)))
    before = files(tmp_path / "store/data/item_stats.parquet")
    whole = derived(log, tmp_path / "whole")
    opened = pq.ParquetWriter.__init__
    for survived in range(4):
        left = survived

        def dies(*arguments, **rest):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            opened(*arguments, **rest)

        with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
            broken.setattr(pq.ParquetWriter, "__init__", dies)
            create_store(tmp_path / "store", world.dataset, TinySplit(log))
        assert files(tmp_path / "store/data/item_stats.parquet") == before
    create_store(tmp_path / "store", world.dataset, TinySplit(log))
    made = files(tmp_path / "store/data")
    assert {name: made[name] for name in whole} == whole
