"""What modules do before the whole model trains sees nothing of the future, touches no other weight, and resumes."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from ranker_world import NOW_US, Requests, auc, make_world
from safetensors.torch import load_file

from ranker import attempt, before, recipes
from ranker.modules.ids import Ids
from ranker.modules.make import Make
from ranker.modules.module import Module, Output
from ranker.modules.numbers import Numbers
from ranker.recipes import Recipe
from ranker.score import Ranker
from ranker.train import Training, train_ctr
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(size("nano"), id_width=4, history=50, ranker_slots=256)


class Taught(Module):
    """Keeps what it was taught."""

    seen: list = []

    def __init__(self, widths):
        super().__init__()
        self.per_candidate = widths.ids

    def learn(self, content_MV, seed):
        Taught.seen.append(content_MV.numpy())

    def forward(self, target_RND, target_known_RN):
        return Output(target_RND)


def test_a_module_learns_from_the_vectors_that_the_training_requests_could_see(tmp_path, monkeypatch):
    world = make_world(requests=40, items=60, old_items=np.arange(50))
    shown = np.unique(world.frame.candidates["item_id"].to_numpy())
    late = shown[:5]
    available = np.where(np.isin(world.vectors.ids, late), NOW_US, NOW_US - 1)
    vectors = replace(world.vectors, available_us=available)
    monkeypatch.setitem(recipes.RECIPES, "taught", lambda: Recipe("taught", {"taught": Taught}))
    Taught.seen.clear()
    requests, how = Requests(world.frame), Training(recipe=recipes.recipe("taught"), epochs=1)
    train_ctr(requests, requests, vectors, TINY, tmp_path / "r", {}, how)
    known = world.vectors.matrix[np.isin(world.vectors.ids, shown) & ~np.isin(world.vectors.ids, late)]
    assert len(known) < 50
    for content in Taught.seen:
        np.testing.assert_array_equal(content, known)


def alone(epochs=4):
    return Recipe("alone", {"ids": Ids, "make": partial(Make, pretraining=epochs), "numbers": Numbers})


def worlds():
    old = np.arange(240)
    return [make_world(requests=r, old_items=old, seed=s) for r, s in ((250, 0), (60, 1), (150, 2))]


def test_a_module_that_trains_alone_is_a_click_model_before_the_rest_begins(tmp_path, monkeypatch):
    train, valid, test = worlds()
    monkeypatch.setitem(recipes.RECIPES, "alone", alone)
    kept = {}

    def watched(model, *rest):
        tables = {n: t.detach().clone() for n, t in model.named_parameters() if n.startswith("tables.")}
        before.train_alone(model, *rest)
        kept["tables"] = all(torch.equal(dict(model.named_parameters())[n], t) for n, t in tables.items())
        kept["make"] = {n: t.detach().clone() for n, t in model.parts["make"].named_parameters()}

    monkeypatch.setattr("ranker.attempt.train_alone", watched)
    requests, checked, how = Requests(train.frame), Requests(valid.frame), Training(recipe=alone(), epochs=1)
    made = train_ctr(requests, checked, train.vectors, TINY, tmp_path / "r", {}, how)
    assert kept["tables"]
    ranker = Ranker.open(made, train.vectors)
    part = ranker.model.parts["make"]
    part.load_state_dict(kept["make"])
    batch = ranker.encoder.batch(test.frame)
    with torch.no_grad():
        own = before.run(part, ranker.model.features(batch)).candidate[..., -1][batch.candidate_mask].numpy()
    label = test.frame.candidates["label"].to_numpy()
    best = auc(label, test.probability)
    assert auc(label, own) - 0.5 > 0.8 * (best - 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["r"], "its checkpoints are removed with the others"


def test_a_training_that_was_cut_after_a_module_had_trained_alone_goes_on_from_there(tmp_path, monkeypatch):
    train, valid, _ = worlds()
    monkeypatch.setitem(recipes.RECIPES, "alone", lambda: alone(2))
    epochs = []
    batches = attempt.epoch_batches
    monkeypatch.setattr(attempt, "epoch_batches", lambda *given: epochs.append(given[4]) or batches(*given))

    def trained(name):
        requests, checked, how = Requests(train.frame), Requests(valid.frame), Training(alone(2), epochs=2)
        return train_ctr(requests, checked, train.vectors, TINY, tmp_path / name, {}, how)

    whole, rates = trained("whole"), 2
    assert len(epochs) == rates * (2 + 2)
    with monkeypatch.context() as broken:
        broken.setattr(attempt, "fit", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained("resumed")
    epochs.clear()
    resumed = trained("resumed")
    assert len(epochs) == rates * (2 + 2) - 2
    one, other = (load_file(made.file("model.safetensors")) for made in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
