"""Items that almost nobody acted on are raised: the rule, the service and the evaluation.

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


def slowly(ids, scores, rare, k, height):
    """The rule as it is said: ids, and whether each stands before a better one."""
    rows = list(zip(ids.tolist(), scores.tolist(), rare.tolist(), strict=True))
    plainly = [one[0] for one in sorted(rows, key=lambda c: (-c[1], c[0]))]
    raised = sorted(rows, key=lambda c: (-np.float32(c[1] + height * c[2]), c[0]))[:k]
    return [(one[0], one[2] and plainly.index(one[0]) > place) for place, one in enumerate(raised)]


def test_what_is_rare_is_raised_past_what_is_less_far_above_it():
    ids, scores = np.arange(8), np.array([9, 8, 7, 6, 5, 4, 3, 2], np.float32)
    rare = np.isin(ids, [1, 5, 6])
    best, score, explored = with_rare(ids, scores, rare, 7, 1.5)
    assert best.tolist() == [1, 0, 2, 3, 5, 4, 6]
    assert score.tolist() == scores[best].tolist(), "their own"
    assert best[explored].tolist() == [1, 5], "6 stands where its own score puts it"
    assert with_rare(ids, scores, rare, 7, 5)[0].tolist() == [1, 0, 5, 6, 2, 3, 4], "an equal one: by id"


def test_it_is_the_rule_and_a_longer_answer_begins_with_the_shorter():
    draw = np.random.default_rng(0)
    for _ in range(200):
        ids = draw.permutation(30)[: draw.integers(1, 30)]
        scores = draw.integers(0, 6, len(ids)).astype(np.float32)
        rare, height = draw.random(len(ids)) < draw.random(), float(draw.choice([0, 0.25, 1, 2.5, 5]))
        best, _, explored = with_rare(ids, scores, rare, 25, height)
        assert list(zip(best.tolist(), explored.tolist(), strict=True)) == slowly(
            ids, scores, rare, 25, height
        )
        assert with_rare(ids, scores, rare, 7, height)[0].tolist() == best[:7].tolist()
        if height == 0:
            assert best.tolist() == best_first(ids, scores, 25)[0].tolist() and not explored.any()


def test_the_service_raises_them_by_what_it_is_told(moon):
    plainly = moon.recommend(4, 40)
    ranked = [one for one, _ in shown(plainly)]
    assert not set(ranked[:8]) & set(RARE.tolist()) and {kept for _, kept in shown(plainly)} == {False}
    score = {hit.card.item_id: hit.score for hit in plainly.hits}
    rare = [one for one in ranked if one in RARE.tolist()]
    moon.explore = score[ranked[2]] - score[rare[0]] + (score[ranked[1]] - score[ranked[2]]) / 2
    answer = moon.recommend(4, 8)
    assert shown(answer)[:3] == [(ranked[0], False), (ranked[1], False), (rare[0], True)]
    assert {kept == (one in rare) for one, kept in shown(answer)} == {True}


def test_who_is_answered_without_the_ranker_is_not_explored_on(moon):
    moon.explore, moon.ranker = 5.0, None
    assert {kept for _, kept in shown(moon.recommend(4, 8))} == {False}


def test_the_answer_says_which_items_were_raised(moon, tmp_path):
    rare = set(RARE.tolist())
    moon.explore = 1e6  # this ranker's scores are no log-odds
    expected = [True if one in rare else None for one, _ in shown(moon.recommend(4, 8))]
    client = TestClient(create_app(Settings(run=tmp_path), moon))
    hits = client.get("/recommend", params={"user_id": "4", "k": "8"}).json()["hits"]
    assert [hit.get("explored") for hit in hits] == expected and expected[0]
    assert client.get("/", params={"user_id": "4"}).text.count("hardly known yet") >= expected.count(True)
    moon.explore = 0.0
    assert "hardly known yet" not in client.get("/", params={"user_id": "4"}).text


@pytest.mark.parametrize("height", [-0.1, 5.5, float("nan")])
def test_a_height_is_from_0_to_5(height):
    with pytest.raises(ValueError, match="explore is .*: expected log-odds from 0 to 5"):
        replace(Settings(run=Path("run")), explore=height)
    refused = CliRunner().invoke(app, ["serve", f"--explore={height}"])
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
    moon.explore = float(np.ptp(scores)) / 2
    expected = [[item for item, _ in shown(moon.recommend(user, 10))] for user in users]
    assert explored_lists(scored, rare, 10, moon.explore).tolist() == expected
    assert explored_lists(scored, rare, 10, 0.0).tolist() == lists(scored, 10).tolist() != expected
