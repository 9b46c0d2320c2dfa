"""What the ranker and the two towers learn from: the requests of the training part, each with what was taken."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_requests

from dataset.contracts import POSITIVE_CODES, behaviour_codes
from dataset.split import RANKING, RETRIEVAL, Split
from feature_repo.create import create_store
from feature_repo.frames.join import training_frame
from feature_repo.services import RETRIEVAL as RETRIEVAL_V1
from retrieval import examples
from retrieval.build import taken_next
from retrieval.examples import ranker_frames, requests_frame
from retrieval.index import ItemIndex
from retrieval.jagged import stack
from retrieval.retriever import Retriever
from retrieval.sources import PopularSource
from run.artifacts import open_artifact, write_artifact
from run.sizes import size

NANO = size("nano")
REQUESTS = 40


@pytest.fixture(scope="module")
def folder(tiny_world, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    create_store(run / "store", tiny_world.dataset, tiny_world.split)
    return run


def split_of(path, shows, ranking):
    with write_artifact(path, "split", {"by": "users", "shows": shows}) as out:
        pq.write_table(ranking, out / "ranking.parquet")
    return Split.open(open_artifact(path, "split"))


def taken(world):
    """A request of one item each, of which only what was taken is known; every tenth validates, every fifth tests."""
    draw = np.random.default_rng(3)
    return pa.table(
        {
            "request_id": pa.array(range(100, 100 + REQUESTS)),
            "user_id": pa.array([world.user_ids[n % 12] for n in range(REQUESTS)]),
            "time": pa.array([world.end] * REQUESTS),
            "query_id": pa.nulls(REQUESTS, pa.int64()),
            "item_id": pa.array(draw.choice(world.item_ids, REQUESTS)),
            "position": pa.nulls(REQUESTS, pa.int32()),
            "label": pa.array([1.0] * REQUESTS, pa.float32()),
            "part": pa.array(
                ["test" if n % 5 == 4 else "valid" if n % 10 == 0 else "train" for n in range(REQUESTS)]
            ),
            "event_id": pa.array(range(REQUESTS)),
        },
        schema=RANKING,
    )


def bought(world):
    """Requests with the one or two items that were bought next; every fifth is a test request."""
    items, draw = world.item_ids, np.random.default_rng(3)
    return pa.table(
        [
            pa.array(range(100, 100 + REQUESTS)),
            pa.array([world.user_ids[n % 12] for n in range(REQUESTS)]),
            pa.array([world.end] * REQUESTS),
            pa.array(["test" if n % 5 == 4 else "train" for n in range(REQUESTS)]),
            pa.array([draw.choice(items, 1 + n % 2, replace=False).tolist() for n in range(REQUESTS)]),
        ],
        schema=RETRIEVAL,
    )


def seen(world):
    """Impressions; whole requests are train, valid or test."""
    rows = make_requests(world, seed=4, requests=30)
    part = np.array(["train", "valid", "test"])[rows["request_id"].to_numpy() // 3 % 3]
    columns = rows.append_column("part", pa.array(part)).append_column("event_id", pa.array(range(len(rows))))
    return columns.select(RANKING.names).cast(RANKING)


class Silent:
    """A source that answers nothing."""

    name = "silent"

    def retrieve_batch(self, requests, k):
        return stack([(np.empty(0, np.int64), np.empty(0, np.float32))] * len(requests))


def retriever_of(world):
    items = world.item_ids
    vectors = np.eye(len(items), dtype=np.float32)
    index = ItemIndex.build(items, vectors)
    popular = PopularSource(items[:-4], np.arange(1, len(items) - 3, dtype=np.float32), index)
    return Retriever(index, None, (Silent(),), popular, Silent(), {})


def test_many_requests_have_fewer_others_and_an_epoch_keeps_its_length():
    assert [examples.others(requests) for requests in (0, 1, 14_400, 18_000, 36_000, 10**6)] == [
        50, 50, 50, 40, 20, 20,
    ]  # fmt: skip


def test_everything_taken_trains_the_ranker_among_others_of_its_kind(
    folder, tiny_world, tmp_path, monkeypatch
):
    """Where retrieval found the item, among others that it found; where not, among others that it did not find."""
    monkeypatch.setattr(examples, "NEGATIVES", 6)
    rows = taken(tiny_world)
    split = split_of(tmp_path / "split", False, rows)
    train, valid, loss = ranker_frames(folder, split, NANO, 7, retriever_of(tiny_world))
    assert loss == "listwise"
    popularity = {int(item): n + 1 for n, item in enumerate(tiny_world.item_ids[:-4])}
    log, kinds = tiny_world.split.log.to_pylist(), set()
    for frames, part in ((train, "train"), (valid, "valid")):
        wanted = {row["request_id"]: row for row in rows.to_pylist() if row["part"] == part}
        frame = frames.take(0, len(frames))
        assert frame.requests["request_id"].to_pylist() == list(wanted), "each of them trains"
        for request, row in enumerate(wanted.values()):
            own = slice(frame.offsets[request], frame.offsets[request + 1])
            assert frame.requests["user_id"][request].as_py() == row["user_id"]
            candidates = frame.candidates.slice(own.start, own.stop - own.start)
            items, labels = candidates["item_id"].to_pylist(), candidates["label"].to_pylist()
            assert labels == [float(item == row["item_id"]) for item in items] and sum(labels) == 1
            assert len(set(items)) == len(items) <= 7
            before = {
                e["item_id"] for e in log
                if e["user_id"] == row["user_id"] and behaviour_code(e) and e["available_time"] < row["time"]
            }  # fmt: skip
            found = set(popularity) - before
            others = set(items) - {row["item_id"]}
            kinds.add(row["item_id"] in found)
            assert others <= found if row["item_id"] in found else not others & found
            expected = [np.log1p(popularity.get(item, 0)) for item in items]
            np.testing.assert_allclose(candidates["match_popular"], expected, rtol=1e-6)
    assert kinds == {True, False}
    assert train.matches.dtype == np.float32 and train.offsets.dtype == np.int64
    assert train.names == valid.names == ("match_popular", "match_behaviours")


def test_where_enough_was_found_the_ranker_learns_from_that_alone(folder, tiny_world, tmp_path, monkeypatch):
    rows = taken(tiny_world)
    split, retriever = split_of(tmp_path / "split", False, rows), retriever_of(tiny_world)
    for part in ("train", "valid"):
        asked = rows.filter(pa.array(np.array(rows["part"].to_pylist()) == part))
        answers = examples.candidates(training_frame(folder / "store", asked, NANO.history), retriever)
        items = asked["item_id"].to_pylist()
        found = [
            n for n, (item, (ids, _)) in enumerate(zip(items, answers, strict=True)) if item in ids.tolist()
        ]
        assert 0 < len(found) < len(asked)
        for enough, expected in ((len(found), found), (len(found) + 1, range(len(asked)))):
            monkeypatch.setattr(examples, "ENOUGH", enough)
            frames = ranker_frames(folder, split, NANO, 7, retriever)[part == "valid"]
            got = frames.take(0, len(frames)).requests["request_id"].to_pylist()
            assert got == [asked["request_id"][n].as_py() for n in expected]


@pytest.mark.parametrize("shows", [True, False])
def test_of_many_requests_some_are_drawn_and_are_as_they_would_be(
    folder, tiny_world, tmp_path, monkeypatch, shows
):
    asked = []
    monkeypatch.setattr(examples, "others", lambda requests: asked.append(requests) or 6)
    rows = seen(tiny_world) if shows else taken(tiny_world)
    split = split_of(tmp_path / "split", shows, rows)
    retriever = retriever_of(tiny_world)

    def requests(seed, most):
        """Request -> its candidates and their match columns, of each part."""
        found = []
        for one in ranker_frames(folder, split, NANO, seed, retriever, most=most)[:2]:
            frame = one.take(0, len(one))
            names = frame.requests["request_id"].to_pylist()
            columns = frame.candidates.select(["item_id", "label", "match_popular"]).to_pylist()
            bounds = frame.offsets.tolist()
            found.append({n: columns[a:b] for n, a, b in zip(names, bounds, bounds[1:], strict=False)})
        return found

    every, some = requests(0, None), requests(0, 7)
    for whole, part, wanted in zip(every, some, (7, 1), strict=True):
        assert len(part) == wanted < len(whole) and list(part) == [n for n in whole if n in part]
        for name, own in part.items():
            if shows:
                assert own == whole[name]
            else:  # other others are drawn; what was taken is the same
                taken_of = [[one["item_id"] for one in each if one["label"]] for each in (own, whole[name])]
                assert taken_of[0] == taken_of[1] and len(taken_of[0]) == 1
    assert requests(0, 7) == some and list(requests(1, 7)[0]) != list(some[0]) != list(every[0])[:7]
    assert [len(part) for part in requests(0, 10**6)] == [len(part) for part in every]
    assert set(asked) == (set() if shows else {len(every[0]), len(every[1])}), "as many others as with all"


def behaviour_code(event):
    """Whether an event is a behaviour."""
    return event["type"] != "impression"


def test_impressions_are_learned_from_as_they_were_shown(folder, tiny_world, tmp_path):
    rows = seen(tiny_world)
    split = split_of(tmp_path / "split", True, rows)
    train, valid, loss = ranker_frames(folder, split, NANO, 0, retriever_of(tiny_world))
    assert loss == "pointwise"
    for frames, part in ((train, "train"), (valid, "valid")):
        candidates = frames.take(0, len(frames)).candidates
        shown = rows.filter(pa.array(np.array(rows["part"].to_pylist()) == part))
        for name in ("item_id", "label", "position"):
            assert candidates[name].to_pylist() == shown[name].to_pylist()


def test_the_users_side_of_a_request_is_read_at_its_time(folder, tiny_world):
    requests = bought(tiny_world)
    frame = requests_frame(folder, requests, NANO).take(0, REQUESTS)
    for name in ("request_id", "user_id", "time"):
        assert frame.requests[name].to_pylist() == requests[name].to_pylist()
    assert frame.requests["query_id"].null_count == REQUESTS
    assert frame.candidates["item_id"].to_pylist() == [items[0] for items in requests["relevant"].to_pylist()]
    assert len(frame.history.item_id)


def test_the_towers_learn_every_item_newly_liked_after_another_from_what_was_before_it(folder, tiny_world):
    log = tiny_world.split.log
    rows = taken_next(log).to_pylist()
    events = log.sort_by([("available_time", "ascending"), ("sequence", "ascending")]).to_pylist()
    codes = behaviour_codes(*(pa.array([e[name] for e in events]) for name in ("type", "value")))
    expected, liked = [], {}
    for event, code in zip(events, codes.tolist(), strict=True):
        own = liked.setdefault(event["user_id"], set())
        if code in POSITIVE_CODES and event["item_id"] not in own:
            if own:
                expected.append((event["user_id"], event["available_time"], event["item_id"]))
            own.add(event["item_id"])
    assert [(row["user_id"], row["time"], row["item_id"]) for row in rows] == expected and len(expected) > 20
    assert [row["request_id"] for row in rows] == list(range(len(rows)))
    assert {row["label"] for row in rows} == {1.0} and {row["query_id"] for row in rows} == {None}
    assert taken_next(log, most=7).drop_columns("request_id").to_pylist() == [
        {name: value for name, value in row.items() if name != "request_id"} for row in rows[-7:]
    ]
    frame = training_frame(folder / "store", taken_next(log), NANO.history, RETRIEVAL_V1).take(0, len(rows))
    for request, row in enumerate(rows):
        before = frame.history.time_us[slice(*frame.history.offsets[request : request + 2])]
        assert (before < row["time"].timestamp() * 1e6).all()
    assert len(taken_next(log.slice(0, 0))) == 0


def test_a_few_requests_at_a_time_are_all_requests(folder, tiny_world, monkeypatch):
    stored = requests_frame(folder, bought(tiny_world), NANO)
    monkeypatch.setattr(examples, "CHUNK_REQUESTS", 7)
    frames = list(examples.chunks(stored, "test"))
    assert [len(frame) for frame in frames] == [7, 7, 7, 7, 7, 5]
    ids = [key for frame in frames for key in frame.requests["request_id"].to_pylist()]
    assert ids == list(range(100, 100 + REQUESTS))


def test_what_a_user_has_acted_on_before_is_not_proposed_again(folder, tiny_world):
    requests = bought(tiny_world)
    stored = requests_frame(folder, requests, NANO)
    retriever = retriever_of(tiny_world)
    everything = examples.candidates(stored, retriever)
    (popular,) = retriever.recommending[1:]
    alone = examples.answers_of(stored, popular, retriever, k=100)
    assert alone.item_id.tolist() == everything.item_id.tolist()
    frame = stored.take(0, REQUESTS)
    before = [set(frame.history.item_id[a:b].tolist()) for a, b in zip(*_bounds(frame.history), strict=True)]
    popular = set(tiny_world.item_ids[:-4].tolist())
    assert [set(ids.tolist()) for ids, _ in everything] == [popular - known for known in before]
    assert sum(map(len, before)) and len(everything) == REQUESTS


def _bounds(history):
    return history.offsets[:-1], history.offsets[1:]
