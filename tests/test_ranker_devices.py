"""A click model computes where its batch is: seen without a GPU, on the device whose tensors hold nothing."""

from dataclasses import fields, replace

import pytest
import torch
import torch.fx.experimental._config as fake
from ranker_world import Requests, full_frame, make_vectors
from torch import nn
from torchrec import KeyedJaggedTensor

from ranker import model as model_module
from ranker.inputs.bags import jagged
from ranker.inputs.batch import Batch
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.inputs.id_tables import lookup
from ranker.inputs.search import Search
from ranker.model import WithPosition
from ranker.modules.module import Features
from ranker.recipes import RECIPES
from ranker.score import CtrConfig
from run.sizes import size

META = torch.device("meta")
R, N, L, K = 3, 4, 5, 2
NANO = size("nano")
FRAME = full_frame(20, seed=1)
VECTORS = make_vectors(24)


def elsewhere(widths):
    """Features of R requests, N candidates, L behaviours and K that were found; masks are bool, the rest float32."""
    sizes = {
        "R": R, "N": N, "L": L, "K": K, "D": widths.ids, "I": widths.item, "U": widths.user, "V": widths.content,
        "F": widths.candidate_numbers, "G": widths.request_numbers,
    }  # fmt: skip
    made = {}
    for one in fields(Features):
        shape = [sizes[letter] for letter in one.name.rpartition("_")[2]]
        is_mask = any(word in one.name for word in ("mask", "known"))
        made[one.name] = torch.ones(shape, dtype=torch.bool if is_mask else torch.float32, device=META)
    return Features(**made)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_computes_where_its_batch_is(name, monkeypatch):
    inputs, _ = learn_inputs(Requests(FRAME), NANO.history)
    config = CtrConfig(
        recipe=RECIPES[name](),
        inputs=inputs,
        id_width=NANO.id_width,
        content_width=VECTORS.width,
        embedding_id=VECTORS.id,
        loss="pointwise",
        learning_rate=1e-3,
        table_learning_rate=1e-3,
    )
    encoder = FrameEncoder(inputs, VECTORS, config.recipe.search)
    monkeypatch.setattr(model_module, "IdTables", lambda *shape: nn.Identity())  # FBGEMM has those of a GPU
    model, real = config.build(), encoder.batch(FRAME)
    model.to(META)
    monkeypatch.setattr(model, "features", lambda batch: elsewhere(config.shape.widths))
    with fake.patch(meta_nonzero_assume_all_nonzero=True):  # and so they are, in all masks
        logit = WithPosition(model)(
            replace(real, position=torch.zeros((R, N), dtype=torch.int64, device=META))
        )
    logit.sum().backward()
    assert logit.shape == (R, N) and logit.device == META


def test_a_batch_is_moved_whole():
    inputs, _ = learn_inputs(Requests(FRAME), NANO.history)
    moved = FrameEncoder(inputs, VECTORS, Search("category", 3, 4)).batch(FRAME).to(META)
    held = {one.name: getattr(moved, one.name) for one in fields(Batch)}
    tensors = {n: v.values() if isinstance(v, KeyedJaggedTensor) else v for n, v in held.items()}
    assert [name for name, tensor in tensors.items() if tensor.device != META] == []


def test_ids_without_a_table_are_nothing_where_they_are():
    ids = jagged((), [], [], bags=3).to(META)
    found = lookup(None, ids)
    assert found.shape == (3, 0) and found.device == META
