"""The split never lets a model see what it is tested on."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import dataset.split as split_module
from dataset.contracts import EVENTS, ITEMS, JUDGEMENTS, DataError
from dataset.marketplace.simulate import simulate
from dataset.split import Split, split_dataset
from run.artifacts import Artifact, ArtifactError, open_artifact

START = datetime(2026, 6, 1, tzinfo=UTC)


@dataclass
class FakeDataset:
    """What ``split_dataset`` reads of a dataset."""

    events: pa.Table
    items: pa.Table
    protocol: str = "time"
    judgements: pa.Table = field(default_factory=JUDGEMENTS.empty_table)

    @property
    def artifact(self) -> Artifact:
        return Artifact(Path("some/dataset"), "dataset", "0" * 16, {"protocol": self.protocol}, {})


def items_table(pictured: dict[int, bool]) -> pa.Table:
    rows = [
        {
            "item_id": item,
            "external_id": str(item),
            "category": [],
            "attributes": [],
            "spu": item,
            "image_id": "0" * 16 if has else None,
            "first_seen": START,
        }
        for item, has in pictured.items()
    ]
    return pa.Table.from_pylist(rows, schema=ITEMS)


def events_table(rows: list[dict]) -> pa.Table:
    """Rows of (user_id, item_id, type, minute) and what else is not null."""
    complete = []
    for number, row in enumerate(rows, 1):
        moment = START + timedelta(minutes=row.pop("minute"))
        times = {"event_time": moment, "available_time": moment + timedelta(seconds=row.pop("lag", 5))}
        complete.append({"event_id": number, **times, **row})
    return pa.Table.from_pylist(complete, schema=EVENTS)


@pytest.fixture(scope="module")
def shop() -> FakeDataset:
    tables, _ = simulate(2000, seed=3)
    return FakeDataset(tables.events, tables.items)


@pytest.fixture(scope="module")
def time_split(shop: FakeDataset, tmp_path_factory: pytest.TempPathFactory) -> Split:
    out = tmp_path_factory.mktemp("split") / "split"
    return Split.open(split_dataset(shop, out))


def test_log_is_complete_and_canonically_ordered(shop: FakeDataset, time_split: Split) -> None:
    log = time_split.log
    assert log.schema.equals(EVENTS)
    assert sorted(log["event_id"].to_pylist()) == sorted(shop.events["event_id"].to_pylist())
    keys = list(zip(log["available_time"].to_pylist(), log["event_id"].to_pylist(), strict=True))
    assert keys == sorted(keys)


def test_fit_before_ranking_before_test(time_split: Split) -> None:
    assert max(time_split.fit_log["available_time"].to_pylist()) < time_split.fit_until < time_split.test_from
    times = defaultdict(list)
    for row in time_split.ranking.to_pylist():
        times[row["part"]].append(row["time"])
    assert set(times) == {"train", "valid", "test"}
    assert time_split.fit_until <= min(times["train"])
    assert max(times["train"]) <= min(times["valid"])
    assert max(times["valid"]) < time_split.test_from <= min(times["test"])


def test_cuts_are_the_stated_quantiles(shop: FakeDataset, time_split: Split) -> None:
    shown = sorted(row["event_time"] for row in shop.events.to_pylist() if row["type"] == "impression")
    assert np.mean([time < time_split.fit_until for time in shown]) == pytest.approx(0.6, abs=0.01)
    assert np.mean([time < time_split.test_from for time in shown]) == pytest.approx(0.8, abs=0.01)


def test_valid_is_the_last_tenth_of_requests(time_split: Split) -> None:
    parts = {row["request_id"]: row["part"] for row in time_split.ranking.to_pylist()}
    train = sum(part == "train" for part in parts.values())
    valid = sum(part == "valid" for part in parts.values())
    assert valid == round(0.1 * (train + valid))


def test_ranking_rows_equal_a_nested_loop(shop: FakeDataset, time_split: Split) -> None:
    events = shop.events.to_pylist()
    clicked = {(e["request_id"], e["item_id"]) for e in events if e["type"] == "click"}
    logged = ("request_id", "user_id", "event_time", "query_id", "item_id", "position")
    expected = {
        e["event_id"]: (*(e[name] for name in logged), float((e["request_id"], e["item_id"]) in clicked))
        for e in events
        if e["type"] == "impression" and e["event_time"] >= time_split.fit_until
    }
    names = ("request_id", "user_id", "time", "query_id", "item_id", "position", "label")
    found = {row["event_id"]: tuple(row[name] for name in names) for row in time_split.ranking.to_pylist()}
    assert found == expected
    assert 0.05 < np.mean([row[-1] for row in found.values()]) < 0.4


def test_slates_stay_together_in_shown_order(time_split: Split) -> None:
    rows = time_split.ranking.to_pylist()
    seen: set[int] = set()
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous is not None and previous["request_id"] == row["request_id"]:
            assert row["position"] > previous["position"]
            assert (row["time"], row["part"]) == (previous["time"], previous["part"])
        else:
            assert row["request_id"] not in seen
            seen.add(row["request_id"])


def relevant_by_hand(events: list[dict], start: datetime, stop: datetime) -> dict[int, list[int]]:
    relevant = {}
    likes = [e for e in events if e["type"] in ("click", "cart", "purchase")]
    for user in {e["user_id"] for e in likes}:
        mine = [e for e in likes if e["user_id"] == user]
        before = {e["item_id"] for e in mine if e["event_time"] < start}
        new = {e["item_id"] for e in mine if start <= e["event_time"] < stop} - before
        if new:
            relevant[user] = sorted(new)
    return relevant


def test_relevant_items_equal_brute_force(shop: FakeDataset, time_split: Split) -> None:
    events = shop.events.to_pylist()
    end = max(e["event_time"] for e in events) + timedelta(seconds=1)
    windows = {
        "train": (time_split.fit_until, time_split.test_from),
        "test": (time_split.test_from, end),
    }
    rows = time_split.retrieval.to_pylist()
    for part, (start, stop) in windows.items():
        mine = [row for row in rows if row["part"] == part]
        assert {row["user_id"]: row["relevant"] for row in mine} == relevant_by_hand(events, start, stop)
        assert {row["time"] for row in mine} == {start}
    assert [row["request_id"] for row in rows] == list(range(1, len(rows) + 1))


def test_retrieval_requests_are_capped_and_seeded(
    shop: FakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_module, "MOST", {"test": 5, "train": 9})
    users = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        rows = Split.open(split_dataset(shop, tmp_path / name, seed=seed)).retrieval.to_pylist()
        assert [sum(row["part"] == part for row in rows) for part in ("train", "test")] == [9, 5]
        users[name] = [row["user_id"] for row in rows]
    assert users["a"] == users["b"] != users["c"]


def test_ratings_are_requests_of_one_candidate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": int(rng.integers(5)), "item_id": number, "type": "rating", "minute": 10 * number,
         "value": float(rng.integers(1, 11) / 2)}
        for number in range(100)
    ]  # fmt: skip
    events = events_table(rows)
    ranking = Split.open(
        split_dataset(FakeDataset(events, items_table(dict.fromkeys(range(100), True))), tmp_path / "split")
    ).ranking.to_pylist()
    assert len(ranking) == len({row["request_id"] for row in ranking}) == 40
    value = {e["event_id"]: e["value"] for e in events.to_pylist()}
    assert all(row["label"] == float(value[row["event_id"]] >= 4) for row in ranking)
    assert all(row["position"] is None for row in ranking)
    assert {row["part"] for row in ranking} == {"train", "valid", "test"}


def test_what_becomes_available_at_the_cut_is_not_fitted(tmp_path: Path) -> None:
    rows = [{"user_id": 1, "item_id": n, "type": "click", "minute": n, "lag": 60} for n in range(100)]
    split_dataset(
        FakeDataset(events_table(rows), items_table(dict.fromkeys(range(100), True))), tmp_path / "s"
    )
    split = Split.open(open_artifact(tmp_path / "s", "split"))
    assert split.fit_until == START + timedelta(minutes=60)
    assert split.fit_log["item_id"].to_pylist() == list(
        range(59)
    )  # item 59 is known one minute later: at the cut


def test_slates_of_the_same_moment_are_not_mixed(tmp_path: Path) -> None:
    rows = [
        {"user_id": request % 2, "item_id": place, "type": "impression", "minute": request // 2,
         "request_id": request, "position": place}
        for place in range(3)
        for request in range(200)
    ]  # fmt: skip
    requests = (
        Split.open(
            split_dataset(
                FakeDataset(events_table(rows), items_table(dict.fromkeys(range(3), True))), tmp_path / "s"
            )
        )
        .ranking["request_id"]
        .to_pylist()
    )
    assert requests == [request for request in range(120, 200) for _ in range(3)]


def test_logs_without_impressions_have_no_ranking_rows(tmp_path: Path) -> None:
    rows = [{"user_id": n % 3, "item_id": n, "type": "click", "minute": n} for n in range(50)]
    split_dataset(
        FakeDataset(events_table(rows), items_table(dict.fromkeys(range(50), True))), tmp_path / "split"
    )
    split = Split.open(open_artifact(tmp_path / "split", "split"))
    assert split.ranking.num_rows == 0
    assert split.retrieval.num_rows == 6


@pytest.fixture(scope="module")
def purchases() -> FakeDataset:
    """Purchases with day resolution; a third of the items has no picture."""
    rng = np.random.default_rng(5)
    rows = [
        {
            "user_id": int(user),
            "item_id": int(item),
            "type": "purchase",
            "minute": 1440 * int(day),
            "lag": 86_400,
        }
        for user, item, day in zip(
            rng.integers(0, 120, 600), rng.integers(0, 60, 600), rng.integers(0, 7, 600), strict=True
        )
    ]
    return FakeDataset(events_table(rows), items_table({item: item % 3 > 0 for item in range(60)}), "holdout")


@pytest.fixture(scope="module")
def holdout(purchases: FakeDataset, tmp_path_factory: pytest.TempPathFactory) -> Split:
    out = tmp_path_factory.mktemp("holdout") / "split"
    return Split.open(split_dataset(purchases, out, seed=1))


def test_holdout_hides_the_last_event_of_each_chosen_user(purchases: FakeDataset, holdout: Split) -> None:
    by_user = defaultdict(list)
    for event in sorted(purchases.events.to_pylist(), key=lambda e: (e["available_time"], e["event_id"])):
        by_user[event["user_id"]].append(event)
    kept = set(holdout.log["event_id"].to_pylist())
    rows = holdout.retrieval.to_pylist()
    hidden = set()
    for row in rows:
        last = by_user[row["user_id"]][-1]
        assert row["relevant"] == [last["item_id"]]
        hidden.add(last["event_id"])
    assert hidden.isdisjoint(kept)
    assert hidden | kept == set(purchases.events["event_id"].to_pylist())
    assert len(hidden) == len(rows)


def test_holdout_chooses_exactly_the_eligible_users(purchases: FakeDataset, holdout: Split) -> None:
    eligible = set()
    events = sorted(purchases.events.to_pylist(), key=lambda e: (e["available_time"], e["event_id"]))
    for user in {e["user_id"] for e in events}:
        bought = [e["item_id"] for e in events if e["user_id"] == user]
        pictured = {item for item in bought if item % 3 > 0}
        if len(pictured) >= 2 and bought[-1] % 3 > 0 and bought.count(bought[-1]) == 1:
            eligible.add(user)
    users = {
        part: [r["user_id"] for r in holdout.retrieval.to_pylist() if r["part"] == part]
        for part in ("train", "test")
    }
    assert set(users["train"]).isdisjoint(users["test"])
    assert set(users["train"]) | set(users["test"]) == eligible
    assert len(users["test"]) == len(eligible) // 3


def test_holdout_requests_come_after_everything_and_fit_on_the_whole_log(
    holdout: Split, purchases: FakeDataset
) -> None:
    end = max(purchases.events["available_time"].to_pylist()) + timedelta(seconds=1)
    assert set(holdout.retrieval["time"].to_pylist()) == {end} == {holdout.fit_until, holdout.test_from}
    assert holdout.fit_log.num_rows == holdout.log.num_rows
    assert holdout.ranking.num_rows == 0
    assert holdout.protocol == "holdout"


def test_same_seed_same_artifact(purchases: FakeDataset, tmp_path: Path) -> None:
    ids = {split_dataset(purchases, tmp_path / name, seed=seed).id for name, seed in (("a", 4), ("b", 4))}
    assert len(ids) == 1
    assert split_dataset(purchases, tmp_path / "c", seed=5).id not in ids


def test_a_dataset_without_events_is_refused(tmp_path: Path) -> None:
    empty = FakeDataset(EVENTS.empty_table(), items_table({1: True}))
    with pytest.raises(DataError, match="expected events to split, found 0"):
        split_dataset(empty, tmp_path / "split")
    assert not (tmp_path / "split").exists()


def test_a_log_of_one_moment_is_refused(tmp_path: Path) -> None:
    rows = [{"user_id": n, "item_id": n, "type": "click", "minute": 0} for n in range(9)]
    with pytest.raises(DataError, match="found 9 between .* Use protocol 'holdout'"):
        split_dataset(
            FakeDataset(events_table(rows), items_table(dict.fromkeys(range(9), True))), tmp_path / "split"
        )


def test_an_unknown_protocol_is_refused(shop: FakeDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 'random'"):
        split_dataset(FakeDataset(shop.events, shop.items, "random"), tmp_path / "split")


def test_holdout_without_pictures_is_refused(purchases: FakeDataset, tmp_path: Path) -> None:
    blind = FakeDataset(purchases.events, items_table(dict.fromkeys(range(60), False)), "holdout")
    with pytest.raises(DataError, match="two or more pictured items"):
        split_dataset(blind, tmp_path / "split")


def test_opening_something_else_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="moon split"):
        Split.open(open_artifact(tmp_path, "split"))
