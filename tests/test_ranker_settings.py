"""Every setting does what it says, and a file of settings is read or refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ranker_world import Requests, full_frame, make_vectors
from torch.nn import functional

from ranker import attempt
from ranker.inputs.batch import Batch
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.learner import Learner
from ranker.losses import training_loss
from ranker.model import WithPosition
from ranker.recipes import attention
from ranker.score import CtrConfig
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from run.artifacts import ArtifactError

SHIPPED = Settings(8, 1e-3, 0.02)
FRAME, VECTORS = full_frame(30), make_vectors(24)
INPUTS, _ = learn_inputs(Requests(FRAME), 20)
BATCH = FrameEncoder(INPUTS, VECTORS).batch(FRAME)


def model(seed=0, **changed):
    torch.manual_seed(seed)
    config = CtrConfig(
        **replace(SHIPPED, **changed).settings(), recipe=attention(), inputs=INPUTS,
        content_width=VECTORS.width, embedding_id=VECTORS.id, loss="pointwise",
    )  # fmt: skip
    return config.build()


@pytest.mark.parametrize(
    "changed, widths",
    [
        ({}, [64, 32, 1]),
        ({"depth": 1}, [64, 1]),
        ({"depth": 3, "hidden": 4}, [32, 16, 8, 1]),
        ({"id_width": 16}, [128, 64, 1]),
        ({"dropout": 0.3}, [64, 32, 1]),
    ],
)
def test_width_and_depth_are_those_of_the_perceptron(changed, widths):
    built = model(**changed)
    layers = [one for one in built.head if isinstance(one, torch.nn.Linear)]
    assert [built.candidate_input.out_features, *(one.out_features for one in layers)] == widths


def test_dropout_leaves_out_its_fraction_while_it_trains_and_none_when_it_scores():
    torch.manual_seed(0)
    built = model(dropout=0.25)
    seen = []
    built.head[2].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    built.train()(BATCH)
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    with torch.no_grad():
        same = model(dropout=0.0).eval()(BATCH)
        torch.testing.assert_close(built.eval()(BATCH), same)


def test_a_hidden_id_is_zeros_in_training_and_is_there_in_scoring():
    built = model(id_dropout=0.4)
    with torch.no_grad():
        for table in built.tables.parameters():
            table.uniform_(1, 2)
    every = built.eval().features(BATCH)
    torch.manual_seed(1)
    some = built.train().features(BATCH)
    shown = BATCH.candidate_mask
    hidden = (some.target_RND == 0).all(-1) & shown
    assert float(hidden.sum() / shown.sum()) == pytest.approx(0.4, abs=0.15)
    assert not (every.target_RND[shown] == 0).any()
    torch.testing.assert_close(some.target_RND[shown & ~hidden], every.target_RND[shown & ~hidden])
    width = SHIPPED.id_width
    assert torch.equal(some.item_RNI[..., :width], some.target_RND), "hidden from every module"
    torch.testing.assert_close(some.item_RNI[..., width:], every.item_RNI[..., width:])
    torch.testing.assert_close(some.history_RLD, every.history_RLD)


def test_weight_decay_is_that_of_the_dense_weights():
    kept, decayed = model(), model()
    value = next(p for n, p in kept.named_parameters() if n == "head.1.weight").detach().clone()
    for one, decay in ((kept, 0.0), (decayed, 0.5)):
        learner = Learner(one, 0.1, weight_decay=decay)
        learner.step(0.0 * WithPosition(one)(BATCH).sum(), "test")
    torch.testing.assert_close(dict(kept.named_parameters())["head.1.weight"], value)
    torch.testing.assert_close(dict(decayed.named_parameters())["head.1.weight"], value * (1 - 0.1 * 0.5))


def test_the_other_loss_has_its_weight():
    draw = np.random.default_rng(0)
    logit = torch.from_numpy(draw.normal(size=(2, 3))).float()
    label = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    given = {"label": label, "later": torch.zeros(2, 3, 0), "candidate_mask": torch.ones(2, 3).bool()}
    batch = Batch(**{name: None for name in Batch.__dataclass_fields__} | given)
    point = functional.binary_cross_entropy_with_logits(logit, label)
    listed = functional.cross_entropy(logit, label.argmax(1))
    assert point != listed
    for own, expected in (
        ("pointwise", 0.7 * point + 0.3 * listed),
        ("listwise", 0.7 * listed + 0.3 * point),
    ):
        found = training_loss(lambda _: logit, batch, own, 0.3)
        assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_training_gets_the_settings_it_is_told(tmp_path, monkeypatch):
    """All of them arrive: those of the model in its shape, those of learning in the learner and the loss."""
    told = {}

    def tell(model, plan, loss, learner, **_):
        told.update(rate=plan.learning_rate, decay=learner(model, 1.0).adam.param_groups[0]["weight_decay"])
        told.update(hidden=model.candidate_input.out_features, ids=model.id_dropout)
        monkeypatch.setattr(attempt, "training_loss", lambda *given: told.update(other=given[3]))
        loss(BATCH)
        raise StopIteration

    monkeypatch.setattr(attempt, "fit", tell)
    one = Requests(FRAME)
    own = Settings(
        4, 0.5, 0.1, hidden=2, depth=1, dropout=0.1, weight_decay=0.3, id_dropout=0.2, other_loss=0.4
    )
    with pytest.raises(StopIteration):
        train_ctr(one, one, VECTORS, train_size(), tmp_path / "r", {}, Training(settings=own))
    assert told == {"rate": 0.5, "decay": 0.3, "hidden": 8, "ids": 0.2, "other": 0.4}


def train_size():
    from run.sizes import size

    return size("nano")


def test_a_file_of_settings_is_read_or_refused_by_name(tmp_path):
    path = tmp_path / "best.json"
    path.write_text(json.dumps(SHIPPED.settings()))
    assert Settings.read(path) == SHIPPED
    still = replace(SHIPPED, table_learning_rate=0.0, weight_decay=0.0)
    path.write_text(json.dumps(still.settings()))
    assert Settings.read(path) == still
    wrong = {
        "width is unknown": {"width": 3},
        "depth is 0": {"depth": 0},
        "hidden is 2.5": {"hidden": 2.5},
        "dropout is 1": {"dropout": 1},
        "learning_rate is 'fast'": {"learning_rate": "fast"},
        "weight_decay is -1": {"weight_decay": -1},
        "learning_rate is 0": {"learning_rate": 0},
        "id_width is True": {"id_width": True},
    }
    for said, changed in wrong.items():
        path.write_text(json.dumps(SHIPPED.settings() | changed))
        with pytest.raises(ArtifactError, match=said):
            Settings.read(path)
    path.write_text("{}")
    with pytest.raises(ArtifactError, match=r"id_width is missing; .*other_loss is missing"):
        Settings.read(path)
    path.write_text("nothing")
    with pytest.raises(ArtifactError, match="such as 'moon ranker --tune' writes"):
        Settings.read(path)
