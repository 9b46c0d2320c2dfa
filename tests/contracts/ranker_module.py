"""What every ranker module keeps. A new one inherits it by a line:

class TestDot(RankerModuleContract): module = Dot

The class or a ``functools.partial`` of it with options. The truth it has to learn is what the module itself can say:
a teacher, the module with random weights, draws the clicks; a pupil with other weights must find them.
"""

import json
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranker_world import Requests, auc, full_frame, make_vectors

from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder
from ranker.model import run
from ranker.modules.module import Features
from ranker.recipes import RECIPES, Recipe
from ranker.score import CONFIG, CtrConfig, Ranker
from ranker.train import LEARNING_RATES, Training, train_ctr
from ranker.weights import save_weights
from run.artifacts import open_artifact, write_artifact
from run.sizes import size

HISTORY = 20
VECTORS = make_vectors(24)
DIAL = replace(size("nano"), id_width=8, history=HISTORY)
FRAME = full_frame(30)


def of(module, search=None):
    return Recipe("contract", {"one": module}, search)


@cache
def inputs_of(requests=30, seed=0):
    return learn_inputs(Requests(full_frame(requests, seed)), HISTORY)[0]


def config_of(module, inputs=None, search=None):
    return CtrConfig(
        recipe=of(module, search),
        inputs=inputs or inputs_of(),
        id_width=DIAL.id_width,
        content_width=VECTORS.width,
        embedding_id=VECTORS.id,
        loss="pointwise",
        learning_rate=1e-3,
        table_learning_rate=0.02,
    )


def model_of(module, seed=0, inputs=None, search=None):
    """A click model of one module; no weight is near zero, no gate closed."""
    torch.manual_seed(seed)
    model = config_of(module, inputs, search).build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("tables."):
                parameter.uniform_(-1, 1)
            elif name.startswith("parts."):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def features_of(model, frame=FRAME, search=None):
    return model.features(FrameEncoder(inputs_of(), VECTORS, search).batch(frame))


def dimensions(name):
    """``target_RND`` -> "RND"."""
    return name.rsplit("_", 1)[1]


def changed(features, change):
    """Features with ``change(name, tensor)`` in place of every tensor."""
    return Features(**{f.name: change(f.name, getattr(features, f.name)) for f in fields(Features)})


def taken(features, letter, rows):
    """Only these rows of dimension R, N or L, wherever a feature has it."""
    rows = torch.as_tensor(rows)

    def take(name, tensor):
        place = dimensions(name).find(letter)
        return tensor if place < 0 else tensor.index_select(place, rows)

    return changed(features, take)


def padded(features, letter, count):
    """``count`` more empty slots: candidates and found behaviours on the right, behaviours on the left."""

    def pad(name, tensor):
        place = dimensions(name).find(letter)
        if place < 0:
            return tensor
        empty = tensor.new_zeros([count if at == place else size for at, size in enumerate(tensor.shape)])
        return torch.cat([empty, tensor] if letter == "L" else [tensor, empty], dim=place)

    return changed(features, pad)


def agree(one, other):
    assert (one is None) == (other is None)
    if one is not None:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


