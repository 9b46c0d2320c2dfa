"""The split never lets a model see what it is tested on."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import dataset.requests as requests_module
from dataset import protocols
from dataset.contracts import EVENTS, ITEMS, DataError
from dataset.marketplace.simulate import simulate
from dataset.protocols import BY
from dataset.requests import PARTS
from dataset.split import Split, measured_items, split_dataset
from run.artifacts import Artifact, ArtifactError, open_artifact

START = datetime(2026, 6, 1, tzinfo=UTC)


@dataclass
class FakeDataset:
    """What ``split_dataset`` reads of a dataset."""

    events: pa.Table
    items: pa.Table
    config: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)

    @property
    def artifact(self) -> Artifact:
        return Artifact(Path("some/dataset"), "dataset", "0" * 16, self.config, {})


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
    monkeypatch.setattr(requests_module, "MOST", {"test": 5, "train": 9})
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
    rows.append({"user_id": 0, "item_id": 0, "type": "click", "minute": 0, "request_id": 0})
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


def test_what_was_taken_is_what_ranks_where_nothing_says_what_was_not_liked(tmp_path: Path) -> None:
    rows = [{"user_id": n % 3, "item_id": n // 2, "type": "click", "minute": n} for n in range(100)]
    data = FakeDataset(events_table(rows), items_table(dict.fromkeys(range(50), True)))
    split = Split.open(split_dataset(data, tmp_path / "split", "time"))
    found = [(r["user_id"], r["item_id"], r["time"], r["label"]) for r in split.ranking.to_pylist()]
    assert found == [(n % 3, n // 2, START + timedelta(minutes=n), 1.0) for n in range(60, 100)]
    assert split.ranking["part"].to_pylist() == ["train"] * 18 + ["valid"] * 2 + ["test"] * 20
    assert not split.shows and len(set(split.ranking["request_id"].to_pylist())) == 40
    assert split.retrieval.num_rows == 6


@pytest.fixture(scope="module")
def purchases() -> FakeDataset:
    """Purchases of which only the day is known; a third of the items has no picture."""
    rng = np.random.default_rng(5)
    rows = [
        {
            "user_id": int(user),
            "item_id": int(item),
            "type": "purchase",
            "minute": 1440 * int(day),
            "lag": 86_400,
            "sequence": number,
        }
        for number, (user, item, day) in enumerate(
            zip(rng.integers(0, 120, 900), rng.integers(0, 60, 900), rng.integers(0, 7, 900), strict=True)
        )
    ]
    return FakeDataset(events_table(rows), items_table({item: item % 3 > 0 for item in range(60)}))


@pytest.fixture(scope="module")
def splits(
    shop: FakeDataset, purchases: FakeDataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], tuple[FakeDataset, Split]]:
    """A log of slates and one of purchases, by every protocol; what is given is the cut in time."""
    folder = tmp_path_factory.mktemp("splits")
    made: dict[tuple[str, str], tuple[FakeDataset, Split]] = {}
    for name, data in (("shop", shop), ("purchases", purchases)):
        for by in BY:
            if by == "given":
                parts = made[name, "time"][1].ranking.select(["event_id", "part"])
                data = replace(data, extra={"event": parts})
            made[name, by] = (data, Split.open(split_dataset(data, folder / f"{name}_{by}", by, seed=1)))
    return made


BOTH = [(name, by) for name in ("shop", "purchases") for by in BY]


def liked_by(data: FakeDataset) -> dict[int, list[dict]]:
    """The first like of each item, by user, in the order of the log."""
    found: dict[int, list[dict]] = defaultdict(list)
    for event in sorted(data.events.to_pylist(), key=lambda e: (e["available_time"], e["sequence"] or 0)):
        mine = found[event["user_id"]]
        if event["type"] in ("click", "cart", "purchase") and event["item_id"] not in {
            one["item_id"] for one in mine
        }:
            mine.append(event)
    return found


@pytest.mark.parametrize("name, by", BOTH)
def test_nothing_asked_for_is_known_to_what_answers(splits, name: str, by: str) -> None:
    """The leak test of every protocol: by (user, item), whatever the moments are."""
    data, split = splits[name, by]

    def liked(log: pa.Table) -> set[tuple[int, int]]:
        kinds = np.isin(log["type"].to_pylist(), ["click", "cart", "purchase"])
        rows = log.filter(pa.array(kinds))
        return set(zip(rows["user_id"].to_pylist(), rows["item_id"].to_pylist(), strict=True))

    fitted, counted = liked(split.fit_log), liked(split.test_log)
    answers = {
        part: {
            (r["user_id"], i) for r in split.retrieval.to_pylist() if r["part"] == part for i in r["relevant"]
        }
        for part in ("train", "test")
    }
    assert answers["train"] and answers["test"]
    assert not fitted & (answers["train"] | answers["test"]) and not counted & answers["test"]
    if by in ("last", "users"):
        assert not liked(split.log) & answers["test"], "what is tested is not in the log at all"
    # What ranks: no (user, item) that trains or validates is fitted, none that tests is counted or trains.
    rows = [r for r in split.ranking.to_pylist() if r["label"] > 0]
    ranked = {p: {(r["user_id"], r["item_id"]) for r in rows if r["part"] == p} for p in PARTS}
    assert ranked["train"] and ranked["valid"] and ranked["test"]
    assert not answers["test"] & (ranked["train"] | ranked["valid"])
    if name == "purchases":  # in the shop an item may be shown, and clicked, again
        assert not fitted & set.union(*ranked.values()) and not counted & ranked["test"]
        assert not ranked["test"] & (ranked["train"] | ranked["valid"])
    first = {part: {} for part in PARTS}
    for row in split.ranking.to_pylist():
        known = first[row["part"]].get(row["user_id"])
        first[row["part"]][row["user_id"]] = min(known or row["time"], row["time"])
    for event in split.fit_log.to_pylist():  # nothing is fitted that happened in or after a user's requests
        for part in PARTS:
            asked = first[part].get(event["user_id"])
            assert asked is None or event["available_time"] <= asked


@pytest.mark.parametrize("name, by", BOTH)
def test_a_request_knows_of_its_user_all_that_came_before_and_nothing_else(
    splits, name: str, by: str
) -> None:
    data, split = splits[name, by]
    log = split.log.to_pylist()
    order = [event for events in liked_by(data).values() for event in events]
    place = {event["event_id"]: n for n, event in enumerate(order)}
    for request in split.retrieval.to_pylist():
        mine = [e for e in log if e["user_id"] == request["user_id"]]
        before = {e["event_id"] for e in mine if e["available_time"] < request["time"]} & set(place)
        mine_all = [e for e in order if e["user_id"] == request["user_id"]]
        asked = [e for e in mine_all if e["item_id"] in request["relevant"]]
        earliest = min(place[e["event_id"]] for e in asked)
        assert all(place[one] < earliest for one in before)
        if name == "purchases" and by in (
            "last",
            "users",
        ):  # no slate was shown before: everything earlier is known
            assert before == {e["event_id"] for e in mine_all if place[e["event_id"]] < earliest}


def test_last_asks_for_the_last_item_of_everybody_and_the_one_before_validates(splits) -> None:
    data, split = splits["purchases", "last"]
    liked = {user: [e["item_id"] for e in events] for user, events in liked_by(data).items()}
    eligible = {user: items for user, items in liked.items() if len(items) >= 3}
    asked = {r["user_id"]: r["relevant"] for r in split.retrieval.to_pylist() if r["part"] == "test"}
    assert asked == {user: [items[-1]] for user, items in eligible.items()}
    rows = split.ranking.to_pylist()
    for part, place in (("test", -1), ("valid", -2)):
        found = {r["user_id"]: r["item_id"] for r in rows if r["part"] == part}
        assert found == {user: items[place] for user, items in eligible.items()}
    for user, items in eligible.items():
        left = items[:-2]
        trained = 0 if len(left) < 2 else max(len(left) // 4, 1)
        mine = sorted(
            (r for r in rows if r["user_id"] == user and r["part"] == "train"), key=lambda r: r["time"]
        )
        assert [r["item_id"] for r in mine] == left[len(left) - trained :]
        fitted = [e["item_id"] for e in split.fit_log.to_pylist() if e["user_id"] == user]
        assert set(fitted) == set(left[: len(left) - trained])
        counted = [e["item_id"] for e in split.test_log.to_pylist() if e["user_id"] == user]
        assert set(counted) == set(left), "no model counts what validates; histories have it"
        assert items[-2] in [e["item_id"] for e in split.log.to_pylist() if e["user_id"] == user]
    assert (split.by, split.artifact.config["why"]) == ("last", "asked for")


def test_users_who_are_tested_are_strangers_to_everything_that_is_counted(splits) -> None:
    for name in ("shop", "purchases"):
        data, split = splits[name, "users"]
        liked = liked_by(data)
        eligible = {user for user, events in liked.items() if len(events) >= 2}
        tested = {r["user_id"] for r in split.retrieval.to_pylist() if r["part"] == "test"}
        assert tested <= eligible and len(tested) == pytest.approx(len(eligible) / 3, rel=0.35)
        assert tested.isdisjoint(split.fit_log["user_id"].to_pylist())
        assert tested.isdisjoint(split.test_log["user_id"].to_pylist())
        known = tested & set(split.log["user_id"].to_pylist())
        assert len(known) > 0.5 * len(tested), "they are known by what they did before"
        trained = {r["user_id"] for r in split.ranking.to_pylist() if r["part"] in ("train", "valid")}
        assert trained and trained.isdisjoint(tested)
        if name == "purchases":
            for request in split.retrieval.to_pylist():
                assert request["relevant"] == [liked[request["user_id"]][-1]["item_id"]]
            assert trained == eligible - tested


def test_every_like_but_the_first_of_a_third_of_the_users_is_a_request(
    purchases: FakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the others, and of those who validate, the last like is; the rest is learned from before the ranker."""
    data, most = purchases, int(0.6 * len(liked_by(purchases)))
    monkeypatch.setitem(protocols.MOST, "train", most)
    split = Split.open(split_dataset(data, tmp_path / "s", "users", seed=1))
    liked = {user: [e["item_id"] for e in events] for user, events in liked_by(data).items()}
    rows, fitted = split.ranking.to_pylist(), split.fit_log.to_pylist()
    users = {part: {r["user_id"] for r in rows if r["part"] == part} for part in ("train", "valid")}
    assert users["valid"] and users["train"].isdisjoint(users["valid"])
    whole = set()
    for part in users:
        for user in users[part]:
            mine = [r for r in rows if r["user_id"] == user]
            assert {r["part"] for r in mine} == {part}
            if part == "train" and len(mine) > 1:
                whole.add(user)
            first = 1 if len(mine) > 1 else -1
            assert [r["item_id"] for r in mine] == liked[user][first:] and (first == -1 or part == "train")
            known = {e["item_id"] for e in fitted if e["user_id"] == user}
            assert known == set(liked[user][:first]), "what trains the ranker is learned from by nothing else"
    several = {user for user in users["train"] | users["valid"] if len(liked[user]) > 2}
    assert 0 < len(whole) < 0.7 * len(several)


