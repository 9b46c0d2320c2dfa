"""A click model begins at the logistic regression of its numbers, and is worth at least that where labels are few."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranker_world import Requests, auc, make_world
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from ranker import regression
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.linear import LinearPath
from ranker.score import CtrConfig, Ranker
from ranker.train import Training, train_ctr
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(size("nano"), id_width=4, history=50, ranker_slots=256)
NAMES = tuple(f"match_{name}" for name in "abcdefgh")
WEIGHTS = np.array([1.5, -1.0, 0.5, 0, 0, 0, 0, 0])


def examples(count, weights, bias, seed=0, noise=0, users=200, searched=False):
    """Labels of a regression on two numbers of a request, which come last, and the others of a candidate."""
    draw = np.random.default_rng(seed)
    weights = np.append(weights, np.zeros(noise))
    numbers = draw.standard_normal((count, len(weights))).astype(np.float32)
    liked = draw.random(count) < 1 / (1 + np.exp(-(numbers @ weights + bias)))
    numbers = np.concatenate([numbers[:, 2:], numbers[:, :2]], axis=1)
    return regression.Examples(numbers, liked, draw.integers(users, size=count), np.full(count, searched))


def both(one, other):
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    order = np.random.default_rng(9).permutation(len(one.liked) + len(other.liked))
    return regression.Examples(*(np.concatenate(pair)[order] for pair in pairs))


def begun(given, request=2):
    path = LinearPath(given.numbers.shape[1] - request, request)
    regression.begin(path, given)
    return path


def fitted(shrinkage, given):
    return LogisticRegression(C=shrinkage, max_iter=300).fit(given.numbers, given.liked)


def loss_of(shrinkage, given, out):
    """What a regression on the others loses on those that are held out."""
    one = LogisticRegression(C=shrinkage, max_iter=300).fit(given.numbers[~out], given.liked[~out])
    chance = one.predict_proba(given.numbers[out])[:, 1]
    return -np.log(np.where(given.liked[out], chance, 1 - chance)).mean()


def test_it_takes_the_weights_of_a_regression_and_says_them_of_every_candidate():
    given = examples(4_000, [0.8, -0.6, 1.2, -0.9], bias=-1.0)
    path = begun(given)
    folds = StratifiedGroupKFold(5).split(given.numbers, given.liked, given.user_id)
    outs = [np.isin(np.arange(4_000), rows) for _, rows in folds]
    assert not any(set(given.user_id[out]) & set(given.user_id[~out]) for out in outs)
    grid = (0.001, 0.01, 0.1, 1.0)
    losses = np.array([[loss_of(c, given, out) for out in outs] for c in grid])
    behind = losses - losses[losses.mean(axis=1).argmin()]
    chosen = next(c for c, b in zip(grid, behind, strict=True) if b.mean() <= b.std(ddof=1) / 5**0.5)
    best = fitted(chosen, given)
    found = np.concatenate([path.candidate.detach(), path.request.detach()])
    np.testing.assert_allclose(found, best.coef_[0], atol=2e-3)
    np.testing.assert_allclose(found, [1.2, -0.9, 0.8, -0.6], atol=0.15)

    class Two:
        candidate_numbers = torch.from_numpy(given.numbers[:60, :2].reshape(20, 3, 2))
        request_numbers = torch.from_numpy(given.numbers[:60:3, 2:])
        query_known = torch.zeros(20, dtype=torch.bool)

    rows = np.concatenate([given.numbers[:60, :2], np.repeat(given.numbers[:60:3, 2:], 3, axis=0)], axis=1)
    with torch.no_grad():
        np.testing.assert_allclose(path(Two).reshape(-1), best.decision_function(rows), atol=1e-2)


def test_the_fewer_the_labels_beside_the_numbers_the_more_it_shrinks():
    given = examples(80, [0, 0, 0.3, 0], -0.5, noise=60)
    few, many = begun(given), begun(examples(6_000, [1.0, 1.0, 1.0, 1.0], -0.5))
    assert float(few.candidate.detach().norm()) < 0.2 * np.linalg.norm(fitted(1.0, given).coef_)
    assert float(many.candidate.detach().norm()) > 0.9 * np.sqrt(2)


def test_numbers_that_tell_users_apart_are_worth_nothing_for_others():
    """Rows of a user are alike, and err together: held-out rows of the same users would call it skill."""
    draw = np.random.default_rng(0)
    user = np.repeat(np.arange(40), 15)
    own = draw.standard_normal((40, 60)).astype(np.float32)[user]
    liked = draw.random(600) < np.where(draw.random(40) < 0.3, 0.6, 0.05)[user]
    order = draw.permutation(600)
    path = begun(regression.Examples(own[order], liked[order], user[order], np.zeros(600, bool)), request=0)
    apart = begun(
        regression.Examples(own[order], liked[order], np.arange(600), np.zeros(600, bool)), request=0
    )
    assert float(path.candidate.detach().norm()) < 0.3 * float(apart.candidate.detach().norm())


@pytest.mark.parametrize(("label", "expected"), [(True, np.log(101)), (False, -np.log(101))])
def test_where_all_labels_are_equal_it_says_their_rate(label, expected):
    given = regression.Examples(
        np.ones((100, 4), np.float32), np.full(100, label), np.arange(100), np.zeros(100, bool)
    )
    path = begun(given)
    assert path.bias.tolist() == pytest.approx([expected], rel=1e-5)
    assert not path.candidate.any() and not path.request.any()


@pytest.mark.parametrize("one_liked", [True, False])
def test_of_a_few_users_it_says_the_rate(one_liked):
    """Four users have positives, or negatives: some fold would have none to learn from, or to be judged by."""
    user = np.arange(100) % 20
    given = regression.Examples(
        np.eye(100, 4, dtype=np.float32), (user < 4) == one_liked, user, np.zeros(100, bool)
    )
    path = begun(given)
    assert path.bias.tolist() == pytest.approx([np.log(21 / 81) * (1 if one_liked else -1)], rel=1e-5)
    assert not path.candidate.any()


def test_without_numbers_it_says_the_rate():
    given = regression.Examples(
        np.ones((200, 0), np.float32), np.arange(200) < 50, np.arange(200), np.zeros(200, bool)
    )
    assert begun(given, 0).bias.tolist() == pytest.approx([np.log(51 / 151)], rel=1e-5)


def test_it_is_fitted_to_requests_without_a_search():
    """Weights that hold among items that answer a search are not what holds between items at all."""
    plain = examples(2_000, [0.8, -0.6, 1.2, -0.9], bias=-1.0)
    mixed = both(plain, examples(2_000, [0, 0, -2.0, 2.0], bias=0.5, seed=1, searched=True))
    found, alone = begun(mixed), begun(plain)
    assert float(alone.searched.detach()) == 0
    np.testing.assert_allclose(found.candidate.detach(), alone.candidate.detach(), atol=2e-2)
    np.testing.assert_allclose(found.candidate.detach(), [1.2, -0.9], atol=0.2)


def test_what_searches_click_more_is_a_level_of_their_own():
    """Planted: the same weights, and 1.5 of log-odds more where something is searched for."""
    weights = [0.8, -0.6, 1.2, -0.9]
    searches = examples(3_000, weights, bias=-0.5, seed=1, searched=True)
    path = begun(both(examples(3_000, weights, bias=-2.0), searches))
    assert path.searched.tolist() == pytest.approx([1.5], abs=0.2)

    class Searches:
        candidate_numbers = torch.from_numpy(searches.numbers[:, None, :2])
        request_numbers = torch.from_numpy(searches.numbers[:, 2:])
        query_known = torch.ones(3_000, dtype=torch.bool)

    with torch.no_grad():
        assert float(path(Searches).sigmoid().mean()) == pytest.approx(searches.liked.mean(), abs=1e-3)


def test_where_all_search_it_says_their_rate():
    given = examples(2_000, [0, 0, 2.0, 0], bias=-2.0, searched=True)
    path, liked = begun(given), given.liked
    assert path.bias.tolist() == pytest.approx([np.log((liked.sum() + 1) / ((~liked).sum() + 1))], rel=1e-5)
    assert not path.candidate.any() and not path.request.any()


def read_of(world, seed=0):
    """What a regression reads of a world's frame: the examples, and the encoder."""
    requests = Requests(world.frame)
    encoder = FrameEncoder(learn_inputs(requests, 50)[0], None)
    return regression.examples_of(requests, encoder, seed), encoder


