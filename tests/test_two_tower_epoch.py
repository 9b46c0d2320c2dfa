"""The epoch of the two towers is the one that finds most of what held-out users took next, as its rates fall."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranker_world import TOWERS, WIDTH, Requests, catalogue, make_frame, make_vectors, unit
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ranker.inputs.bags import jagged
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.inputs.id_tables import collection, lookup
from ranker.learner import FallingLearner, Learner
from ranker.two_tower import held_out, negatives
from ranker.two_tower import train as train_module
from ranker.two_tower.held_out import HeldOut
from ranker.two_tower.negatives import Sampler
from ranker.two_tower.train import TwoTower, epochs_of, train_two_tower
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
ITEMS, USERS, REQUESTS = 400, 300, 1000
VECTORS = make_vectors(ITEMS)
CATALOGUE = pa.table(catalogue(VECTORS.ids))


def purchases():
    """What users of 300 tastes took next, three in ten of them at random, after a history of twenty by taste."""
    draw = np.random.default_rng(0)
    tastes = unit(np.random.default_rng(99).normal(size=(USERS, WIDTH)))
    chance = np.exp(10 * tastes @ VECTORS.matrix.T)
    chance /= chance.sum(1, keepdims=True)
    user = draw.integers(0, USERS, REQUESTS)
    seen = [draw.choice(ITEMS, 20, p=chance[one]) for one in user]
    taken = []
    for one, rows in zip(user, seen, strict=True):
        likely = np.ones(ITEMS) if draw.random() < 0.3 else chance[one].copy()
        likely[rows] = 0
        taken.append([int(VECTORS.ids[draw.choice(ITEMS, p=likely / likely.sum())])])
    histories = [VECTORS.ids[rows].tolist() for rows in seen]
    return make_frame(user.tolist(), histories, taken, [[1.0]] * REQUESTS)


FRAME = Requests(purchases(), TOWERS)


def sampler(frame=FRAME, seed=0):
    code = FrameEncoder(learn_inputs(frame, 50, train_module.GIVEN)[0], VECTORS)
    return Sampler(frame, CATALOGUE, code, seed)


def found(towers, asked):
    """The slow twin: every request's whole order, one at a time; the share of positives among the first twenty."""
    items, hits = towers.item_vectors(CATALOGUE), []
    for row, vector in enumerate(towers.user_vectors(asked)):
        bounds = slice(*asked.history.offsets[row : row + 2])
        order = VECTORS.ids[np.argsort(-(items @ vector))]
        order = order[~np.isin(order, asked.history.item_id[bounds])]
        (taken,) = asked.candidates["item_id"].to_numpy()[slice(*asked.offsets[row : row + 2])]
        hits.append(taken in order[:20])
    return float(np.mean(hits))


def test_the_epoch_that_finds_most_is_kept_not_the_one_of_least_loss(monkeypatch, tmp_path):
    monkeypatch.setattr(negatives, "VALID_FRACTION", 0.3)
    drawn, losses, recalls = sampler(), [], []
    asked = FRAME.select(np.sort(drawn.held_out))
    mean_loss = train_module._mean_loss

    def watched(model, own):
        recalls.append(found(TwoTower(model, own.encoder), asked))
        losses.append(mean_loss(model, own))
        return losses[-1]

    monkeypatch.setattr(train_module, "_mean_loss", watched)
    made = train_two_tower(FRAME, VECTORS, CATALOGUE, size("nano"), tmp_path / "t", {}, epochs=6)
    outcome = made.config["outcome"]
    assert max(recalls) > recalls[int(np.argmin(losses))], "in this world the loss prefers another epoch"
    assert outcome["best"] == 1 + int(np.argmax(recalls))
    assert found(TwoTower.open(made, VECTORS), asked) == max(recalls)
    expected = [1 - one + loss / (1 + loss) / len(asked) for one, loss in zip(recalls, losses, strict=True)]
    assert outcome["valid_loss"] == pytest.approx(expected)


def world(score, request, row, seen):
    """HeldOut of hand-made scores (R, N): vectors of users are rows of the scores, those of items unit vectors."""
    seen = np.array(seen, np.int64).reshape(-1, 2)
    asked = HeldOut(FRAME.frame, np.array(request), np.array(row), (seen[:, 0], seen[:, 1]))
    return asked, np.array(score, np.float32), np.eye(len(score[0]), dtype=np.float32)


def test_a_place_counts_what_is_better_or_as_good_but_not_what_was_seen(monkeypatch):
    score = [[5, 4, 3, 2, 1], [1, 1, 1, 1, 1], [9, 0, 8, 0, 7]]
    asked, users, items = world(
        score, [0, 0, 1, 2, 2], [0, 4, 2, 4, 0], [(0, 1), (0, 2), (1, 0), (2, 2), (2, 0)]
    )
    expected = [0, 2, 3, 0, 4]  # the last of equals; an item of the history is never answered
    assert asked.places(users, items).tolist() == expected
    monkeypatch.setattr(held_out, "CELLS", 5)  # a request at a time
    assert asked.places(users, items).tolist() == expected