def test_where_every_other_user_trains_the_ranker_only_their_last_likes_do(splits) -> None:
    data, split = splits["purchases", "users"]
    liked = {user: [e["item_id"] for e in events] for user, events in liked_by(data).items()}
    asked = [(r["user_id"], r["item_id"]) for r in split.ranking.to_pylist()]
    assert sorted(asked) == sorted((user, liked[user][-1]) for user, _ in asked)


def test_requests_of_what_was_taken_are_capped(
    purchases: FakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_module, "MOST_TAKEN", {"train": 9, "valid": 3, "test": 5})
    ranking = Split.open(split_dataset(purchases, tmp_path / "s", "users")).ranking
    assert {part: pc.sum(pc.equal(ranking["part"], part)).as_py() for part in PARTS} == {
        "train": 9,
        "valid": 3,
        "test": 5,
    }


def test_the_hash_of_users_depends_on_the_seed_alone(purchases: FakeDataset, tmp_path: Path) -> None:
    def tested(data: FakeDataset, folder: str, seed: int) -> set[int]:
        split = Split.open(split_dataset(data, tmp_path / folder, "users", seed=seed))
        return {r["user_id"] for r in split.retrieval.to_pylist() if r["part"] == "test"}

    fewer = FakeDataset(purchases.events.filter(pc.less(purchases.events["user_id"], 60)), purchases.items)
    few = {user for user in tested(purchases, "a", 4) if user < 60}
    assert tested(fewer, "b", 4) == few, "what others did decides nothing, and a user stays in its part"
    assert tested(purchases, "c", 5) != tested(purchases, "d", 4)


