"""What users take again is asked for, proposed and answered where a shop's users do that, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from fake_shop import EVEN, ITEM_IDS, NOW, paths_of, recommender, vectors_of
from fastapi.testclient import TestClient
from test_split import FakeDataset, events_table, items_table

from dataset.contracts import EVENTS
from dataset.jagged import offsets_of
from dataset.log import Log
from dataset.repeats import are_usual, takings
from dataset.split import Split, split_dataset
from evaluation.baselines import Repeats as PlainRepeats
from evaluation.baselines import Requests as PlainRequests
from evaluation.baselines import lists, top_k
from feature_repo.frame import History
from retrieval.index import ItemIndex
from retrieval.repeats import UNKNOWN, Repeats, RepeatsSource, fit_repeats
from retrieval.requests import Request, Requests
from run.artifacts import open_artifact
from serving.app import create_app
from serving.settings import Settings

START = datetime(2026, 6, 1, tzinfo=UTC)


def bought(*rows: tuple[int, int, int], kind: str = "purchase") -> list[dict]:
    """Rows of (user, item, minute)."""
    return [{"user_id": u, "item_id": i, "type": kind, "minute": m} for u, i, m in rows]


def test_what_follows_itself_is_one_taking_and_what_comes_back_another() -> None:
    rows = [
        *bought((1, 7, 0), kind="click"), *bought((1, 7, 1), (1, 8, 2), (1, 7, 3), (2, 7, 4), (1, 7, 5)),
        *bought((2, 9, 6), kind="impression"), *bought((2, 7, 7)),
    ]  # fmt: skip
    log = Log.of(events_table(rows))
    found = [
        (int(log.user[row]), int(log.item[row]), int(log.event_us[row] // 60_000_000 % 60))
        for row in takings(log)
    ]
    assert found == [(1, 7, 0), (1, 8, 2), (1, 7, 3), (2, 7, 4)]
    assert are_usual(log) == (
        False,
        "50% of what users like, they had liked before",
    )  # of 8 and 7: no majority
    assert are_usual(Log.of(events_table(bought((1, 7, 0), (1, 8, 1), (1, 7, 2), (1, 8, 3)))))[0]
    assert are_usual(Log.of(events_table(bought((1, 7, 0), (2, 7, 1))))) == (False, "no user liked two items")


def replenishing(users: int = 12, days: int = 10) -> FakeDataset:
    """Every user buys an item of their own every day, and one that is new to them."""
    rows = [
        row
        for day in range(days)
        for user in range(users)
        for row in bought((user, 100 + day, 1440 * day + user), (user, user, 1440 * day + 100 + user))
    ]
    return FakeDataset(
        events_table(rows), items_table(dict.fromkeys([*range(users), *range(100, 100 + days)], True))
    )


@pytest.mark.parametrize("by", ["time", "last", "users"])
def test_requests_ask_for_what_is_taken_again_only_where_that_is_asked_for(tmp_path, by: str) -> None:
    data = replenishing()
    for repeats in (True, False):
        split = Split.open(split_dataset(data, tmp_path / f"{repeats}", by, repeats=repeats))
        assert split.repeats is repeats and split.artifact.config["why_repeats"] == "asked for"
        log = [(r["user_id"], r["item_id"], r["available_time"]) for r in data.events.to_pylist()]
        again = 0
        for row in split.retrieval.to_pylist():
            before = {item for user, item, time in log if user == row["user_id"] and time < row["time"]}
            later = {item for user, item, time in log if user == row["user_id"] and time >= row["time"]}
            assert row["relevant"] == sorted(set(row["relevant"])) and set(row["relevant"]) <= later
            again += len(before & set(row["relevant"]))
        for row in split.ranking.to_pylist():
            known = {item for user, item, time in log if user == row["user_id"] and time < row["time"]}
            again += row["item_id"] in known
        assert bool(again) is repeats, by


def test_whether_repeats_are_asked_for_is_said_by_the_call_the_data_set_or_the_log(tmp_path) -> None:
    data = replenishing(days=30)  # of 59 takings after the first 29 are repeated: no majority
    config = split_dataset(data, tmp_path / "log").config
    assert (config["repeats"], config["why_repeats"]) == (
        False,
        "49% of what users like, they had liked before",
    )
    said = replace(data, config={"repeats": True})
    assert split_dataset(said, tmp_path / "said").config["repeats"]
    assert not split_dataset(said, tmp_path / "asked", repeats=False).config["repeats"]


def history(*users: list[tuple[int, int]]) -> History:
    """Of (item, code) of each user, oldest first."""
    rows = [row for one in users for row in one]
    item, code = (np.array([row[n] for row in rows], dtype=np.int64) for n in (0, 1))
    return History(
        offsets_of(np.array([len(one) for one in users])), item, code, np.zeros(len(rows), np.int64)
    )


def test_an_item_is_worth_its_behaviours_halved_with_each_that_followed() -> None:
    rng = np.random.default_rng(0)
    users = [
        list(zip(rng.integers(0, 6, n).tolist(), rng.integers(1, 6, n).tolist(), strict=True))
        for n in (0, 9, 25, 1)
    ]
    offsets, item_id, values = Repeats(4).worth(history(*users))
    for request, own in enumerate(users):
        liked = [item for item, code in own if code != 5]  # 5: disliked
        expected: dict[int, float] = {}
        for age, item in enumerate(reversed(liked)):
            expected[item] = expected.get(item, 0) + 2 ** (-age / 4)
        mine = slice(offsets[request], offsets[request + 1])
        assert item_id[mine].tolist() == sorted(expected)
        np.testing.assert_allclose(values[mine], [expected[item] for item in sorted(expected)], rtol=1e-6)


def requests_of(*users: list[int], category: str | None = None) -> Requests:
    return Requests.of(
        [
            Request(n, history([(item, 3) for item in items]), NOW, category=category)
            for n, items in enumerate(users)
        ]
    )


def test_the_source_proposes_what_was_taken_in_the_order_of_its_scores() -> None:
    index = ItemIndex.build(ITEM_IDS, vectors_of(len(ITEM_IDS)), paths_of(len(ITEM_IDS)))
    source, ids = RepeatsSource(Repeats(2), index), ITEM_IDS.tolist()
    users = [[ids[0], ids[5], ids[0], ids[9], 12345], [], [ids[3]]]
    asked = requests_of(*users)
    found = source.retrieve_batch(asked, 2)
    # Worth 1/4 + 1/2, 2 ** -1/2 and, of the third, which is not asked for, 2 ** -3/2.
    assert [one[0].tolist() for one in found] == [[ids[0], ids[9]], [], [ids[3]]]
    pairs = np.array([ids[7], ids[0], ids[9], ids[3], ids[3]])
    scores = source.score(asked, pairs, np.array([0, 3, 4, 5]))
    assert scores[[0, 3]].tolist() == [0, 0] and scores[4] == 1
    assert scores[[1, 2]].tolist() == pytest.approx(found[0][1].tolist())
    inside = source.retrieve_batch(requests_of(users[0], category="Women > Shoes"), 5)
    shoes = set(ids[10:20])
    assert set(inside.item_id.tolist()) == set(users[0]) & shoes


def visits(orders: list[list[list[int]]]) -> pa.Table:
    """Users' baskets: of each user one list of items per day."""
    return events_table([
        {"user_id": user, "item_id": item, "type": "purchase", "minute": 1440 * day + place, "lag": -60 * place}
        for user, baskets in enumerate(orders)
        for day, basket in enumerate(baskets)
        for place, item in enumerate(basket)
    ])  # fmt: skip


