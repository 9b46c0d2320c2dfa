"""Only what is there is needed: the whole journey, and the service, on data that lack one thing or another."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from minimal_world import GROUPS, ITEM_COUNT, WORDS, events_of, group_of, tables_of, travel

from feature_repo.ingest.ingestor import VISIBLE_AFTER
from moon import summary
from run.artifacts import open_artifact
from serving.app import create_app
from serving.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")
CHANCE = 1 / GROUPS


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``run_of(case)`` is the folder of a finished run of that case, made once."""
    made: dict[str, Path] = {}
    cases = {
        "ids": lambda: (tables_of(events_of(("purchase",), users=300, each=6), False, False), "users"),
        "catalogue": lambda: (tables_of(None), None),
        "words": lambda: (tables_of(events_of(("click",)), True, False), "last"),
        "pictures": lambda: (tables_of(events_of(("rating",)), False, True), None),
    }

    def run_of(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp(case) / "run"
            travel(made[case], *cases[case]())
        return made[case]

    return run_of


def asked(folder: Path) -> TestClient:
    return TestClient(create_app(Settings(run=folder)))


def metrics(folder: Path) -> dict[str, float]:
    return {name: one["value"] for name, one in json.loads((folder / "metrics.json").read_text()).items()}


def not_measured(folder: Path) -> dict[str, str]:
    return json.loads((folder / "not_measured.json").read_text())


def items(answer) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [hit["item_id"] for hit in answer.json()["hits"]]


def agreeing(found: list[int], group: int) -> float:
    """The share of these items that are of a group."""
    return float(np.mean([group_of(item) == group for item in found]))


def tastes_met(client: TestClient, users: range) -> float:
    """The share of users' recommendations that are of the group they like."""
    shares = []
    for user in users:
        answer = client.get("/recommend", params={"user_id": user, "k": 10})
        shares.append(agreeing(items(answer), user % GROUPS))
        assert answer.json()["order"] == "ranker"
    return float(np.mean(shares))


def test_ids_and_purchases_are_enough_for_everything_but_content(run_of: Callable[[str], Path]) -> None:
    """A few hundred users, one event type, no impressions, no catalogue: all but content is trained and served."""
    folder = run_of("ids")
    measured, missing = metrics(folder), not_measured(folder)
    assert missing == {
        "ctr": "no impressions and no ratings that say what was not liked",
        "daily": "nothing says what was shown and not liked",
        "relevance": "no queries whose items were judged",
        "encoder": "no pictures and no titles",
    }
    assert not [name for name in measured if name.startswith(("ctr/", "encoder/", "relevance/"))]
    assert measured["retrieval/moon/recall@10"] > 1.5 * measured["retrieval/popularity/recall@10"] > 0
    with asked(folder) as client:
        assert tastes_met(client, range(1, 13)) > 2 * CHANCE
        alike = [
            agreeing(items(client.get("/similar", params={"item_id": i, "k": 5})), group_of(i))
            for i in range(1, 9)
        ]
        assert np.mean(alike) > 2 * CHANCE, "items without content are alike by who took them"
        assert client.get("/similar", params={"item_id": 10**6}).status_code == 404
        assert items(client.post("/search", json={"text": WORDS[0]})) == []
        unknown = client.get("/recommend", params={"user_id": 10**9, "k": 60}).json()
        assert unknown["order"] == "ranker" and unknown["fallbacks"] == ["unknown_user"]
        assert len({hit["item_id"] for hit in unknown["hits"]}) == ITEM_COUNT
    said = summary.text(folder)
    assert "ctr: not measured: no impressions and no ratings" in said and "encoder: not measured" in said
    report = (folder / "report.html").read_text()
    assert "Not measured: encoder: no pictures and no titles." in report
    assert "(no title)" not in said + report and "item sku-" in report, "who has no title has the shop's id"


def test_everything_taken_trains_the_ranker(run_of: Callable[[str], Path]) -> None:
    """Purchases alone: every one of the split's training requests is one of the ranker's."""
    folder = run_of("ids")
    split = open_artifact(folder / "split", "split")
    ranker = open_artifact(folder / "ranker_full", "ranker")
    assert ranker.config["loss"] == "listwise" and split.config["by"] == "users"
    assert ranker.config["outcome"]["train_loss"][-1] < np.log(51), "better than a guess among 51"


def test_a_catalogue_without_events_is_searched_and_browsed_before_the_first_event(
    run_of: Callable[[str], Path],
) -> None:
    folder = run_of("catalogue")
    assert not_measured(folder) == {
        "retrieval": "no events", "ctr": "no events", "daily": "no events",
        "relevance": "no queries whose items were judged",
    }  # fmt: skip
    measured = metrics(folder)
    assert {name.split("/")[0] for name in measured} == {"encoder", "search"}
    assert not list(folder.glob("ranker_*")) and not (folder / "two_tower").exists()
    with asked(folder) as client:
        newest = client.get("/recommend", params={"user_id": 1, "k": 5}).json()
        assert [hit["item_id"] for hit in newest["hits"]] == list(range(ITEM_COUNT, ITEM_COUNT - 5, -1))
        assert newest["order"] == "newest" and newest["fallbacks"] == ["unknown_user"]
        alike = [
            agreeing(items(client.get("/similar", params={"item_id": i, "k": 3})), group_of(i))
            for i in range(1, 25)
        ]
        assert np.mean(alike) > 2 * CHANCE
        found = [
            agreeing(items(client.post("/search", json={"text": WORDS[g], "k": 3})), g) for g in range(GROUPS)
        ]
        assert np.mean(found) > 2 * CHANCE
        visit = client.get("/recommend", params={"user_id": 1, "k": 5, "session": [3, 7]})
        assert visit.json()["order"] == "retrieval" and agreeing(items(visit), 3) > 2 * CHANCE
        event = {"event_id": 1, "user_id": 1, "item_id": 9, "type": "click"}
        assert client.post("/events", json=[event]).json() == {"accepted": 1, "duplicates": 0}
        time.sleep(VISIBLE_AFTER.total_seconds())  # no request before that may see it
        first = client.get("/recommend", params={"user_id": 1, "k": 5})
        assert first.json()["order"] == "retrieval" and agreeing(items(first), 1) > 2 * CHANCE
        page = client.get("/")
        assert page.status_code == 200
    assert "retrieval: not measured: no events" in summary.text(folder)
    assert "served example: an unknown user" in summary.text(folder)


def test_words_alone_are_enough_and_leave_one_out_is_measured_over_all_items(
    run_of: Callable[[str], Path],
) -> None:
    folder = run_of("words")
    measured, missing = metrics(folder), not_measured(folder)
    assert missing["encoder"] == "no pictures" and "retrieval" not in missing
    content = json.loads((folder / "metrics.json").read_text())
    assert content["retrieval/moon/hit_rate@10"]["n"] == 40, "every user is asked"
    assert content["retrieval/moon/coverage@20"]["n"] == ITEM_COUNT, "among all items"
    # Where one item is relevant, recall is the hit rate.
    assert measured["retrieval/moon/hit_rate@10"] == measured["retrieval/moon/recall@10"]
    assert 0 < measured["retrieval/moon/ndcg@10"] <= measured["retrieval/moon/hit_rate@10"]
    with asked(folder) as client:
        assert tastes_met(client, range(1, 9)) > 2 * CHANCE
        found = [
            agreeing(items(client.post("/search", json={"text": WORDS[g], "k": 3})), g) for g in range(GROUPS)
        ]
        assert np.mean(found) > 2 * CHANCE


def test_pictures_alone_and_ratings_are_enough(run_of: Callable[[str], Path]) -> None:
    folder = run_of("pictures")
    measured, missing = metrics(folder), not_measured(folder)
    assert missing == {"relevance": "no queries whose items were judged", "encoder": "no titles"}
    assert measured["ctr/full/auc"] > 0.6, "what a rating will be is predicted"
    assert open_artifact(folder / "ranker_full", "ranker").config["loss"] == "pointwise"
    with asked(folder) as client:
        assert tastes_met(client, range(1, 9)) > 2 * CHANCE
        alike = [
            agreeing(items(client.get("/similar", params={"item_id": i, "k": 3})), group_of(i))
            for i in range(1, 25)
        ]
        assert np.mean(alike) > 2 * CHANCE
