"""A frame made in shards, in any order, by several processes or after a kill, is the frame made in one go.

Run: pytest tests/test_frame_shards.py
"""

import hashlib
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import make_requests, make_world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dataset.contracts import DataError
from dataset.split import RANKING, Split
from feature_repo.create import create_store
from feature_repo.event_log import open_event_log
from feature_repo.frames import logged as logged_module
from feature_repo.frames import shards as frame_shards
from feature_repo.frames.join import training_frame
from feature_repo.frames.logged import LOGGED, logged_frames, logged_source
from feature_repo.frames.shards import join_frame, open_frame, write_frame, write_or_join
from feature_repo.frames.source import FrameSource
from feature_repo.signature import open_signature
from feature_repo.store import open_store
from moon import journey
from moon.cli import app
from moon.journey import Verb
from moon.verbs import frame as frame_verb
from moonstore.errors import StoreError
from run.artifacts import ArtifactError, open_artifact, write_artifact
from run.shards import ShardError
from run.sizes import size

HISTORY = 5
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def store(tiny_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "store"
    create_store(folder, tiny_world.dataset, tiny_world.split)
    return folder


@pytest.fixture(scope="module")
def rows(tiny_world):
    return make_requests(tiny_world, seed=11, requests=60)


def in_tables(rows, size):
    """The rows, ``size`` at a time: requests may begin in one table and end in the next."""
    return lambda: (rows.slice(start, size) for start in range(0, max(len(rows), 1), size))


def source_of(store, rows, history=HISTORY, size=17):
    return FrameSource(store, in_tables(rows, size), history, {})


def shards_of(source, folder, count, by):
    return [
        write_frame(source, folder / f"{number}-of-{count}", (number, count), by)
        for number in range(1, count + 1)
    ]


def stored(frame, name):
    """A table of a frame or a shard, month after month."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(frame.path.glob(f"*/{name}.parquet"))])


def assert_same(one, other):
    for name in ("requests", "given"):
        assert getattr(one, name).equals(getattr(other, name)), name
    assert one.items.take(one.item_row).equals(other.items.take(other.item_row))
    for name in ("offsets", "positions"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.history == other.history
    mine, other = one.take(0, len(one)), other.take(0, len(other))
    assert mine.requests.equals(other.requests) and mine.candidates.equals(other.candidates)
    for name in ("offsets", "item_id", "code", "time_us"):
        assert np.array_equal(getattr(mine.history, name), getattr(other.history, name))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**20),
    requests=st.sampled_from([0, 1, 7, 40]),
    count=st.integers(2, 6),
    by=st.sampled_from(["users", "time"]),
    size=st.sampled_from([1, 5, 1000]),
)
def test_any_number_of_shards_either_way_gives_the_same_frame(
    tiny_world, store, tmp_path, seed, requests, count, by, size
):
    rows = make_requests(tiny_world, seed, requests=40)
    rows = rows.filter(pc.less(rows["request_id"], requests * 3))
    shutil.rmtree(tmp_path / "frames", ignore_errors=True)
    source = source_of(store, rows, size=size)
    shards = shards_of(source, tmp_path / "frames", count, by)
    joined = join_frame(source, shards[::-1], tmp_path / "frames" / "joined")
    assert joined.id == write_frame(source, tmp_path / "frames" / "whole").id
    assert_same(open_frame(joined.path, store), training_frame(store, rows, HISTORY))


def test_a_shard_is_whole_users_or_a_stretch_of_time(store, rows, tmp_path):
    source = source_of(store, rows)
    of_users = [stored(shard, "requests") for shard in shards_of(source, tmp_path / "u", 3, "users")]
    users = [set(table["user_id"].to_pylist()) for table in of_users]
    assert sum(map(len, users)) == len(set.union(*users)) and sum(map(bool, users)) > 1
    of_time = [stored(shard, "requests") for shard in shards_of(source, tmp_path / "t", 7, "time")]
    assert {len(table) for table in of_time} <= {60 // 7, 60 // 7 + 1}
    for earlier, later in zip(of_time, of_time[1:], strict=False):
        assert pc.max(earlier["time"]).as_py() <= pc.min(later["time"]).as_py()


def test_a_frame_on_disk_has_the_columns_that_write_frame_names(store, rows, tmp_path):
    made, frame = (
        write_frame(source_of(store, rows), tmp_path / "frame"),
        training_frame(store, rows, HISTORY),
    )
    columns = {
        "requests": [*frame.requests.column_names, "log_position", "candidates"],
        "candidates": [*frame.given.column_names, "item_row"],
        "items": frame.items.column_names,
    }
    for name, expected in columns.items():
        assert stored(made, name).column_names == expected


def test_a_shard_that_is_there_is_not_made_again(store, rows, tiny_world, tmp_path, monkeypatch):
    made = []

    def counted(*arguments):
        made.append(arguments)
        return training_frame(*arguments)

    monkeypatch.setattr(frame_shards, "training_frame", counted)
    out = tmp_path / "out"

    def again(source, shard=(1, 2), by="users"):
        before = len(made)
        write_frame(source, out, shard, by)
        return len(made) - before

    assert again(source_of(store, rows)) == 1
    assert again(source_of(store, rows, size=3)) == 0
    assert again(source_of(store, rows, history=6)) == 1
    assert again(source_of(store, rows.slice(0, 20))) == 1
    assert again(source_of(store, rows)) == 1
    assert again(source_of(store, rows), (2, 2)) == 1
    assert again(source_of(store, rows), (2, 2), "time") == 1
    other = tmp_path / "store"
    create_store(other, tiny_world.dataset, tiny_world.split)
    assert again(source_of(other, rows), (2, 2), "time") == 0  # equal content: the same store
    prices = pq.read_table(other / "data" / "item_profile.parquet")
    pq.write_table(prices.slice(1), other / "data" / "item_profile.parquet")
    assert again(source_of(other, rows), (2, 2), "time") == 1
    next(out.glob("*/items.parquet")).write_bytes(b"damaged")
    assert again(source_of(other, rows), (2, 2), "time") == 1


def test_the_last_shard_joins_and_the_others_name_what_is_missing(store, rows, tmp_path):
    source, out = source_of(store, rows), tmp_path / "frames" / "logged"
    assert write_or_join(source, out, (2, 3), "time") == [
        "moon frame --by time --shard 1/3",
        "moon frame --by time --shard 3/3",
    ]
    assert write_or_join(source, out, (3, 3), "time") == ["moon frame --by time --shard 1/3"]
    assert write_or_join(source, out, (1, 3), "time") == []
    joined = os.stat(out / "manifest.json").st_mtime_ns
    assert write_or_join(source, out, (2, 3), "time") == []  # nothing to do
    assert os.stat(out / "manifest.json").st_mtime_ns == joined
    assert {path.name for path in out.parent.iterdir()} == {"logged", "lock"}


def test_of_two_that_end_together_one_joins(store, rows, tmp_path, monkeypatch):
    source, out, joins = source_of(store, rows), tmp_path / "frames" / "logged", []
    for number in (1, 2):
        write_frame(source, out.parent / "shards" / f"{number}-of-2-by-users", (number, 2))

    def slow(*arguments):
        joins.append(arguments)
        time.sleep(0.5)
        return join_frame(*arguments)

    monkeypatch.setattr(frame_shards, "join_frame", slow)
    missing = {}
    threads = [
        threading.Thread(target=lambda n=n: missing.update({n: write_or_join(source, out, (n, 2))}))
        for n in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing == {1: [], 2: []} and len(joins) == 1
    assert_same(open_frame(out, store), training_frame(store, rows, HISTORY))


def test_shards_that_are_not_all_of_one_frame_are_refused(store, rows, tiny_world, tmp_path):
    source, out = source_of(store, rows), tmp_path / "out"
    first, second, third = shards_of(source, tmp_path / "s", 3, "users")
    with pytest.raises(ShardError, match="found 1/3, 3/3: missing 2/3. Run 'moon frame --shard'"):
        join_frame(source, [first, third], out)
    with pytest.raises(ShardError, match="missing 3/3, surplus 1/3"):
        join_frame(source, [first, first, second], out)
    with pytest.raises(ShardError, match="found none"):
        join_frame(source, [], out)
    other = make_world(seed=2)
    create_store(tmp_path / "store", other.dataset, other.split)
    strangers = {
        "store": source_of(tmp_path / "store", rows),
        "requests": source_of(store, rows.slice(0, 30)),
        "history 6 instead of 5": source_of(store, rows, history=6),
    }
    for name, stranger in strangers.items():
        shard = write_frame(stranger, tmp_path / name, (2, 3))
        with pytest.raises(ArtifactError, match=f"shard 2/3 is of another frame: .*{name}"):
            join_frame(source, [first, shard, third], out)
    shard = write_frame(source, tmp_path / "by", (2, 3), "time")
    with pytest.raises(
        ArtifactError, match="by time instead of users. Run 'moon frame --by users --shard 2/3'"
    ):
        join_frame(source, [first, shard, third], out)
    assert not out.exists()


def test_a_damaged_shard_is_refused_naming_the_command_that_makes_it_again(store, rows, tmp_path):
    source, out = source_of(store, rows), tmp_path / "frames" / "logged"
    write_or_join(source, out, (1, 2))
    damaged = next((out.parent / "shards" / "1-of-2-by-users").glob("*/candidates.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="the file changed.*Run 'moon frame --by users --shard 1/2'"):
        write_or_join(source, out, (2, 2))
    assert write_or_join(source, out, (1, 2)) == []
    assert_same(open_frame(out, store), training_frame(store, rows, HISTORY))


def test_a_frame_is_refused_by_another_log_and_a_shard_is_no_frame(store, rows, tmp_path):
    source = source_of(store, rows)
    write_frame(source, tmp_path / "whole")
    shard = write_frame(source, tmp_path / "shard", (1, 2))
    other = make_world(seed=2)
    create_store(tmp_path / "store", other.dataset, other.split)
    with pytest.raises(StoreError, match="pointers into event log .* Run 'moon frame' again"):
        open_frame(tmp_path / "whole", tmp_path / "store")
    with pytest.raises(ArtifactError, match="expected a frame artifact, found a frame-shard one"):
        open_frame(shard.path, store)


@pytest.mark.parametrize("by", ["users", "time"])
def test_requests_that_are_not_requests_are_refused_in_every_shard(store, rows, tmp_path, by):
    apart = rows.take([0, *range(2, len(rows)), 1])  # apart in the log, together in a shard of its user
    assert rows["request_id"][0] == rows["request_id"][1]
    for shard in ((1, 2), (2, 2)):
        with pytest.raises(DataError, match="1 requests in several places"):
            write_frame(source_of(store, apart), tmp_path / "out", shard, by)
    with pytest.raises(DataError, match="expected request rows with query_id"):
        write_frame(source_of(store, rows.drop_columns(["query_id"])), tmp_path / "out", (1, 2), by)
    users = pa.array(
        np.arange(len(rows))
    )  # a request of several users is whole in one shard, which refuses it
    mixed = rows.set_column(1, "user_id", users)
    refused = 0
    for shard in ((1, 2), (2, 2)):
        try:
            write_frame(source_of(store, mixed), tmp_path / "out", shard, by)
        except DataError as error:
            refused += "one user_id per request" in str(error)
    assert refused == 2


def test_a_shard_that_cannot_be_is_refused(store, rows, tmp_path):
    with pytest.raises(ShardError, match="found 3/2"):
        write_frame(source_of(store, rows), tmp_path / "out", (3, 2))
    with pytest.raises(DataError, match="by: expected users or time, found 'item'"):
        write_or_join(source_of(store, rows), tmp_path / "out", (1, 2), "item")


def split_at(folder, ranking):
    with write_artifact(folder, "split", {"by": "time", "shows": True}) as out:
        pq.write_table(ranking, out / "ranking.parquet")
    return Split.open(open_artifact(folder, "split"))


def test_the_command_writes_the_runs_impressions(store, rows, tmp_path, monkeypatch):
    logged = rows.append_column("part", pa.array(["train"] * 50 + ["test"] * (len(rows) - 50)))
    logged = (
        logged.append_column("event_id", pa.array(np.arange(len(rows)))).select(RANKING.names).cast(RANKING)
    )
    split_at(tmp_path / "split", logged)
    (tmp_path / "store").symlink_to(store)
    (tmp_path / "run.json").write_text(
        '{"data": "marketplace", "size_name": "nano", "seed": 0, "profile": "embedded"}'
    )
    arguments = ["frame", "--run", str(tmp_path)]
    assert "'frame' needs 'dataset' first. Run 'moon dataset'" in str(
        CliRunner().invoke(app, arguments).exception
    )
    monkeypatch.setattr(journey, "VERBS", (Verb("frame", None, frame_verb),))
    for shard, says in (("1/2", "still missing: moon frame --by time --shard 2/2"), ("2/2", "frames/logged")):
        result = CliRunner().invoke(app, [*arguments, "--by", "time", "--shard", shard])
        assert result.exit_code == 0 and says in result.output
    sharded = (tmp_path / "frames" / "logged" / "manifest.json").read_text()
    shutil.rmtree(tmp_path / "frames")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (tmp_path / "frames" / "logged" / "manifest.json").read_text() == sharded
    frame = open_frame(tmp_path / "frames" / "logged", tmp_path / "store")
    assert_same(frame, training_frame(store, logged, journey.load(tmp_path).size.history))


def test_the_ranker_reads_the_frame_that_is_there_and_it_is_the_one_it_would_join(
    store, rows, tmp_path, monkeypatch
):
    parts = np.repeat(["train", "valid", "test"], [50, 60, len(rows) - 110])
    parts = parts[np.searchsorted(rows["request_id"].to_numpy(), rows["request_id"].to_numpy())]
    logged = rows.append_column("part", pa.array(parts)).append_column("event_id", pa.array(range(len(rows))))
    split = split_at(tmp_path / "split", logged.select(RANKING.names).cast(RANKING))
    (tmp_path / "store").symlink_to(store)
    nano, asked = size("nano"), ("valid", "train", "test")
    joined = logged_frames(tmp_path, split, nano, asked)
    write_frame(logged_source(tmp_path, split, nano), tmp_path / LOGGED)
    with monkeypatch.context() as patch:
        patch.setattr(logged_module, "training_frame", None)
        for one, other in zip(logged_frames(tmp_path, split, nano, asked), joined, strict=True):
            mine, its = one.take(0, len(one)), other.take(0, len(other))
            assert mine.requests.equals(its.requests) and mine.candidates.equals(its.candidates)
            assert np.array_equal(mine.history.item_id, its.history.item_id) and len(mine) > 5
    longer = replace(nano, history=nano.history + 1)  # another frame than the one that is there
    assert logged_frames(tmp_path, split, longer, asked)[0].history == nano.history + 1


def test_a_source_is_known_by_its_store_its_log_its_requests_and_its_history(store, rows):
    source = source_of(store, rows)
    first = rows.group_by("request_id", use_threads=False).aggregate([("user_id", "min"), ("time", "min")])
    keys = b"".join(
        first[name].cast(pa.int64()).to_numpy().tobytes()
        for name in ("request_id", "user_id_min", "time_min")
    )
    log = open_event_log(store).version
    digest = hashlib.sha256(log.encode())
    for view in ("item_profile", "item_stats", "query_stats", "user_events", "user_profile"):
        path = store / "data" / f"{view}.parquet"
        for part in sorted(path.iterdir()) if path.is_dir() else [path]:
            digest.update(hashlib.sha256(part.read_bytes()).digest())
    assert source.config == {
        "store": digest.hexdigest()[:16],
        "signature": open_signature(open_store(store), "ctr_v1").to_json(),
        "log": log,
        "requests": hashlib.sha256(keys).hexdigest()[:16],
        "history": HISTORY,
    }


def test_which_shard_a_user_falls_into_never_changes(store, rows):
    """Shards of one frame may be made by several releases: the golden-ratio spread, in Python's own integers."""
    source = source_of(store, rows)
    users = source.requests["user_id"].tolist()
    owner = [(user * 0x9E3779B97F4A7C15 % 2**64 >> 32) % 3 for user in users]
    for number in (1, 2, 3):
        expected = [place for place, one in enumerate(owner) if one == number - 1]
        assert source.places((number, 3), "users").tolist() == expected
    assert len(set(owner)) == 3


def test_equal_times_are_cut_in_the_order_of_the_requests(store, rows):
    source = source_of(store, rows)
    source.__dict__["requests"] = {"time_us": np.zeros(100, np.int64)}
    places = [source.places((number, 7), "time").tolist() for number in range(1, 8)]
    assert sum(places, []) == list(range(100)) and {len(one) for one in places} == {14, 15}