def test_the_moments_of_one_day_are_spaced_in_the_order_of_the_log(splits) -> None:
    data, split = splits["purchases", "last"]
    given = {e["event_id"]: e for e in data.events.to_pylist()}
    for _, rows in split.log.to_pandas().groupby("user_id"):
        times = rows.sort_values("available_time")["available_time"]
        assert (times.diff().dropna() > timedelta(0)).all()
        keys = [(given[i]["available_time"], given[i]["sequence"]) for i in rows.loc[times.index, "event_id"]]
        assert keys == sorted(keys)
    moved = [e["available_time"] - given[e["event_id"]]["available_time"] for e in split.log.to_pylist()]
    assert timedelta(0) < max(moved) < timedelta(milliseconds=1) and min(moved) == timedelta(0)
    _, by_time = splits["purchases", "time"]
    for event in by_time.log.to_pylist():
        assert event["available_time"] == given[event["event_id"]]["available_time"], "by time nothing moves"


def test_only_what_the_benchmark_measures_is_asked_of_strangers(
    purchases: FakeDataset, tmp_path: Path
) -> None:
    pictured = FakeDataset(purchases.events, purchases.items, {"candidates": "pictured"})
    split = Split.open(split_dataset(pictured, tmp_path / "split", "users"))
    assert all(item % 3 for r in split.retrieval.to_pylist() for item in r["relevant"])
    acted_on = set(purchases.events["item_id"].to_pylist())
    assert measured_items(pictured).tolist() == sorted(i for i in acted_on if i % 3)
    assert measured_items(purchases).tolist() == list(range(60))