class RankerModuleContract:
    module = None
    search = None  # of the recipe, for a module that reads what is found

    @pytest.fixture
    def model(self):
        return model_of(self.module, search=self.search)

    @pytest.fixture
    def part(self, model):
        return model.parts["one"]

    @pytest.fixture
    def features(self, model):
        return features_of(model, search=self.search)

    def test_it_computes_the_widths_it_declares(self, part, features):
        with torch.no_grad():
            out = run(part, features)
        requests, slots = features.candidate_mask_RN.shape
        for said, width, shape in (
            (out.candidate, part.per_candidate, (requests, slots)),
            (out.request, part.per_request, (requests,)),
        ):
            assert (said is None) == (width == 0)
            if said is not None:
                assert (said.dtype, said.shape) == (torch.float32, (*shape, width))
        assert part.per_candidate + part.per_request > 0

    def test_what_it_declares_to_read_makes_a_difference(self, part, features):
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            before = run(part, features)
            for name in part.reads():

                def disturb(field, tensor, name=name):
                    if field != name:
                        return tensor
                    if tensor.dtype == torch.bool:
                        return ~tensor
                    return (
                        torch.randn(tensor.shape, generator=noise)
                        if tensor.is_floating_point()
                        else tensor + 3
                    )

                after = run(part, changed(features, disturb))
                pairs = [pair for pair in zip(before, after, strict=True) if pair[0] is not None]
                assert any(not torch.allclose(*pair) for pair in pairs), f"{name} is declared and not read"

    @torch.no_grad()
    def test_a_candidate_knows_nothing_of_the_others(self, part, features):
        before = run(part, features)
        order = torch.randperm(
            features.candidate_mask_RN.shape[1], generator=torch.Generator().manual_seed(0)
        )
        mixed = run(part, taken(features, "N", order))
        agree(mixed.candidate, None if before.candidate is None else before.candidate[:, order])
        agree(mixed.request, before.request)
        for slot in range(len(order)):
            alone = run(part, taken(features, "N", [slot]))
            agree(alone.candidate, None if before.candidate is None else before.candidate[:, [slot]])
            agree(alone.request, before.request)

    @torch.no_grad()
    def test_a_batch_is_its_requests_one_by_one(self, part, features):
        together = run(part, features)
        for row in range(len(features.query_known_R)):
            one = taken(features, "R", [row])
            slots = one.candidate_mask_RN[0].nonzero()[:, 0]
            behaviours = one.history_mask_RL[0].nonzero()[:, 0]
            if len(behaviours):
                one = taken(one, "L", behaviours)
            alone = run(part, taken(one, "N", slots))
            agree(
                alone.candidate, None if together.candidate is None else together.candidate[[row]][:, slots]
            )
            agree(alone.request, None if together.request is None else together.request[[row]])

    @torch.no_grad()
    def test_padding_changes_nothing(self, part, features):
        before, slots = run(part, features), features.candidate_mask_RN.shape[1]
        for letter in "NLK":
            after = run(part, padded(features, letter, 5))
            agree(None if after.candidate is None else after.candidate[:, :slots], before.candidate)
            agree(after.request, before.request)

    def test_who_has_no_history_gets_finite_output_and_gradients(self, part, features):
        def forget(name, tensor):
            return torch.zeros_like(tensor) if set("LK") & set(dimensions(name)) else tensor

        self.learn(part, changed(features, forget))
        for name, parameter in part.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name

    def test_ids_and_vectors_that_nobody_knows_get_finite_output(self, part, features):
        unknown = ("target", "item", "user", "behaved", "history", "query", "found")

        def forget(name, tensor):
            return torch.zeros_like(tensor) if name.startswith(unknown) and "mask" not in name else tensor

        self.learn(part, changed(features, forget))

    @torch.no_grad()
    def test_equal_input_gives_equal_output_and_equal_seeds_equal_weights(self, part, features):
        first, second = run(part, features), run(part, features)
        for one, other in zip(first, second, strict=True):
            assert one is other or torch.equal(one, other)
        twins = [dict(model_of(self.module, 5, search=self.search).named_parameters()) for _ in range(2)]
        for name, parameter in twins[0].items():
            assert torch.equal(parameter, twins[1][name]), name

    def test_a_gradient_reaches_every_weight(self, part, features):
        self.learn(part, features)
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().sum() > 0, name

    def learn(self, part, features):
        """One backward pass from every finite number of the output."""
        drawn = torch.Generator().manual_seed(0)
        said = [one for one in run(part, features) if one is not None]
        assert all(one.isfinite().all() for one in said)
        total = sum((one * torch.randn(one.shape, generator=drawn)).sum() for one in said)
        if total.requires_grad:
            total.backward()

    def test_saving_and_opening_loses_nothing(self, model, tmp_path, monkeypatch):
        monkeypatch.setitem(RECIPES, "contract", lambda: of(self.module, self.search))
        config = config_of(self.module, search=self.search)
        with write_artifact(tmp_path / "r", "ranker", {}) as folder:
            save_weights(model, folder)
            (folder / CONFIG).write_text(json.dumps(config.to_json()))
        torch.manual_seed(99)
        before = Ranker(model, FrameEncoder(config.inputs, VECTORS, self.search)).score(FRAME)
        assert np.array_equal(
            Ranker.open(open_artifact(tmp_path / "r", "ranker"), VECTORS).score(FRAME), before
        )
        assert before.std() > 0

    def test_what_it_can_say_it_learns(self, tmp_path, monkeypatch):
        made_of = of(self.module, self.search)
        monkeypatch.setitem(RECIPES, "contract", lambda: made_of)
        monkeypatch.setitem(
            LEARNING_RATES, "pointwise", ((0.002, 0.05),)
        )  # few ids, each of which occurs often
        inputs = inputs_of(1000)
        model = model_of(self.module, 7, inputs, self.search)
        teacher = Ranker(model, FrameEncoder(inputs, VECTORS, self.search))
        seen = [full_frame(n, seed) for n, seed in ((1000, 0), (200, 1), (300, 2))]
        said = [teacher.score(frame) for frame in seen]
        mean, deviation = said[0].mean(), said[0].std()
        assert deviation > 0
        draw, chances = (
            np.random.default_rng(0),
            [1 / (1 + np.exp(-3 * (s - mean) / deviation)) for s in said],
        )
        train, valid, test = (
            clicked(frame, draw.random(len(chance)) < chance)
            for frame, chance in zip(seen, chances, strict=True)
        )
        dial = replace(DIAL, ranker_slots=64)
        training = Training(recipe=made_of)
        made = train_ctr(Requests(train), Requests(valid), VECTORS, dial, tmp_path / "r", {}, training)
        label = test.candidates["label"].to_numpy()
        best, found = auc(label, chances[2]), auc(label, Ranker.open(made, VECTORS).score(test))
        assert best > 0.8
        assert found - 0.5 > 0.75 * (best - 0.5), f"the teacher's AUC is {best:.3f}, the pupil's {found:.3f}"


def clicked(frame, label):
    """The frame with these clicks; places tell nothing."""
    columns = frame.candidates.drop_columns(["label", "position"])
    return replace(frame, candidates=columns.append_column("label", pa.array(label.astype(np.float32))))
