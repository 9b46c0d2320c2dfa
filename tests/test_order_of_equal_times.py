"""Events of equal time keep the order of their source: in the split, in sequences and in the service."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAY, START, TinyDataset, TinySplit
from test_slates import tables_of
from test_split import FakeDataset, items_table

from dataset.adapters.canonical import event_table
from dataset.contracts import EVENTS, TIME
from dataset.log import Log
from dataset.order import FEW, HASH, SORTED, SOURCE, sequenced
from dataset.split import Split, split_dataset
from dataset.tables import Dataset, write_dataset
from encoder.examples.pairs import item_pairs
from feature_repo.create import create_store
from feature_repo.frames.join import training_frame
from feature_repo.ingest.arrivals import Event
from feature_repo.ingest.fold import fold
from feature_repo.ingest.ingestor import Ingestor
from feature_repo.online import OnlineReader
from feature_repo.sources import DATA, LOG
from feature_repo.store import open_store
from retrieval.likes import Likes

SECOND = timedelta(seconds=1)
END = START + 40 * DAY
CONFIG = {"name": "planted", "source": "made"}


def planted(user_ids, item_ids, sessions=2, length=6, seed=0):
    """A log in which each session lies in one second, users interleaved; and what each user did, in order."""
    rng = np.random.default_rng(seed)
    rows = []
    did = {int(user): [] for user in user_ids}
    for session in range(sessions):
        chosen = {user: rng.permutation(item_ids)[:length].tolist() for user in did}
        for place in range(length):
            for user in did:
                rows.append((user, chosen[user][place], START + session * DAY))
                did[user].append(chosen[user][place])
    users, items, when = (list(column) for column in zip(*rows, strict=True))
    return pa.array(users), pa.array(items), pa.array(when, TIME), did


def scrambled(events):
    """The events in another order and with other ids, which say nothing of it, as those of a sender do."""
    rng = np.random.default_rng(1)
    ids = pa.array(rng.permutation(len(events)) + 1)
    return events.set_column(0, EVENTS.field("event_id"), ids).take(rng.permutation(len(events)))


def test_the_split_holds_out_the_event_that_the_source_has_last(tmp_path):
    items = list(range(1, 13))
    users, item, when, did = planted(range(60), items, sessions=1, length=12)
    events = event_table("click", users, item, when, sequence=pa.array(range(len(users))))
    shop = FakeDataset(scrambled(events), items_table(dict.fromkeys(items, True)))
    split = Split.open(split_dataset(shop, tmp_path / "split", "last"))
    requests = [row for row in split.retrieval.to_pylist() if row["part"] == "test"]
    assert len(requests) == 60
    for request in requests:
        assert request["relevant"] == [did[request["user_id"]][-1]]
    for user, rows in split.log.to_pandas().groupby("user_id", sort=False):
        assert rows["item_id"].tolist() == did[user][:-1]


def test_sequences_offline_online_and_after_new_events_are_in_the_order_of_the_source(tiny_world, tmp_path):
    users, item, when, did = planted(tiny_world.user_ids[:3], tiny_world.item_ids)
    log = event_table("click", users, item, when, sequence=pa.array(range(len(users))))
    world, store = tiny_world.dataset, tmp_path / "store"
    create_store(
        store, TinyDataset(world.items, world.users, world.queries), TinySplit(Log.of(scrambled(log)).table)
    )
    open_store(store).materialize(START, END, feature_views=["user_history", "user_profile"])

    asked = list(did)
    rows = pa.table(
        {
            "request_id": pa.array(range(len(asked))),
            "user_id": pa.array(asked),
            "time": pa.array([END] * len(asked), TIME),
            "query_id": pa.nulls(len(asked), pa.int64()),
            "item_id": pa.array([int(tiny_world.item_ids[0])] * len(asked)),
        }
    )

    def offline(history):
        frame = training_frame(store, rows, history).take(0, len(asked))
        return {
            user: frame.history.item_id[frame.history.offsets[n] : frame.history.offsets[n + 1]].tolist()
            for n, user in enumerate(asked)
        }

    def online(history, when):
        reader = OnlineReader(store, history)
        return {user: reader.read_user(user, when).history.item_id.tolist() for user in asked}

    assert offline(100) == online(100, END) == did
    assert offline(4) == online(4, END) == {user: items[-4:] for user, items in did.items()}

    # One message of new events, their ids falling: they come in the order in which they were sent.
    sent = [int(one) for one in np.random.default_rng(4).permutation(tiny_world.item_ids)[:5]]
    told = [
        Event(event_id=10**9 - place, user_id=user, item_id=one, type="click")
        for place, one in enumerate(sent)
        for user in asked[:1]
    ]
    Ingestor(store, lambda: END).ingest(told)
    later = END + 10 * SECOND
    expected = {**did, asked[0]: did[asked[0]] + sent}
    assert online(100, later) == expected
    assert fold(store) == len(told)
    folded = pq.read_table(store / DATA / LOG).to_pandas().groupby("user_id")["item_id"].apply(list)
    assert folded.to_dict() == expected
    rows = rows.set_column(2, "time", pa.array([later] * len(asked), TIME))
    assert offline(100) == expected
    open_store(store).materialize(START, later, feature_views=["user_history"])
    assert online(100, later) == expected


def test_neighbours_and_the_newest_of_a_user_are_those_of_the_source(monkeypatch):
    users, item, when, did = planted([7], range(1, 11), sessions=1, length=10)
    log = event_table("click", users, item, when, sequence=pa.array(range(len(users))))
    drawn = scrambled(log)

    class Rows:
        def rows(self, ids):
            return np.asarray(ids)

    pairs = item_pairs(drawn, END, Rows())
    lag_one = list(zip(pairs.anchor.tolist(), pairs.item.tolist(), strict=True))[:9]
    assert lag_one == list(zip(did[7][:-1], did[7][1:], strict=True))
    monkeypatch.setattr("retrieval.likes.MOST_ITEMS", 3)
    newest = Likes.of(drawn)
    assert newest.items[newest.column].tolist() == did[7][-3:]


def shop_log(names, sequence):
    """Clicks of 30 users on items 1 to 20 in one second each, in the order ``names`` gives the items."""
    users = np.repeat(np.arange(1, 31), 20)
    when = pa.array([START + int(user) * SECOND for user in users], TIME)
    rng = np.random.default_rng(0)
    items = np.concatenate([names(rng) for _ in range(30)])
    return event_table("click", pa.array(users), pa.array(items), when, sequence=sequence)


ROWS = pa.array(range(600))


@pytest.mark.parametrize(
    ("names", "sequence", "ties"),
    [
        (lambda rng: rng.permutation(np.arange(1, 21)), ROWS, SOURCE),
        (lambda rng: rng.permutation(np.arange(1, 21)), None, HASH),
        (lambda rng: np.arange(1, 21), ROWS, SORTED),
        (lambda rng: np.arange(20, 0, -1), ROWS, SORTED),
        (lambda rng: np.array(sorted(range(1, 21), key=str)), ROWS, SORTED),  # 1, 10, 11, ..., 2, 20, 3
    ],
)
def test_the_manifest_says_what_orders_equal_times_and_it_is_never_an_id(tmp_path, names, sequence, ties):
    events = shop_log(names, sequence)
    artifact = write_dataset(tmp_path / "d", tables_of(events), CONFIG)
    assert artifact.config["ties"] == ties
    log = Log.of(Dataset.open(artifact).events).table.to_pandas()
    by_user = log.groupby("user_id")["item_id"]
    rising = np.mean([np.mean(np.diff(ids) > 0) for _, ids in by_user])
    assert 0.35 < rising < 0.65
    if ties == SOURCE:
        first = log.groupby("user_id")["item_id"].apply(list)
        given = events.sort_by("sequence").to_pandas().groupby("user_id")["item_id"].apply(list)
        assert first.tolist() == given.tolist()
    assert log["sequence"].min() >= 0


def test_a_few_events_in_rising_order_are_no_sorted_source():
    when = pa.array([START] * (FEW + 1), TIME)
    users, items = pa.array([1] * (FEW + 1)), pa.array(range(1, FEW + 2))
    catalogue = items_table(dict.fromkeys(range(1, FEW + 2), True))
    few = event_table("click", users[:-1], items[:-1], when[:-1], sequence=pa.array(range(FEW)))
    assert sequenced(few, catalogue)[1] == SOURCE
    enough = event_table("click", users, items, when, sequence=pa.array(range(FEW + 1)))
    assert sequenced(enough, catalogue)[1] == SORTED


def test_the_hash_does_not_depend_on_what_else_there_is():
    when = pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 600, TIME)
    users, items = pa.array(np.repeat(np.arange(30), 20)), pa.array(np.tile(np.arange(1, 21), 30))
    catalogue = items_table(dict.fromkeys(range(1, 21), True))
    whole = sequenced(event_table("click", users, items, when), catalogue)[0].to_pandas()
    part = sequenced(event_table("click", users[:200], items[:200], when[:200]), catalogue)[0].to_pandas()
    order = whole.sort_values("sequence")
    assert part.sort_values("sequence")[["user_id", "item_id"]].values.tolist() == (
        order[order["user_id"] < 10][["user_id", "item_id"]].values.tolist()
    )
