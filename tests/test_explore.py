"""Places kept for items that almost nobody acted on: the rule, the service and the evaluation.

Run: pytest tests/test_explore.py
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_shop import ITEM_IDS, recommender
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from evaluation.replay import explored_lists, lists
from moon.cli import app
from retrieval.explore import with_rare
from retrieval.jagged import Retrieved, best_first
from serving.app import create_app
from serving.settings import Settings

RARE = ITEM_IDS[29:]  # of the shop: the thirtieth item has one user, those after it none


class PopularFirst:
    """Prefers what the shop sells most."""

    history, order = 6, None

    def score(self, frame, query_vectors=None):
        return -frame.candidates["item_id"].to_numpy().astype(np.float32) / 1e15


@pytest.fixture
def moon():
    shop = recommender()
    shop.ranker, shop.per_source = PopularFirst(), len(ITEM_IDS)
    return shop


def shown(answer):
    return [(hit.card.item_id, hit.explored) for hit in answer.hits]


def slowly(ids, scores, rare, k, share):
    """The rule as it is said, one place after the other."""
    left = sorted(zip(ids.tolist(), scores.tolist(), rare.tolist(), strict=True), key=lambda c: (-c[1], c[0]))
    chosen = []
    while left and len(chosen) < k:
        owed = int(share * (len(chosen) + 1) + 1e-9) > sum(one[2] for one in chosen)
        better = [one for one in left if one[2]] if owed else []
        chosen.append((better or left)[0])
        left.remove(chosen[-1])
    return [one[0] for one in chosen]


def test_every_second_place_is_kept_and_an_item_that_earned_its_place_counts():
    ids, scores = np.arange(8), np.array([9, 8, 7, 6, 5, 4, 3, 2], np.float32)
    rare = np.isin(ids, [1, 5, 6])
    best, score, explored = with_rare(ids, scores, rare, 7, 0.5)
    assert best.tolist() == [0, 1, 2, 5, 3, 6, 4]
    assert score.tolist() == scores[best].tolist()
    assert best[explored].tolist() == [5, 6], "1 stands where its own score puts it"


def test_it_is_the_rule_and_a_longer_answer_begins_with_the_shorter():
    draw = np.random.default_rng(0)
    for _ in range(200):
        ids = draw.permutation(30)[: draw.integers(1, 30)]
        scores = draw.integers(0, 6, len(ids)).astype(np.float32)
        rare, share = draw.random(len(ids)) < draw.random(), float(draw.choice([0, 0.05, 0.1, 0.3, 1]))
        best, _, _ = with_rare(ids, scores, rare, 25, share)
        assert best.tolist() == slowly(ids, scores, rare, 25, share)
        assert with_rare(ids, scores, rare, 7, share)[0].tolist() == best[:7].tolist()
        if share == 0:
            assert best.tolist() == best_first(ids, scores, 25)[0].tolist()


def test_a_tenth_of_ten_places_is_one_and_of_nine_none():
    ids, scores = np.arange(30), -np.arange(30).astype(np.float32)
    for share, places in ((0.1, [10, 20]), (0.05, [20]), (0.2, [5, 10, 15, 20])):
        explored = with_rare(ids, scores, ids >= 25, 20, share)[2]
        assert (np.flatnonzero(explored) + 1).tolist() == places
    ids = np.arange(200)
    explored = with_rare(ids, -ids.astype(np.float32), ids >= 120, 100, 0.29)[2]
    assert explored.sum() == 29 and explored[99], "0.29 x 100 is a little less than 29"


def test_the_service_keeps_the_places_that_it_is_told_to(moon):
    plainly = moon.recommend(4, 8)
    moon.explore = 0.25
    answer = moon.recommend(4, 8)
    common = [one for one, _ in shown(plainly)]
    assert not set(common) & set(RARE.tolist()) and {kept for _, kept in shown(plainly)} == {False}
    candidates = [item for item, _ in shown(moon.recommend(4, 40))]  # all of them
    rare = sorted(set(candidates) & set(RARE.tolist()))  # as the ranker orders them
    expected = [*common[:3], rare[0], *common[3:6], rare[1]]
    assert shown(answer) == [(one, one in rare) for one in expected]


def test_who_is_answered_without_the_ranker_is_not_explored_on(moon):
    moon.explore, moon.ranker = 0.5, None
    assert {kept for _, kept in shown(moon.recommend(4, 8))} == {False}


def test_the_answer_says_which_places_were_kept(moon, tmp_path):
    moon.explore = 0.25
    client = TestClient(create_app(Settings(run=tmp_path), moon))
    hits = client.get("/recommend", params={"user_id": "4", "k": "8"}).json()["hits"]
    assert [hit.get("explored") for hit in hits] == [None, None, None, True] * 2
    assert client.get("/", params={"user_id": "4"}).text.count("hardly known yet") == 24 // 4
    moon.explore = 0.0
    assert "hardly known yet" not in client.get("/", params={"user_id": "4"}).text


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(ValueError, match="explore is .*: expected a share of the places, from 0 to 1"):
        replace(Settings(run=Path("run")), explore=share)
    refused = CliRunner().invoke(app, ["serve", f"--explore={share}"])
    assert refused.exit_code == 2 and "--explore" in refused.output


def test_the_evaluation_lists_what_the_service_would_answer(moon):
    """Two requests of one user each, with the service's own candidates and scores."""
    users, found = (4, 5), []
    for user in users:
        every = moon.recommend(user, 40).hits
        found.append(([hit.card.item_id for hit in every][::-1], [hit.score for hit in every][::-1]))
    counts = [len(ids) for ids, _ in found]
    ids, scores = (np.concatenate([one[part] for one in found]) for part in (0, 1))
    scored = Retrieved(np.cumsum([0, *counts]), ids, scores.astype(np.float32))
    rare = moon.retriever.popular.rare(ids)
    assert rare.tolist() == np.isin(ids, RARE).tolist()
    moon.explore = 0.2
    expected = [[item for item, _ in shown(moon.recommend(user, 10))] for user in users]
    assert explored_lists(scored, rare, 10, 0.2).tolist() == expected
    assert explored_lists(scored, rare, 10, 0.0).tolist() == lists(scored, 10).tolist() != expected
