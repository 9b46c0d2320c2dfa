"""A score is for an average place: there as many impressions would be clicked as at the places where they stood."""

import json

import numpy as np
import pytest
import torch
from ranker_world import Requests, make_frame, make_world
from scipy.special import expit, logit

from ranker import attempt
from ranker.daily import Terms, train_day
from ranker.places import unplaced
from ranker.recipes import recipe
from ranker.score import Ranker
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
NANO, PLACES = size("nano"), 10
STEP, RARE = (
    0.35,
    1.5,
)  # of log-odds: what a place further down costs, and how much rarer clicks are than likings


def logged(requests, seed):
    """Slates that a shop ordered almost by what users like, with their clicks, and the true chance of each."""
    world, draw = make_world(requests=requests, slate=PLACES, seed=seed), np.random.default_rng(seed)
    liking = logit(world.probability.reshape(requests, PLACES))
    order = np.argsort(-liking + draw.normal(scale=1.0, size=liking.shape), axis=1)
    item_id = world.frame.candidates["item_id"].to_numpy().reshape(liking.shape)
    chance = expit(np.take_along_axis(liking, order, 1) - RARE - STEP * np.arange(PLACES))
    history = world.frame.history
    frame = make_frame(
        world.frame.requests["user_id"].to_pylist(),
        [one.tolist() for one in np.split(history.item_id, history.offsets[1:-1])],
        np.take_along_axis(item_id, order, 1).tolist(),
        list(draw.random(chance.shape) < chance),
        positions=[np.arange(PLACES)] * requests,
    )
    return world.vectors, frame, chance.ravel()


def placed(ranker, frame):
    """Chances at the logged places."""
    found = np.empty(int(frame.offsets[-1]))
    for rows, batch in ranker.batches(frame):
        with torch.no_grad():
            found[rows] = torch.sigmoid(ranker.model(batch, logged=True)[batch.candidate_mask]).numpy()
    return found


@pytest.mark.parametrize("tower", [False, True])
def test_as_many_clicks_are_predicted_as_there_are(tower, tmp_path):
    vectors, train, _ = logged(1200, seed=2)
    training = Training(settings=Settings(NANO.id_width, 2e-3, 0.005), position_tower=tower)
    requests, checked = Requests(train), Requests(logged(150, seed=102)[1])
    ranker = Ranker.open(train_ctr(requests, checked, vectors, NANO, tmp_path / "r", {}, training), vectors)
    _, test, chance = logged(300, seed=3)
    score = ranker.score(test)
    assert expit(score).sum() / chance.sum() == pytest.approx(1, abs=0.05)
    added = ranker.model.unplaced
    ranker.model.unplaced = 0.0
    np.testing.assert_allclose(score, ranker.score(test) + added, atol=1e-5)  # no order changes
    assert expit(ranker.score(test)).sum() / chance.sum() < 0.85, (
        "the mean of the places' log-odds is too low"
    )


def test_the_constant_is_where_the_sums_of_chances_meet():
    draw = np.random.default_rng(0)
    for scale in (0.1, 1.0, 3.0):
        free = draw.normal(-3, 2, 400)
        at_places = free + scale * draw.normal(0.5, 1, 400)
        tried = np.linspace(-8, 8, 160_001)
        sums = np.array([expit(free + one).sum() for one in tried[::100]])
        near = tried[::100][np.argmin(np.abs(sums - expit(at_places).sum()))]
        fine = tried[np.abs(tried - near) < 0.02]
        slow = min(fine, key=lambda one: abs(expit(free + one).sum() - expit(at_places).sum()))
        assert unplaced(at_places, free) == pytest.approx(slow, abs=2e-4)
    assert unplaced(free + 0.25, free) == pytest.approx(0.25)
    assert unplaced(free, free) == 0 and unplaced(np.empty(0), np.empty(0)) == 0


def test_every_day_has_an_average_place_of_its_own(tmp_path):
    vectors, frame, _ = logged(240, seed=5)
    terms = Terms(recipe("attention"), NANO, vectors, "encoder", 0, 2, 2e-3, 0.005)
    requests, made = Requests(frame), None
    for day in range(3):
        today = Requests(requests.take(80 * day, 80 * day + 80))
        made = train_day(today, day, made, terms, tmp_path / "r", {}, {})
        ranker = Ranker.open(made, vectors)
        assert expit(ranker.score(today.frame)).sum() == pytest.approx(
            placed(ranker, today.frame).sum(), rel=1e-4
        )
        assert ranker.model.unplaced != 0


def test_a_log_without_places_or_without_chances_needs_none(tmp_path):
    _, frame, _ = logged(40, seed=6)
    nowhere = Requests(frame.__class__(frame.requests, frame.candidates.drop_columns(["position"]), frame.offsets,
                                       frame.history))  # fmt: skip
    for name, requests, loss in (("nowhere", nowhere, "pointwise"), ("lists", Requests(frame), "listwise")):
        training = Training(recipe=recipe("lr"), loss=loss, epochs=1)
        made = train_ctr(requests, requests, None, NANO, tmp_path / name, {}, training)
        assert json.loads(made.file("config.json").read_text())["unplaced"] == 0


def test_so_many_impressions_are_enough(monkeypatch, tmp_path):
    """The first ones of an epoch, which are drawn at random, and no more than are needed."""
    _, frame, _ = logged(400, seed=7)
    found = []
    for most in (10_000, 1_000):
        monkeypatch.setattr(attempt, "PLACED", most)
        training = Training(recipe=recipe("lr"), settings=Settings(NANO.id_width, 2e-3, 0.005), epochs=3)
        made = train_ctr(Requests(frame), Requests(frame), None, NANO, tmp_path / str(most), {}, training)
        found.append(Ranker.open(made, None).model.unplaced)
    assert found[0] != found[1] and found[0] == pytest.approx(found[1], abs=0.1)
