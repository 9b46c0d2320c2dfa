"""A frame read in windows is the frame read whole, in memory that does not grow with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_requests
from ranker_world import DAY_US, NOW_US, SIGNATURE, catalogue
from test_frame_shards import HISTORY, assert_same, source_of, store  # noqa: F401  (a fixture)

from dataset.contracts import TIME, DataError
from feature_repo.event_log import EventLog
from feature_repo.frames import files
from feature_repo.frames.files import write_frame_files
from feature_repo.frames.join import TrainingFrame
from feature_repo.frames.shards import open_frame, write_frame
from feature_repo.frames.stream import FrameStream
from feature_repo.side_information import SideInformation
from ranker import epoch as epoch_module
from ranker.inputs import columns
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder, size_groups
from ranker.ranks import ALL
from ranker.train import Training, train_ctr
from retrieval.examples import MatchedFrames, _on_disk, ranker_frames
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(size("nano"), id_width=4, history=HISTORY, ranker_slots=16)
PARTS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def made(tiny_world, store, tmp_path_factory):  # noqa: F811
    """Eighty requests of three months, a few to each row group; three parts, which take turns."""
    rows = make_requests(tiny_world, seed=3, requests=80).sort_by("time")
    place = np.cumsum(np.append(0, np.diff(rows["request_id"].to_numpy()) != 0))
    rows = rows.append_column("part", pa.array([PARTS[one % 3] for one in place]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ROW_GROUP", 7)
        return write_frame(source_of(store, rows), tmp_path_factory.mktemp("frame") / "frame")


def equal(one, other):
    assert one.requests.equals(other.requests) and one.candidates.equals(other.candidates)
    assert np.array_equal(one.offsets, other.offsets)
    for name in ("offsets", "item_id", "code", "time_us"):
        assert np.array_equal(getattr(one.history, name), getattr(other.history, name)), name


@pytest.mark.parametrize("window", [1, 16, 10**6])
def test_windows_are_stretches_of_the_frame(made, store, window):  # noqa: F811
    whole, stream = open_frame(made.path, store), FrameStream.open(made, store, window)
    assert len(stream.months) == 3 and len(stream) == len(whole) == 80
    assert stream.signature == whole.signature
    draw = np.random.default_rng(window)
    for rows in (draw.permutation(80), draw.integers(0, 80, 5), np.array([79]), np.empty(0, np.int64)):
        equal(stream.select(rows), whole.select(rows))
    for start, stop in ((0, 80), (3, 4), (20, 60), (70, 99)):
        equal(stream.take(start, stop), whole.take(start, stop))
    for number in np.unique(stream.windows):
        mine = np.flatnonzero(stream.windows == number)
        assert (np.diff(mine) == 1).all() and len(stream.select(mine).candidates) < window + 7
        equal(stream.select(mine[::-1]), whole.select(mine[::-1]))


@pytest.mark.parametrize("window", [1, 16, 10**6])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_what_its_rows_say(made, store, part, window):  # noqa: F811
    whole, stream = open_frame(made.path, store), FrameStream.open(made, store, window).of_part(part)
    said = whole.given["part"].to_pylist()
    rows = np.array([row for row in range(80) if said[whole.offsets[row]] == part])
    assert 20 < len(rows) == len(stream)
    equal(stream.take(0, len(rows)), whole.select(rows))
    some = np.random.default_rng(0).permutation(len(rows))[:9]
    equal(stream.select(some), whole.select(rows[some]))
    assert np.array_equal(stream.windows, whole.offsets[rows] // window)


def test_a_window_is_read_once_while_it_is_gone_through(made, store, monkeypatch):  # noqa: F811
    stream, read = FrameStream.open(made, store, 16), []
    real = FrameStream._read
    monkeypatch.setattr(
        FrameStream, "_read", lambda self, start, stop: (read.append(start), real(self, start, stop))[1]
    )
    for row in range(len(stream)):
        stream.take(row, row + 1)
    assert len(read) == len(np.unique(stream.windows)) > 5


def encoded(stored, history=HISTORY):
    inputs, counts = learn_inputs(stored, history)
    return counts, FrameEncoder(inputs, None)


def test_an_epoch_goes_through_shuffled_windows_and_takes_every_request_once(made, store):  # noqa: F811
    stream = FrameStream.open(made, store, 40)
    counts, encoder = encoded(stream)

    class Told:
        windows = stream.windows

        def select(self, rows):
            assert len(set(stream.windows[rows].tolist())) == 1, "nothing is read of two at a time"
            return stream.select(rows)

        def batches(self, stored, encoder, groups):
            seen.extend(groups)
            return ALL.batches(stored, encoder, groups)

    def epoch(seed, done=0):
        seen.clear()
        told = Told()
        list(epoch_module.epoch_batches(told, counts, encoder, 12, (0, seed), share=told, done=done))
        return [row.tolist() for row in seen]

    seen = []
    first = epoch(0)
    windows = [set(stream.windows[rows].tolist()) for rows in first]
    assert all(len(one) == 1 for one in windows), "no batch needs two"
    order = [one.pop() for one in windows]
    changes = 1 + sum(one != other for one, other in zip(order, order[1:], strict=False))
    assert changes == len(set(order)) > 5 and order != sorted(order), (
        "one after the other, not in their order"
    )
    assert sorted(row for rows in first for row in rows) == list(range(80))
    assert epoch(0) == first != epoch(1)
    for done in (1, 5, len(first) - 1):
        assert epoch(0, done) == first[done:], "what was done is left out"


class Cut:
    """Requests in windows, whose batches are their rows."""

    def __init__(self, counts, windows):
        self.counts, self.windows = counts, windows

    def epoch(self, slots, seed=0, done=0):
        return list(
            epoch_module.epoch_batches(self, self.counts, None, slots, (seed, 0), share=self, done=done)
        )

    def batches(self, stored, encoder, groups):
        return groups


@pytest.mark.parametrize("requests", range(100, 112))
def test_no_window_ends_with_a_small_batch(requests):
    """Of ten batches' requests and a few: where a window took a batch of one, it cost the ranker .004 AUC."""
    cut = Cut(np.full(3 * requests, 10), np.repeat(np.arange(3), requests))
    found = cut.epoch(100)
    assert sorted(np.concatenate(found)) == list(range(3 * requests))
    assert all(len(set((rows // requests).tolist())) == 1 for rows in found)
    assert all(5 <= len(rows) <= 15 for rows in found), sorted(map(len, found))
    assert [rows.tolist() for rows in cut.epoch(100, done=7)] == [rows.tolist() for rows in found[7:]]
    whole = Cut(cut.counts, np.zeros(3 * requests, np.int64)).epoch(100)
    memory = Cut(cut.counts, None).epoch(100)
    assert [rows.tolist() for rows in whole] == [rows.tolist() for rows in memory], (
        "one window is as in memory"
    )
    as_cut = size_groups(cut.counts, np.arange(3 * requests), 100)
    assert sorted(map(len, memory)) == sorted(map(len, as_cut)), "where nothing is joined"


@pytest.mark.parametrize("windows", [None, np.zeros(490, np.int64)])
def test_no_pool_ends_with_a_small_batch(monkeypatch, windows):
    """In memory, too: pools of 62 requests are six batches of ten and one of two."""
    monkeypatch.setattr(epoch_module, "POOL", 6)
    found = Cut(np.full(490, 10), windows).epoch(104)
    assert sorted(np.concatenate(found)) == list(range(490))
    assert sorted({len(rows) for rows in found}) == [6, 10, 12], "six are left for the last one"


def joined_one_by_one(groups, counts, slots):
    """As ``_without_small`` says it, of lists."""
    kept = []
    for rows in groups:
        padded = [
            len(some) * max(counts[row] for row in some) for some in (rows, [*sum(kept[-1:], []), *rows])
        ]
        if kept and 2 * padded[0] < slots and 2 * padded[1] <= 3 * slots:
            kept[-1] = kept[-1] + rows
        else:
            kept.append(rows)
    return kept


@pytest.mark.parametrize("seed", range(20))
def test_small_batches_are_joined_where_that_pads_little(seed):
    draw = np.random.default_rng(seed)
    counts = np.minimum(draw.geometric(0.1, 200), 90)
    counts[:2] = 1, 90
    order, slots = draw.permutation(200), 100
    groups = [
        rows for start in (0, 60, 120) for rows in size_groups(counts, order[start : start + 60], slots)
    ]
    found = epoch_module._without_small(groups, counts, slots)
    asked = joined_one_by_one([rows.tolist() for rows in groups], counts.tolist(), slots)
    assert [rows.tolist() for rows in found] == asked
    assert np.array_equal(np.concatenate(found), np.concatenate(groups)), "each is there once"
    assert all(len(rows) * counts[rows].max() <= 150 for rows in found)


def test_a_frame_of_one_window_trains_the_ranker_that_it_trains_in_memory(made, store, tmp_path):  # noqa: F811
    whole, stream = open_frame(made.path, store), FrameStream.open(made, store)
    valid = whole.only(np.arange(20))
    one, other = (
        train_ctr(stored, valid, None, TINY, tmp_path / name, {}, Training(epochs=2))
        for name, stored in (("memory", whole), ("stream", stream))
    )
    assert one.id == other.id
    several = train_ctr(
        FrameStream.open(made, store, 40), valid, None, TINY, tmp_path / "windows", {}, Training(epochs=2)
    )
    losses = [made.config["outcome"]["train_loss"] for made in (one, several)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], abs=0.1)


def test_matches_on_disk_are_those_in_memory(made, store, tmp_path):  # noqa: F811
    stream = FrameStream.open(made, store, 16)
    candidates = int(stream.offsets[-1])
    scores = np.random.default_rng(0).random((candidates, 2)).astype(np.float32)
    pieces = np.split(scores, np.sort(np.random.default_rng(1).integers(0, candidates, 5)))
    names = ("match_a", "match_b")
    on_disk = MatchedFrames(stream, names, _on_disk(iter(pieces), 2, tmp_path), stream.offsets)
    in_memory = MatchedFrames(open_frame(made.path, store), names, scores, stream.offsets)
    assert not list(tmp_path.iterdir()), "nobody finds it there"
    rows = np.random.default_rng(2).permutation(80)
    equal(on_disk.select(rows), in_memory.select(rows))
    equal(on_disk.take(5, 50), in_memory.take(5, 50))
    assert in_memory.windows is None and np.array_equal(on_disk.windows, stream.windows)
    assert _on_disk(iter([]), 2, tmp_path).shape == (0, 2)


def test_requests_whose_candidates_are_drawn_are_not_read_in_windows(tmp_path):
    with pytest.raises(DataError, match="to read in windows, found what was taken only"):
        ranker_frames(tmp_path, type("Split", (), {"shows": False})(), TINY, 0, None, stream=True)


def large(folder: Path, requests: int) -> tuple:
    """A frame of so many requests of ten candidates, and what it points to."""
    draw = np.random.default_rng(0)
    rows = requests * 10
    items = catalogue(1000 + 7 * draw.integers(0, 500, rows))
    for name in ("shown_7d", "positive_7d", "shown_28d", "positive_28d", "shown_all", "positive_all"):
        items[name] = pa.array(draw.integers(0, 9, rows))
    items["rate_all"] = pa.array(draw.random(rows).astype(np.float32))
    item_id = items.pop("item_id")
    user = draw.integers(0, 50, requests)
    time_us = NOW_US + np.sort(draw.integers(0, 40 * DAY_US, requests))
    log = EventLog(
        np.arange(50), np.arange(51) * 20, *(draw.integers(0, 5, 1000) for _ in range(2)),
        *(np.full(1000, NOW_US - DAY_US) for _ in range(2)), np.arange(1000), "v",
    )  # fmt: skip
    frame = TrainingFrame(
        requests=pa.table(
            {
                "request_id": np.arange(requests),
                "user_id": user,
                "time": pa.array(time_us).cast(TIME),
                "query_id": pa.nulls(requests, pa.int64()),
                "age_band": user % 5,
                "segment": pa.array([f"s{one % 3}" for one in user]),
                "user_events": np.full(requests, 20),
            }
        ),
        given=pa.table({"item_id": item_id, "label": (draw.random(rows) < 0.2).astype(np.float32)}),
        items=pa.table(items),
        item_row=draw.permutation(rows),
        offsets=np.arange(requests + 1) * 10,
        log=log,
        positions=np.full(requests, 20),
        history=10,
        side=SideInformation(),
        signature=SIGNATURE,
    )
    folder.mkdir()
    write_frame_files(folder, frame, time_us)
    return log, 10, SideInformation(), SIGNATURE


def peak(work) -> int:
    """Bytes that tables take at most during some work."""
    pool, usual = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        work()
        return pool.max_memory()
    finally:
        pa.set_memory_pool(usual)


def test_memory_follows_the_window_and_not_the_frame(tmp_path, monkeypatch):
    """What is learned of the inputs, and an epoch of batches; of four times the requests as of one."""
    found = {}
    monkeypatch.setattr(columns, "CHUNK_REQUESTS", 800)  # that the inputs are learned from at once
    for requests in (4_000, 16_000):
        parts = large(tmp_path / str(requests), requests)
        for window in (1 << 13, 1 << 30):

            def epoch(requests=requests, window=window, parts=parts):
                stream = FrameStream.of(tmp_path / str(requests), *parts, window)
                counts, encoder = encoded(stream, 10)
                batches = epoch_module.epoch_batches(stream, counts, encoder, 512, (0, 0))
                for _ in batches if window == 1 << 13 else [next(batches)]:
                    pass

            found[requests, window] = peak(epoch)
    few, many = (found[requests, 1 << 13] for requests in (4_000, 16_000))
    assert many < 1.3 * few, found
    assert found[16_000, 1 << 30] > 3 * found[4_000, 1 << 30], f"the frame is of some size: {found}"