def taken(users: int, days: list[int]) -> FakeDataset:
    """Every user buys another item on each of some days."""
    rows = [
        {"user_id": user, "item_id": place, "type": "purchase", "minute": 1440 * day + user}
        for place, day in enumerate(days)
        for user in range(users)
    ]
    return FakeDataset(events_table(rows), items_table(dict.fromkeys(range(len(days)), False)))


def test_the_protocol_is_chosen_from_the_data_and_says_why(shop: FakeDataset, tmp_path: Path) -> None:
    strangers = [
        {"user_id": 2 * n + again, "item_id": again + n % 2, "type": "click", "minute": n + again}
        for n in range(60)
        for again in (0, 1)
    ]  # every user clicks once
    visitors = [{**row, "user_id": n // 2} for n, row in enumerate(strangers)]  # twice, one minute apart
    items = items_table(dict.fromkeys(range(3), False))
    expected = {
        "shop": (shop, "time", "what was shown and not liked is known"),
        "returning": (taken(30, list(range(10))), "time", "100% of those who liked something"),
        "one_day": (taken(30, [0, 0, 0]), "users", "only 0% of those"),
        "visitors": (FakeDataset(events_table(visitors), items), "users", "only 8% of those"),
        "once": (
            FakeDataset(events_table([dict(row) for row in strangers]), items),
            "time",
            "no user liked two",
        ),
    }
    for name, (data, by, why) in expected.items():
        config = split_dataset(data, tmp_path / name).config
        assert config["by"] == by and why in config["why"], (name, config)
    one = [{"user_id": n % 4, "item_id": n % 3, "type": "click", "minute": 0} for n in range(12)]
    config = split_dataset(FakeDataset(events_table(one), items), tmp_path / "moment").config
    assert (config["by"], config["why"]) == ("users", "the events have too few distinct times to be cut")


@pytest.mark.parametrize(("strangers", "by"), [(11, "time"), (12, "users"), (13, "users")])
def test_a_cut_in_time_is_chosen_where_most_of_those_asked_have_a_history(
    tmp_path: Path, strangers: int, by: str
) -> None:
    """Twelve users buy on eight days and once more on the tenth, when strangers buy, too."""
    known = [(user, day) for day in (*range(8), 9) for user in range(12)]
    asked = [*known, *((100 + stranger, 9) for stranger in range(strangers))]
    rows = [
        {"user_id": user, "item_id": day, "type": "purchase", "minute": 1440 * day + user}
        for user, day in asked
    ]
    data = FakeDataset(events_table(rows), items_table(dict.fromkeys(range(10), False)))
    assert split_dataset(data, tmp_path / "split").config["by"] == by


def test_same_seed_same_artifact(purchases: FakeDataset, tmp_path: Path) -> None:
    ids = {split_dataset(purchases, tmp_path / name, "users", seed).id for name, seed in (("a", 4), ("b", 4))}
    assert len(ids) == 1
    assert split_dataset(purchases, tmp_path / "c", "users", 5).id not in ids


def test_a_catalogue_without_events_is_split_into_nothing_but_its_pool(tmp_path: Path) -> None:
    empty = FakeDataset(EVENTS.empty_table(), items_table({1: True, 2: True}))
    split = Split.open(split_dataset(empty, tmp_path / "split"))
    assert (split.by, split.artifact.config["why"]) == ("none", "there are no events")
    assert not len(split.log) and not len(split.ranking) and not len(split.retrieval)
    assert split.encoder_items(empty.items).tolist() == [1, 2] and split.fit_until > START
    with pytest.raises(
        DataError, match="expected events to split by last, found 0. Run 'moon split' without"
    ):
        split_dataset(empty, tmp_path / "other", "last")


def test_a_protocol_that_a_log_does_not_allow_is_refused(tmp_path: Path) -> None:
    rows = [{"user_id": n, "item_id": n, "type": "click", "minute": 0} for n in range(9)]
    data = FakeDataset(events_table(rows), items_table(dict.fromkeys(range(9), True)))
    with pytest.raises(DataError, match="found 9 between .* Run 'moon split --by users'"):
        split_dataset(data, tmp_path / "split", "time")
    with pytest.raises(DataError, match="expected users who liked 3 items, found 0 of 9 users"):
        split_dataset(data, tmp_path / "split", "last")
    with pytest.raises(DataError, match="one of time, last, users, given, found 'random'"):
        split_dataset(data, tmp_path / "split", "random")
    assert not (tmp_path / "split").exists()


def given(parts: dict[int, str]) -> FakeDataset:
    """Two users see an item an hour, each clicks the even ones; ``parts`` of some impressions by their event's id."""
    rows = []
    for hour in range(10):
        user, request = hour % 2 + 1, hour + 1
        rows.append({"user_id": user, "item_id": hour, "type": "impression", "minute": 60 * hour})
        rows[-1]["request_id"] = request
        if hour // 2 % 2 == 0:
            clicked = {"user_id": user, "item_id": hour, "type": "click", "minute": 60 * hour + 1}
            rows.append({**clicked, "request_id": request})
    beside = pa.table({"event_id": list(parts), "part": list(parts.values())})
    table = items_table(dict.fromkeys(range(10), True))
    return FakeDataset(events_table(rows), table, {"protocol": "given"}, {"event": beside})


def test_the_parts_of_the_source_are_kept(tmp_path: Path) -> None:
    """Whatever their times are: here a request that trains comes after one that tests."""
    data = given({})
    shown = {
        row["item_id"]: row["event_id"] for row in data.events.to_pylist() if row["type"] == "impression"
    }
    parts = {2: "train", 3: "valid", 4: "test", 5: "test", 8: "train"}
    data = given({shown[item]: part for item, part in parts.items()})
    split = Split.open(split_dataset(data, tmp_path / "split"))
    assert split.by == "given" and split.shows
    asked = {row["item_id"]: (row["part"], row["label"]) for row in split.ranking.to_pylist()}
    assert asked == {
        2: ("train", 0),
        3: ("valid", 0),
        4: ("test", 1),
        5: ("test", 1),
        8: ("train", 1),
    }
    assert sorted(set(split.fit_log["item_id"].to_pylist())) == [0, 1]  # before anybody was asked
    assert sorted(set(split.test_log["item_id"].to_pylist())) == [0, 1, 2, 3]  # before anybody is tested
    assert len(split.log) == len(data.events)


def test_a_split_that_is_not_given_is_refused(tmp_path: Path) -> None:
    data = given({})
    nothing = replace(data, extra={})
    other = given({1: "train", 3: "holdout"})
    untested = given({1: "train", 3: "valid"})
    for wrong, why in (
        (nothing, "expected a column 'part' beside the events .* found none. Name one in 'context'"),
        (
            other,
            r"expected train, valid, test in the column 'part' .* found 1 other values, first \['holdout'\]",
        ),
        (
            untested,
            "parts train and test, found 1 of train, 1 of valid, 0 of test. Run 'moon split --by time'",
        ),
    ):
        with pytest.raises(DataError, match=why):
            split_dataset(wrong, tmp_path / "split")
    assert not (tmp_path / "split").exists()


def test_opening_something_else_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="moon split"):
        Split.open(open_artifact(tmp_path, "split"))


@pytest.mark.parametrize("by", ["time", "last", "users"])
def test_an_item_that_the_asked_event_is_the_first_to_name_trains_nothing(by: str, tmp_path: Path) -> None:
    """Every other item that a user takes nobody took before; the others all take."""
    rows = []
    for user in range(30):
        for place in range(12):
            item = 100 * (user + 1) + place if (user + place) % 2 else 1 + (user + place) % 9
            rows.append({"user_id": user, "item_id": item, "type": "click", "minute": 300 * place + user})
    events = events_table(sorted(rows, key=lambda row: row["minute"]))
    items = items_table(dict.fromkeys(sorted({row["item_id"] for row in rows}), True))
    first: dict[int, datetime] = {}
    for row in events.to_pylist():
        first.setdefault(row["item_id"], row["event_time"])
    seen = pa.array(
        [first[item] for item in items["item_id"].to_pylist()], items.schema.field("first_seen").type
    )
    items = items.set_column(items.column_names.index("first_seen"), items.schema.field("first_seen"), seen)
    fresh = {}
    for rule in ("first event", "start of the log"):
        dataset = FakeDataset(events, items, {"first_seen": {"items": rule}})
        split = Split.open(split_dataset(dataset, tmp_path / rule, by=by))
        named = [(row["part"], row["item_id"] > 99) for row in split.ranking.to_pylist()]
        named += [(f"asked {row['part']}", max(row["relevant"]) > 99) for row in split.retrieval.to_pylist()]
        fresh[rule] = {part for part, is_new in named if is_new}
        assert {"train", "asked train"} <= {part for part, _ in named}
    assert {"train", "asked train", "test", "asked test"} <= fresh["start of the log"]
    assert fresh["first event"] == {"test", "asked test"}