def test_how_fast_the_past_fades_is_fitted_to_what_was_taken_again() -> None:
    """Loyal users take what they took most often; moody ones what they took last."""
    loyal = [[[n], [n], [n], [n], [n], [90], [91], [92], [n]] for n in range(40)]
    moody = [[[n], [n], [n], [n], [n], [90], [91], [50 + n], [50 + n]] for n in range(40)]
    often, reached = fit_repeats(visits(loyal), 50, 0)
    assert often.half_life >= 5 and reached[str(int(often.half_life))] == 1.0 > reached["1"]
    lately, reached = fit_repeats(visits(moody), 50, 0)
    assert lately.half_life <= 2 and reached[str(int(lately.half_life))] == 1.0 > reached["200"]
    assert fit_repeats(visits([[[n], [n + 100]] for n in range(9)]), 50, 0) == (Repeats(UNKNOWN), {})
    assert fit_repeats(EVENTS.empty_table(), 50, 0) == (Repeats(UNKNOWN), {})
    # Of users who are read by their two latest behaviours nothing older can be asked for.
    assert fit_repeats(visits([[[1], [2], [3], [1]]]), 2, 0) == (Repeats(UNKNOWN), {})


def test_the_artifact_is_what_was_fitted(tmp_path) -> None:
    made = Repeats(5).save(tmp_path / "repeats", {}, {"5": 0.5})
    assert Repeats.open(open_artifact(tmp_path / "repeats", "repeats")) == Repeats(5, made)
    assert made.config == {"half_life": 5, "reached": {"5": 0.5}}


def test_the_plain_baseline_lists_what_was_taken_most_often_of_equals_the_newest() -> None:
    baseline = PlainRepeats(np.array([1, 2, 3, 4]))
    asked = PlainRequests(np.array([0, 6, 6]), np.array([2, 1, 9, 3, 2, 1]))
    assert top_k(baseline.scores(asked), baseline.candidates, 4).tolist() == [[1, 2, 3, -1], [-1] * 4]
    found = lists(baseline, asked, 2)
    assert found.answers(repeats=True)[0].tolist() == [1, 2] and found.answers(repeats=False)[0].tolist() == [
        -1,
        -1,
    ]


def test_the_service_answers_with_repeats_unless_something_new_is_asked_for(tmp_path) -> None:
    moon = recommender()
    known = set(EVEN[:3].tolist())
    bare = TestClient(create_app(Settings(run=tmp_path), moon))
    assert not known & answered(bare, "/recommend?user_id=4&k=200")
    retriever = moon.retriever
    source = RepeatsSource(Repeats(2), retriever.index)
    moon.retriever = replace(retriever, personal=(*retriever.personal, source))
    client = TestClient(create_app(Settings(run=tmp_path), moon))
    assert known < answered(client, "/recommend?user_id=4&k=200")
    assert not known & answered(client, "/recommend?user_id=4&k=200&new=true")
    assert client.get("/recommend?user_id=4&new=perhaps").status_code == 422
    (hit,) = [
        one for one in client.get("/recommend?user_id=4&k=200").json()["hits"] if one["item_id"] == EVEN[2]
    ]
    assert hit["matches"]["match_repeats"] == 1


def answered(client: TestClient, question: str) -> set[int]:
    return {hit["item_id"] for hit in client.get(question).json()["hits"]}