def test_it_reads_the_numbers_that_batches_hold():
    world = make_world(requests=40)
    asked, columns = pa.array([7 if row % 3 else None for row in range(40)], pa.int64()), world.frame.requests
    columns = columns.set_column(columns.column_names.index("query_id"), "query_id", asked)
    world = replace(world, frame=replace(world.frame, requests=columns))
    read, encoder = read_of(world)
    batch, frame = encoder.batch(world.frame), world.frame
    many = batch.candidate_numbers.shape[1]
    request = batch.request_numbers[:, None].expand(-1, many, -1)
    numbers = torch.cat([batch.candidate_numbers, request], dim=-1)[batch.candidate_mask].numpy()
    user = np.repeat(frame.requests["user_id"].to_numpy(), np.diff(frame.offsets))
    searched = batch.query_known[:, None].expand(-1, many)[batch.candidate_mask].numpy()
    label = frame.candidates["label"].to_numpy() > 0
    rows = [np.column_stack([n, u, s, y]) for n, u, s, y in ((numbers, user, searched, label),
            (read.numbers, read.user_id, read.searched, read.liked))]  # fmt: skip
    expected, found = (one[np.lexsort(one.T)] for one in rows)
    np.testing.assert_array_equal(found, expected)
    assert searched.any() and not searched.all()