def test_places_are_those_of_the_whole_order_sorted():
    draw = np.random.default_rng(1)
    users, items = draw.normal(size=(40, 6)).astype(np.float32), draw.normal(size=(90, 6)).astype(np.float32)
    row, seen = draw.integers(0, 45, 40), draw.integers(45, 90, (40, 3))
    pairs = [(request, one) for request in range(40) for one in seen[request]]
    asked, _, _ = world(np.zeros((40, 90)), np.arange(40), row, pairs)
    for request, place in enumerate(asked.places(users, items)):
        order = [one for one in np.argsort(-(items @ users[request])) if one not in seen[request]]
        assert order[place] == row[request]


def test_of_as_many_missed_the_smaller_loss_is_better_and_one_more_found_is_better_than_any_loss(monkeypatch):
    monkeypatch.setattr(held_out, "FIRST", 1)
    asked, users, items = world([[2, 1], [1, 2], [2, 1]], [0, 1, 2], [0, 0, 1], [])
    two = asked.missed(users, items, loss=0.5)
    assert 2 / 3 < two < asked.missed(users, items, loss=3.0) < asked.missed(users, items, loss=1e6) < 1
    assert asked.missed(users[:, ::-1], items, loss=1e6) < two, "one is missed"


def test_held_out_users_are_asked_at_most_so_often_by_the_seed(monkeypatch):
    monkeypatch.setattr(negatives, "VALID_FRACTION", 0.3)
    drawn = sampler()
    whole = HeldOut.of(drawn)
    assert whole.frame.requests["request_id"].to_numpy().tolist() == np.sort(drawn.held_out).tolist()
    taken = whole.frame.candidates["item_id"].to_numpy()
    assert VECTORS.ids[whole.row].tolist() == taken.tolist() and len(whole.request) == len(taken)
    assert VECTORS.ids[whole.seen[1]].tolist() == whole.frame.history.item_id.tolist()
    assert np.bincount(whole.seen[0]).tolist() == [20] * len(taken)
    monkeypatch.setattr(held_out, "MOST", 50)
    some = [
        HeldOut.of(sampler(seed=seed)).frame.requests["request_id"].to_numpy().tolist() for seed in (0, 0, 1)
    ]
    assert len(some[0]) == 50 and some[0] == some[1] != some[2]
    assert set(some[0]) <= set(drawn.held_out.tolist())


@pytest.mark.parametrize(("steps", "epochs"), [(0, 10), (21, 10), (125, 8), (235, 5), (400, 5)])
def test_short_logs_are_read_more_often(steps, epochs):
    assert epochs_of(steps) == epochs


class Rows(nn.Module):
    """A number and a row of a table whose gradients are always one."""

    def __init__(self):
        super().__init__()
        self.tables = collection({"item_id": 2}, 4, 0.5)
        self.number = nn.Parameter(torch.zeros(1))

    def forward(self):
        ids = jagged(("item_id",), [np.array([1])], [np.array([1])])
        return lookup(self.tables, ids).sum() + self.number.sum()

    def state(self):
        return float(self.number.detach()), float(
            self.tables.state_dict()["embedding_bags.t_item_id.weight"][1, 0]
        )


def moves(learner, model, steps):
    """How far the number and the row move in each step."""
    places = [model.state()]
    for _ in range(steps):
        learner.step(model(), "test")
        places.append(model.state())
    return -np.diff(places, axis=0)


def test_rates_fall_from_step_to_step_to_zero_those_of_tables_too():
    model = Rows()
    moved = moves(FallingLearner(model, 0.1, 4), model, 6)
    left = np.array([1, 0.75, 0.5, 0.25, 0, 0])
    np.testing.assert_allclose(
        moved[:, 0], 0.1 * left, atol=2e-3
    )  # Adam: the rate; a little decay of the weight
    np.testing.assert_allclose(moved[:, 1], 0.5 * left / np.sqrt(np.arange(1, 7)), rtol=1e-3)  # Adagrad
    model = Rows()
    stays = moves(Learner(model, 0.1), model, 4)
    assert stays[3, 0] == pytest.approx(0.1, abs=2e-3) and stays[3, 1] == pytest.approx(0.5 / 2, rel=1e-3)


def test_rates_of_a_restored_learner_go_on_where_they_were(tmp_path):
    model, again = Rows(), Rows()
    learner = FallingLearner(model, 0.1, 5)
    moves(learner, model, 3)
    save_file(learner.tensors(), tmp_path / "state.safetensors")
    resumed = FallingLearner(again, 0.1, 5)
    with safe_open(tmp_path / "state.safetensors", "pt") as tensors:
        resumed.restore(tensors)
    np.testing.assert_array_equal(moves(resumed, again, 3), moves(learner, model, 3))
