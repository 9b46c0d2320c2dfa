"""A click model begins at the logistic regression of its numbers, and is worth at least that where labels are few."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranker_world import Requests, auc, make_world
from sklearn.linear_model import LogisticRegression

from ranker import linear
from ranker.score import CtrConfig, Ranker
from ranker.train import Training, train_ctr
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(size("nano"), id_width=4, history=50, ranker_slots=256)
NAMES = tuple(f"match_{name}" for name in "abcdefgh")
WEIGHTS = np.array([1.5, -1.0, 0.5, 0, 0, 0, 0, 0])


class Given:
    """What the linear path reads of a batch: rows of requests with empty slots at the end."""

    def __init__(self, candidate, request, label, mask, searched=False):
        self.candidate_numbers, self.request_numbers = torch.tensor(candidate), torch.tensor(request)
        self.label, self.candidate_mask = torch.tensor(label), torch.tensor(mask)
        self.query_known = torch.full((len(mask),), searched)


def batches(requests, weights, bias, seed=0, noise=0, slots=3, searched=False):
    """One request after the other; labels of a regression on two numbers of it and the others of a candidate."""
    draw = np.random.default_rng(seed)
    weights = np.append(weights, np.zeros(noise))
    for _ in range(requests):
        candidate = draw.standard_normal((1, slots, len(weights) - 2)).astype(np.float32)
        request = draw.standard_normal((1, 2)).astype(np.float32)
        logit = candidate @ weights[2:] + (request @ weights[:2])[:, None] + bias
        label = (draw.random((1, slots)) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        mask = np.arange(slots)[None] < draw.integers(1, slots + 1)
        yield Given(candidate, request, label * mask, mask, searched)


def flat(many):
    """Rows of the same numbers, candidate by candidate."""
    rows, liked = [], []
    for one in many:
        for slot in range(one.label.shape[1]):
            if one.candidate_mask[0, slot]:
                rows.append([*one.candidate_numbers[0, slot].tolist(), *one.request_numbers[0].tolist()])
                liked.append(bool(one.label[0, slot]))
    return np.array(rows), np.array(liked)


def begun(many, candidate, request=2):
    path = linear.LinearPath(candidate, request)
    path.begin(many)
    return path


def loss_of(shrinkage, rows, liked, out):
    """What a regression on the others loses on those that are held out."""
    one = LogisticRegression(C=shrinkage, max_iter=300).fit(rows[~out], liked[~out])
    chance = one.predict_proba(rows[out])[:, 1]
    return -np.log(np.where(liked[out], chance, 1 - chance)).mean()


def test_it_takes_the_weights_of_a_regression_and_says_them_of_every_candidate():
    many = list(batches(2_000, [0.8, -0.6, 1.2, -0.9], bias=-1.0))
    path = begun(many, 2)
    rows, liked = flat(many)
    fold, grid = np.arange(len(liked)) * 5 // len(liked), (0.001, 0.01, 0.1, 1.0)
    losses = np.array([[loss_of(c, rows, liked, fold == part) for part in range(5)] for c in grid])
    behind = losses - losses[losses.mean(axis=1).argmin()]
    chosen = next(c for c, b in zip(grid, behind, strict=True) if b.mean() <= b.std(ddof=1) / 5**0.5)
    best = LogisticRegression(C=chosen, max_iter=300).fit(rows, liked)
    found = np.concatenate([path.candidate.detach(), path.request.detach()])
    np.testing.assert_allclose(found, best.coef_[0], atol=2e-3)
    np.testing.assert_allclose(found, [1.2, -0.9, 0.8, -0.6], atol=0.15)
    with torch.no_grad():
        said = [float(v) for one in many[:50] for v in path(one)[one.candidate_mask]]
    np.testing.assert_allclose(said, best.decision_function(rows[: len(said)]), atol=1e-2)


def test_the_fewer_the_labels_beside_the_numbers_the_more_it_shrinks():
    signal = [1.0, 1.0, 1.0, 1.0]
    few = begun(batches(40, [0, 0, 0.3, 0], -0.5, noise=60), 62)
    many = begun(batches(3_000, signal, -0.5), 2)
    unshrunk = LogisticRegression(C=1.0, max_iter=300).fit(*flat(batches(40, [0, 0, 0.3, 0], -0.5, noise=60)))
    assert float(few.candidate.detach().norm()) < 0.2 * np.linalg.norm(unshrunk.coef_)
    assert float(many.candidate.detach().norm()) > 0.9 * np.sqrt(2)


@pytest.mark.parametrize(("label", "expected"), [(1.0, np.log(101)), (0.0, -np.log(101))])
def test_where_all_labels_are_equal_it_says_their_rate(label, expected):
    many = [Given(np.ones((1, 1, 2), np.float32), np.ones((1, 2), np.float32), [[label]], [[True]])] * 100
    path = begun(many, 2)
    assert path.bias.tolist() == pytest.approx([expected], rel=1e-5)
    assert not path.candidate.any() and not path.request.any()


def test_without_numbers_it_says_the_rate():
    none = np.ones((1, 4, 0), np.float32)
    many = [Given(none, np.ones((1, 0), np.float32), [[1.0, 0, 0, 0]], [[True] * 4])] * 50
    assert begun(many, 0, 0).bias.tolist() == pytest.approx([np.log(51 / 151)], rel=1e-5)


def test_it_is_fitted_to_requests_without_a_search():
    """Weights that hold among items that answer a search are not what holds between items at all."""
    plain = list(batches(1_000, [0.8, -0.6, 1.2, -0.9], bias=-1.0))
    searches = batches(1_000, [0, 0, -2.0, 2.0], bias=0.5, seed=1, searched=True)
    both = [one for pair in zip(plain, searches, strict=True) for one in pair]
    torch.testing.assert_close(begun(both, 2).state_dict(), begun(plain, 2).state_dict())


def test_where_all_search_it_says_their_rate():
    many = list(batches(1_000, [0, 0, 2.0, 0], bias=-2.0, searched=True))
    path, liked = begun(many, 2), flat(many)[1]
    assert path.bias.tolist() == pytest.approx([np.log((liked.sum() + 1) / ((~liked).sum() + 1))], rel=1e-5)
    assert not path.candidate.any() and not path.request.any()


def test_it_reads_no_more_batches_than_it_needs(monkeypatch):
    monkeypatch.setattr(linear, "READ", 100)
    left = iter(list(batches(500, [0, 0, 1.0, 0], 0.0)))
    begun(left, 2)
    assert len(list(left)) > 400


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
