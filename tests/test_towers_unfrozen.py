"""Unfreezing last: a stage that trains the last layers of pretrained towers, and nothing below them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_world import COLOURS, SHAPES, TINY, png, shop
from ranker_world import auc
from torch.nn import functional as F
from towers_world import towers_of

from encoder import train
from encoder.content import Content, item_content
from encoder.encode import Encoder
from encoder.optim import Optimizers
from encoder.pictures.cache import decoded
from encoder.recipes import ours, unfrozen
from encoder.stages.contrast import OWN, Contrast
from encoder.stages.unfreeze import Unfreeze
from encoder.towers.features import kept_features
from encoder.towers.towers import read_towers
from encoder.train import train_encoder

LAST = ("text.encoder.layer.1.", "vision.blocks.2.", "vision.head.")  # of two layers and three blocks


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    towers = folder / "towers"
    towers_of(layers=2).save(towers)
    return *shop(folder / "shop", items=96), towers


def of_stages(*stages):
    return replace(unfrozen(), stages=stages, pace=1.0)


def trained(world, out, *stages, budget=0.2, **more):
    dataset, split, towers = world
    return train_encoder(
        dataset, split, TINY, out, recipe=of_stages(*stages), checkpoint=towers, budget=budget, **more
    )


def contents_of(dataset):
    return [item_content(row, dataset.image_bytes(row["image_id"])) for row in dataset.items.to_pylist()]


SHORT = (Contrast(0.3, (OWN,), name="halves"), Unfreeze(0.7, (OWN,)))


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    return trained(world, tmp_path_factory.mktemp("done") / "encoder", *SHORT)


def test_only_the_last_layers_change(world, done):
    before, after = read_towers(world[2]).state_dict(), read_towers(done.path).state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {name for name in before if name.startswith(LAST)}


def test_without_the_stage_nothing_of_the_towers_changes(world, tmp_path):
    frozen = trained(world, tmp_path / "frozen", SHORT[0])
    before, after = read_towers(world[2]).state_dict(), read_towers(frozen.path).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_fixed_path_stays_as_it_was_fitted(world, done, tmp_path):
    frozen = Encoder.open(trained(world, tmp_path / "frozen", SHORT[0]))
    found = Encoder.open(done).model
    for name, tensor in frozen.model.named_buffers():
        if not name.startswith("towers."):
            assert torch.equal(tensor, found.get_buffer(name)), name


def test_what_frozen_towers_read_is_not_taken_for_what_trained_ones_read(world, done):
    """The features beside the dataset are of the towers as they came."""
    dataset, _, towers = world
    contents = contents_of(dataset)
    anew = Encoder.open(done).encode(contents)
    encoder = Encoder.open(done, dataset)
    np.testing.assert_array_equal(encoder.encode(contents), anew)
    encoder.model.towers = read_towers(towers)
    encoder.model.known = kept_features(dataset, encoder.model)
    assert encoder.model.known is not None
    assert np.abs(encoder.encode(contents) - anew).max() > 1e-3


def test_training_sees_the_vectors_that_the_written_encoder_makes(world):
    """Rows of the corpus, read through the towers in a step, are the contents that the encoder reads later."""
    dataset, split, towers = world
    learner = train.new_learner(dataset, split, TINY, unfrozen(), 0, towers)
    assert decoded(dataset, learner.model.px).image_ids == list(
        kept_features(dataset, learner.model).image_row
    )
    objective = Unfreeze(1.0, (OWN,)).begin(learner)
    corpus = objective.learner.corpus
    with torch.no_grad():
        for parameter in learner.model.towers.parameters():
            parameter.add_(0.05 * parameter.requires_grad)  # as if they had learned
    every, yes = np.arange(len(corpus.items.ids)), np.ones(len(corpus.items.ids), dtype=bool)
    found = learner.model.vectors(corpus.samples(corpus.items, every, yes, yes))
    content = dict(zip(dataset.items["item_id"].to_pylist(), contents_of(dataset), strict=True))
    later = learner.model.contents([content[one] for one in corpus.items.ids.tolist()])
    torch.testing.assert_close(F.normalize(found, dim=-1), F.normalize(later, dim=-1), atol=1e-5, rtol=0)


def test_interrupted_it_continues_to_the_same_bits(world, done, tmp_path, monkeypatch):
    """The weights of the unfrozen layers and their optimizer's state, too."""
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    update = Optimizers.update

    def killed(self, loss, stage, step, batch=()):
        if (stage, step) == ("unfreezing", 5):
            raise KeyboardInterrupt
        update(self, loss, stage, step, batch)

    monkeypatch.setattr(Optimizers, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(world, tmp_path / "parts", *SHORT)
    steps = []

    def counted(self, loss, stage, step, batch=()):
        steps.append((stage, step))
        update(self, loss, stage, step, batch)

    monkeypatch.setattr(Optimizers, "update", counted)
    parts = trained(world, tmp_path / "parts", *SHORT)
    assert steps[0] == ("unfreezing", 4)
    for name in ("parts.safetensors", "text/model.safetensors", "vision/model.safetensors"):
        assert (parts.path / name).read_bytes() == (done.path / name).read_bytes(), name
    assert parts.config["losses"] == done.config["losses"]


@pytest.mark.parametrize(("stage", "low", "high"), [(Contrast, 0.5, 0.75), (Unfreeze, 0.85, 1.0)])
def test_a_tower_learns_to_tell_what_it_wiped_out(world, stage, low, high, tmp_path):
    """The last layer for words keeps one number of all it reads: too little for heads, but the layer can change."""
    towers = towers_of(layers=2)
    with torch.no_grad():
        towers.text.encoder.layer[-1].output.LayerNorm.weight[1:] = 0
    towers.save(tmp_path / "towers")
    world = (*world[:2], tmp_path / "towers")
    encoder = Encoder.open(trained(world, tmp_path / "encoder", stage(1.0, (OWN,)), budget=1.5))
    shown = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    pictures = encoder.encode([Content(png(*one, px=48, jitter=1), None) for one in shown])
    names = encoder.encode([Content(None, colour) for colour in COLOURS])
    found = [
        auc([one == colour for one, _ in shown], pictures @ name)
        for colour, name in zip(COLOURS, names, strict=True)
    ]
    assert low < np.mean(found) < high


def test_a_recipe_without_towers_is_refused(world):
    dataset, split, _ = world
    learner = train.new_learner(dataset, split, TINY, ours(), 0)
    with pytest.raises(TypeError, match="unfreezing: expected a recipe with towers, found EncoderModel"):
        Unfreeze(1.0, (OWN,)).begin(learner)
