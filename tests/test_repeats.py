"""What users take again is asked for, proposed and answered where a shop's users do that, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from fake_shop import EVEN, ITEM_IDS, NOW, paths_of, recommender, vectors_of
from fastapi.testclient import TestClient
from test_split import FakeDataset, events_table, items_table

from dataset.contracts import EVENTS
from dataset.log import Log
from dataset.repeats import are_usual, takings
from dataset.split import Split, split_dataset
from evaluation.baselines import Repeats as PlainRepeats
from evaluation.baselines import Requests as PlainRequests
from evaluation.baselines import lists, top_k
from feature_repo.frame import History
from retrieval.index import ItemIndex
from retrieval.repeats import UNKNOWN, RepeatsSource, fit_repeats, worth
from retrieval.requests import Request, Requests
from retrieval.retriever import Parts
from retrieval.taken import Taken
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


def log_of(*rows: tuple[int, int, int]) -> pa.Table:
    """Purchases of (user, item, minute)."""
    return events_table(bought(*rows))


def asking(*users: int, minute: int, since: tuple[int, ...] = (), category: str | None = None) -> Requests:
    """Requests of users at a minute; ``since``: what each has liked one minute before, as the store tells."""
    time = START + timedelta(minutes=minute)
    liked = np.array(since, dtype=np.int64)
    now_us = int((time - timedelta(minutes=1)).timestamp() * 1e6)
    history = History(np.array([0, len(liked)]), liked, np.full(len(liked), 3), np.full(len(liked), now_us))
    return Requests.of([Request(user, history, time, category=category) for user in users])


def test_an_item_is_worth_its_likes_halved_with_each_that_followed() -> None:
    rng = np.random.default_rng(0)
    rows = [(int(rng.integers(1, 5)), int(rng.integers(0, 6)), minute) for minute in range(80)]
    taken = Taken.of(log_of(*rows))
    for minute, since in ((50, ()), (50, (3,)), (200, (3, 5))):
        requests = asking(1, 2, 3, 4, 99, minute=minute, since=since)
        for row, user in enumerate((1, 2, 3, 4, 99)):
            # An event is known five seconds after it, and strictly before the request; what came after the log ends
            # is what the store tells, and within the log it tells nothing that the log does not.
            past = [item for u, item, m in rows if u == user and m < minute] + [*since] * (minute > 80)
            expected: dict[int, float] = {}
            for age, item in enumerate(reversed(past)):
                expected[item] = expected.get(item, 0) + 2 ** (-age / 4)
            item_id, values = worth(taken.before(requests, row), 4)
            assert item_id.tolist() == sorted(expected)
            np.testing.assert_allclose(values, [expected[item] for item in sorted(expected)], rtol=1e-6)


def test_no_like_of_the_request_or_later_is_worth_anything() -> None:
    taken = Taken.of(log_of((1, 7, 0), (1, 8, 10), (1, 9, 20)))
    assert taken.before(asking(1, minute=10), 0).tolist() == [7]
    moment = Requests.of([replace_time(asking(1, minute=10), seconds=5)])  # when the second became known
    assert taken.before(moment, 0).tolist() == [7]
    later = Requests.of([replace_time(asking(1, minute=10), seconds=6)])
    assert taken.before(later, 0).tolist() == [7, 8]


def replace_time(requests: Requests, seconds: int) -> Request:
    time = datetime.fromtimestamp(int(requests.time_us[0]) / 1e6, UTC) + timedelta(seconds=seconds)
    return Request(int(requests.user_id[0]), requests.history, time)


def test_the_source_proposes_what_was_taken_in_the_order_of_its_scores() -> None:
    index, ids = (
        ItemIndex.build(ITEM_IDS, vectors_of(len(ITEM_IDS)), paths_of(len(ITEM_IDS))),
        ITEM_IDS.tolist(),
    )
    rows = [(1, ids[0], 0), (1, ids[5], 1), (1, ids[0], 2), (1, ids[9], 3), (1, 12345, 4), (3, ids[3], 5)]
    source = RepeatsSource(Taken.of(log_of(*rows)), 2, index)
    asked = asking(1, 2, 3, minute=60)
    found = source.retrieve_batch(asked, 2)
    # Worth 1/4 + 1/2, 2 ** -1/2 and, of the third, which is not asked for, 2 ** -3/2.
    assert [one[0].tolist() for one in found] == [[ids[0], ids[9]], [], [ids[3]]]
    pairs = np.array([ids[7], ids[0], ids[9], ids[3], ids[3]])
    scores = source.score(asked, pairs, np.array([0, 3, 4, 5]))
    assert scores[[0, 3]].tolist() == [0, 0] and scores[4] == 1
    assert scores[[1, 2]].tolist() == pytest.approx(found[0][1].tolist()) == [0.75, 2**-0.5]
    inside = source.retrieve_batch(asking(1, minute=60, category="Women > Shoes"), 5)
    assert set(inside.item_id.tolist()) == {item for _, item, _ in rows[:5]} & set(ids[10:20])
    assert set(source.retrieve_batch(asking(1, minute=60), 5).item_id.tolist()) == {ids[0], ids[5], ids[9]}


def visits(orders: list[list[list[int]]]) -> pa.Table:
    """Users' baskets: of each user one list of items per day."""
    return log_of(*(
        (user, item, 1440 * day)
        for user, baskets in enumerate(orders) for day, basket in enumerate(baskets) for item in basket
    ))  # fmt: skip