def test_of_many_candidates_it_reads_some_drawn_from_the_seed(monkeypatch):
    monkeypatch.setattr(regression, "READ", 100)
    monkeypatch.setattr(regression, "AT_ONCE", 10)
    world = make_world(requests=200)
    taken = []
    select = Requests.select
    monkeypatch.setattr(Requests, "select", lambda self, rows: taken.extend(rows) or select(self, rows))
    first, again, other = (read_of(world, seed)[0] for seed in (0, 0, 1))
    assert len(first.liked) == 100 and len(set(taken)) < 100
    np.testing.assert_array_equal(first.numbers, again.numbers)
    assert not np.array_equal(first.numbers, other.numbers)


def world_of(requests, seed):
    """A made-up log whose labels are a regression on the scores of retrieval, and nothing else."""
    draw, world = np.random.default_rng(seed), make_world(requests=requests, seed=seed)
    candidates = world.frame.candidates
    match = draw.standard_normal((len(candidates), len(NAMES))).astype(np.float32)
    label = draw.random(len(candidates)) < 1 / (1 + np.exp(-(match @ WEIGHTS - 1)))
    for name, values in (("label", label.astype(np.float32)), *zip(NAMES, match.T, strict=True)):
        held = name in candidates.column_names
        column = pa.array(values)
        candidates = (
            candidates.set_column(candidates.column_names.index(name), name, column)
            if held
            else candidates.append_column(name, column)
        )
    return replace(world, frame=replace(world.frame, candidates=candidates)), match, label


def test_of_few_labels_it_predicts_as_well_as_regression(tmp_path):
    train, seen, liked = world_of(60, 0)
    valid, test = world_of(20, 1)[0], world_of(200, 2)
    made = train_ctr(Requests(train.frame), Requests(valid.frame), train.vectors, TINY, tmp_path / "r", {})
    assert CtrConfig.read(made.file("config.json")).linear
    score = Ranker.open(made, train.vectors).score(test[0].frame)
    plain = LogisticRegression(C=0.1).fit(seen, liked).decision_function(test[1])
    assert auc(test[2], score) > auc(test[2], plain) - 0.01


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.9])
def test_a_click_model_begins_at_the_rate_of_the_log(tmp_path, rate):
    """One pass over a few impressions whose labels nothing explains: what is predicted is what is so."""
    draw, world = np.random.default_rng(0), make_world(requests=200)
    label = draw.random(len(world.frame.candidates)) < rate
    candidates = world.frame.candidates.set_column(
        world.frame.candidates.column_names.index("label"), "label", pa.array(label, pa.float32())
    )
    requests = Requests(replace(world.frame, candidates=candidates))
    made = train_ctr(requests, requests, world.vectors, TINY, tmp_path / "r", {}, Training(epochs=1))
    chance = 1 / (1 + np.exp(-Ranker.open(made, world.vectors).score(requests.frame)))
    assert label.mean() * 0.6 < chance.mean() < label.mean() * 1.6


def test_a_listwise_model_has_no_rate_and_begins_at_nothing(tmp_path):
    world = make_world(requests=30)
    made = train_ctr(
        Requests(world.frame), Requests(world.frame), world.vectors, TINY, tmp_path / "r", {},
        Training(loss="listwise", epochs=1),
    )  # fmt: skip
    config = CtrConfig.read(made.file("config.json"))
    assert not config.linear and config.build().line is None
