"""A position tower finds which places users look at, where that differs by user; a score needs no place."""

import numpy as np
import pytest
import torch
from ranker_world import Requests, auc, make_frame, make_world
from typer.testing import CliRunner

from dataset.contracts import DataError
from feature_repo.frame import Frame
from moon import cli
from ranker.places import looked_at
from ranker.score import Ranker
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
NANO, PLACES = size("nano"), 10
DEPTH = np.array(
    [0.2, 0.7, 1.5]
)  # of the segments s0, s1, s2: users look at place k by chance (1 + k) ** -depth


def chance_of_looking(user_id):
    return (1.0 + np.arange(PLACES)) ** -DEPTH[np.asarray(user_id) % 3][:, None]


def logged(requests, seed):
    """Slates that a shop ordered by what it knew of likings, and their clicks; the chances of a click if seen."""
    world, draw = make_world(requests=requests, slate=PLACES, seed=seed), np.random.default_rng(seed)
    chance = world.probability.reshape(requests, PLACES)
    shop = np.log(chance / (1 - chance)) + draw.normal(scale=5.0, size=chance.shape)
    order = np.argsort(-shop, axis=1)
    chance = np.take_along_axis(chance, order, 1)
    item_id = np.take_along_axis(world.frame.candidates["item_id"].to_numpy().reshape(chance.shape), order, 1)
    user, history = world.frame.requests["user_id"].to_numpy(), world.frame.history
    frame = make_frame(
        user.tolist(),
        [one.tolist() for one in np.split(history.item_id, history.offsets[1:-1])],
        item_id.tolist(),
        list(draw.random(chance.shape) < chance * chance_of_looking(user)),
        positions=[np.arange(PLACES)] * requests,
    )
    return world.vectors, frame, chance


def at_places(ranker, frame):
    """What the model predicts if every candidate stood at each of the places, [R, N, P]."""
    batch, found = ranker.encoder.batch(frame), []
    for place in range(PLACES):
        batch.position[:] = place
        with torch.no_grad():
            found.append(torch.sigmoid(ranker.model(batch, logged=True)).numpy())
    return np.stack(found, axis=-1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    vectors, train, _ = logged(1500, seed=2)
    _, valid, _ = logged(150, seed=102)
    folder = tmp_path_factory.mktemp("places")

    def made(name, **how):
        training = Training(settings=Settings(NANO.id_width, 2e-3, 0.005), **how)
        requests, checked = Requests(train), Requests(valid)
        artifact = train_ctr(requests, checked, vectors, NANO, folder / name, {}, training)
        return Ranker.open(artifact, vectors)

    return {"bias": made("bias"), "tower": made("tower", position_tower=True)}


def test_what_is_looked_at_is_found_and_items_are_ordered_as_well(trained):
    _, test, chance = logged(300, seed=3)
    user = test.requests["user_id"].to_numpy()
    true = chance_of_looking(user)
    clicked_if_seen = np.random.default_rng(4).random(chance.size) < chance.ravel()
    order, error = {}, {}
    for name, ranker in trained.items():
        predicted = at_places(ranker, test).mean(axis=1)
        seen = predicted / predicted[:, :1]  # as that of the first place
        error[name] = np.abs(
            [np.log(seen[user % 3 == s]).mean(0) - np.log(true[user % 3 == s]).mean(0) for s in range(3)]
        ).mean()
        order[name] = auc(clicked_if_seen, ranker.score(test))
    assert error["tower"] < 0.2  # of a logarithm
    assert error["tower"] < 0.5 * error["bias"]
    assert order["tower"] > order["bias"] - 0.005


def test_a_score_is_the_log_odds_at_an_average_place_and_reads_none(trained):
    ranker, (_, test, _) = trained["tower"], logged(20, seed=5)
    share = np.array(ranker.encoder.inputs.position_share)
    at_average = (at_places(ranker, test) * share).sum(-1).ravel()
    unplaced = Frame(test.requests, test.candidates.drop_columns(["position"]), test.offsets, test.history)
    for frame in (test, unplaced):
        score = ranker.score(frame) - ranker.model.unplaced  # of the mean chance of being looked at
        np.testing.assert_allclose(1 / (1 + np.exp(-score)), at_average, atol=1e-5)


def test_the_chance_of_a_click_is_that_of_looking_times_that_of_clicking_what_is_seen():
    draw = torch.Generator().manual_seed(0)
    places, share = torch.randn(2, 3, generator=draw), torch.tensor([0.5, 0.3, 0.2])
    position = torch.tensor([[0, 2, -1], [7, 1, 1]])
    average = [sum(share[p] * torch.sigmoid(places[r, p]) for p in range(3)) for r in range(2)]
    at = [
        [places[0, 0].sigmoid(), places[0, 2].sigmoid(), average[0]],
        [places[1, 2].sigmoid(), places[1, 1].sigmoid(), places[1, 1].sigmoid()],
    ]
    torch.testing.assert_close(looked_at(places, share, position).sigmoid(), torch.tensor(at))
    torch.testing.assert_close(looked_at(places, share).sigmoid(), torch.tensor(average)[:, None])


def test_a_log_without_places_is_refused_before_training(tmp_path):
    world = make_world(requests=5)
    both = Requests(world.frame)
    with pytest.raises(DataError, match=r"logged position, found none. Train without --position-tower"):
        train_ctr(both, both, world.vectors, NANO, tmp_path / "r", {}, Training(position_tower=True))


def test_the_command_hands_on_the_tower(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_do", lambda verb, run, **options: seen.append(options.get("position_tower")))
    assert CliRunner().invoke(cli.app, ["ranker", "--position-tower"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["ranker"]).exit_code == 0
    assert seen == [True, None]
    assert CliRunner().invoke(cli.app, ["ranker", "--daily", "--position-tower"]).exit_code == 2