def test_how_fast_the_past_fades_is_fitted_to_what_was_taken_again() -> None:
    """Loyal users take what they took most often; moody ones what they took last."""
    loyal = [[[n], [n], [n], [n], [n], [90], [91], [92], [n]] for n in range(40)]
    moody = [[[n], [n], [n], [n], [n], [90], [91], [50 + n], [50 + n]] for n in range(40)]
    often, reached = fit_repeats(visits(loyal), 0)
    assert often >= 5 and reached[str(often)] == 1.0 > reached["1"]
    lately, reached = fit_repeats(visits(moody), 0)
    assert lately <= 2 and reached[str(lately)] == 1.0 > reached["200"]
    assert fit_repeats(visits([[[n], [n + 100]] for n in range(9)]), 0) == (UNKNOWN, {})
    assert fit_repeats(EVENTS.empty_table(), 0) == (UNKNOWN, {})


def test_the_artifact_is_what_was_fitted(tmp_path) -> None:
    taken = Taken.of(log_of((2, 7, 0), (1, 8, 10), (2, 9, 20)), 5)
    artifact = taken.save(tmp_path / "taken", {}, {"5": 0.5})
    opened = Taken.open(open_artifact(tmp_path / "taken", "taken"))
    assert artifact.config == {"half_life": 5, "reached": {"5": 0.5}} and opened.half_life == 5
    assert opened.user_id.tolist() == [1, 2, 2] and opened.item_id.tolist() == [8, 7, 9]
    assert np.array_equal(opened.time_us, taken.time_us)


def test_what_was_taken_long_ago_is_no_news_either() -> None:
    """The store tells of the latest behaviours only; the log of all."""
    rows = [(1, 7, 0), (1, 8, 1), (2, 9, 2), (1, 5, 30)]
    bare = recommender().retriever
    parts = Parts(None, None, None, None, None, taken=Taken.of(log_of(*rows)))
    retriever = replace(bare, parts=parts)
    asked = asking(1, 2, 3, minute=20, since=(6,))
    told = retriever.asking(asked)
    assert [one.tolist() for one in told.exclude] == [
        [6, 7, 8],
        [6, 9],
        [6],
    ]  # and nothing of the 30th minute
    assert [one.tolist() for one in bare.asking(asked).exclude] == [[6]] * 3
    source = RepeatsSource(Taken.of(log_of(*rows)), 2, bare.index)
    again = replace(retriever, personal=(*bare.personal, source))
    assert again.repeats and not any(len(one) for one in again.asking(asked).exclude)


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
    before = np.full(3, int(NOW.timestamp() * 1e6) - 1)
    source = RepeatsSource(Taken(np.full(3, 4), EVEN[:3], before), 2, retriever.index)
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
