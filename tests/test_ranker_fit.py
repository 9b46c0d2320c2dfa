"""The training loop: which epoch is kept, when it stops, what each step does, and what a lost number leaves."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ranker.fit import Outcome, Plan, fit
from ranker.inputs.bags import jagged
from ranker.inputs.id_tables import collection, lookup
from ranker.learner import TrainingError
from ranker.weights import tensors_of
from run.resume import Checkpoints

PLAN = Plan(epochs=6, patience=2, learning_rate=0.1, seed=3)
BATCHES = 2  # of an epoch


class Small(nn.Module):
    """A dense layer, with noise while training, on a row of a table that updates itself."""

    def __init__(self):
        super().__init__()
        self.tables = collection({"item_id": 8}, 4, 0.05)
        self.layer = nn.Linear(4, 1)
        self.layer.register_parameter("unused", nn.Parameter(torch.ones(2)))

    def forward(self, row):
        ids = jagged(("item_id",), [np.array([row])], [np.array([1])])
        noise = torch.rand(1) if self.training else torch.zeros(1)
        return (self.layer(lookup(self.tables, ids)) + noise).sum()


def make():
    """One of equal weights every time. (A copy of a table that updates itself is not one.)"""
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def small():
    return make()


def epoch_batches(epoch, done=0):
    """Rows of the table, others in each epoch."""
    return [(epoch + number) % 8 for number in range(done, BATCHES)]


def trained(model, folder, valid=None, plan=PLAN, loss=None, job=None, batches=epoch_batches):
    """Fit with scripted validation losses; the outcome and the weights at the end of each epoch."""
    after = []

    def validate():
        assert not model.training
        after.append(tensors_of(model))
        return valid[len(checkpoint_losses(folder, job))]

    outcome = fit(
        model,
        plan,
        batches=batches,
        loss=loss or (lambda row: (model(row) - 2).square()),
        validate=validate if valid is not None else None,
        checkpoints=Checkpoints(folder / "out", job or {}, {}),
        description="test",
    )
    return outcome, after


def checkpoint_losses(folder, job=None):
    """Validation losses as the last checkpoint has them."""
    found = Checkpoints(folder / "out", job or {}, {}).find("epoch")
    return [] if found is None else found.state["valid"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_epochs_weights_are_left_in_the_model_and_training_stops_after_the_patience(small, tmp_path):
    outcome, after = trained(small, tmp_path, valid=[3.0, 1.0, 2.0, 1.5, 0.0, 0.0])
    assert (outcome.epochs, outcome.best, outcome.valid_loss) == (4, 2, (3.0, 1.0, 2.0, 1.5))
    assert same(tensors_of(small), after[1]) and not same(after[1], after[3])
    assert not small.training


def test_an_equal_loss_is_no_better_one(small, tmp_path):
    outcome, after = trained(small, tmp_path, valid=[1.0, 1.0, 1.0, 0.0])
    assert (outcome.epochs, outcome.best) == (3, 1)
    assert same(tensors_of(small), after[0])


def test_a_better_epoch_renews_the_patience(small, tmp_path):
    outcome, after = trained(small, tmp_path, valid=[5.0, 6.0, 4.0, 5.0, 3.0, 4.0, 0.0])
    assert (outcome.epochs, outcome.best) == (6, 5)
    assert same(tensors_of(small), after[4])


def test_without_validation_every_epoch_is_run_and_the_last_is_kept(small, tmp_path):
    seen = []

    def watched(row):
        seen.append(row)
        return (small(row) - 2).square()

    outcome, _ = trained(small, tmp_path, loss=watched)
    assert (outcome.epochs, outcome.best, outcome.valid_loss) == (6, 6, ())
    assert seen == [row for epoch in range(6) for row in epoch_batches(epoch)]
    final = Checkpoints(tmp_path / "out", {}, {}).find("epoch")
    assert final.state == {"train": list(outcome.train_loss), "valid": [], "best": 6}


def test_no_epochs_at_all_leave_the_model_as_it_was(small, tmp_path):
    before = tensors_of(small)
    outcome, _ = trained(small, tmp_path, plan=Plan(0, 2, 0.1, 3))
    assert outcome == Outcome(0, 0, (), ()) and same(tensors_of(small), before)
    assert not small.training


def test_each_step_is_one_of_adamw_on_the_dense_weights_and_the_loss_told_is_the_mean(small, tmp_path):
    """The slow twin: torch's own AdamW, noise drawn from (seed, epoch), tables left to themselves."""
    twin = make()
    dense = list(twin.layer.parameters())
    optimizer = torch.optim.AdamW(dense, lr=0.1)
    expected = []
    for epoch in range(2):
        torch.manual_seed(3 * 100_003 + epoch)
        losses = []
        for row in epoch_batches(epoch):
            loss = (twin(row) - 2).square()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        expected.append(sum(losses) / BATCHES)
    table = twin.state_dict()["tables.embedding_bags.t_item_id.weight"]
    outcome, _ = trained(small, tmp_path, plan=Plan(2, 2, 0.1, 3))
    assert outcome.train_loss == pytest.approx(expected, abs=1e-6)
    for one, other in zip(small.layer.parameters(), dense, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    torch.testing.assert_close(small.state_dict()["tables.embedding_bags.t_item_id.weight"], table)


def test_the_mean_of_an_epochs_steps_is_validated_and_kept_and_training_goes_on_from_the_last(tmp_path):
    """The slow twin: every step's weights, written down by a run without the mean; an epoch's own are averaged."""
    steps = []

    def watched(model):
        def loss(row):
            steps.append(
                [one.detach().clone() for one in model.layer.parameters()]
            )  # as the last step left them
            return (model(row) - 2).square()

        return loss

    plain, averaged = make(), make()
    trained(plain, tmp_path / "plain", plan=Plan(2, 2, 0.1, 3), loss=watched(plain))
    steps.append([one.detach().clone() for one in plain.layer.parameters()])
    expected = [torch.stack(one[BATCHES + 1 :]).mean(dim=0) for one in zip(*steps, strict=True)]
    seen, steps = steps, []
    outcome, after = trained(
        averaged, tmp_path / "mean", [2.0, 1.0], Plan(2, 2, 0.1, 3, averaged=True), watched(averaged)
    )
    assert outcome.best == 2 and same(tensors_of(averaged), after[1])
    for one, other in zip(averaged.layer.parameters(), expected, strict=True):
        torch.testing.assert_close(one.detach(), other, atol=1e-6, rtol=0)
    assert not torch.allclose(averaged.layer.weight, seen[-1][0], atol=1e-2), "the mean is not the last step"
    for one, other in zip(steps, seen, strict=False):
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scripted", [None, [3.0, 1.0, 2.0, 0.5, 0.7, 0.9]], ids=["last", "best"])
def test_a_run_stopped_after_any_epoch_ends_as_one_that_was_not(small, tmp_path, scripted):
    whole, _ = trained(small, tmp_path / "whole", valid=scripted)
    for stop in range(1, 6):
        resumed, folder = make(), tmp_path / f"parts-{stop}"

        def interrupted(epoch, done, stop=stop):
            if epoch == stop:
                raise KeyboardInterrupt
            return epoch_batches(epoch)

        with pytest.raises(KeyboardInterrupt):
            trained(resumed, folder, valid=scripted, batches=interrupted)
        torch.rand(7)  # what is drawn elsewhere is nothing to it
        again = make()
        outcome, _ = trained(again, folder, valid=scripted)
        assert outcome == whole and same(tensors_of(again), tensors_of(small)), stop


class Tables(Small):
    """With three tables more, in one collection."""

    KEYS = ("user_id", "query_id", "spu")

    def __init__(self):
        super().__init__()
        self.more = collection(dict.fromkeys(self.KEYS, 8), 4, 0.05)

    def forward(self, row):
        ids = jagged(self.KEYS, [np.array([row])] * 3, [np.array([1])] * 3)
        return super().forward(row) + lookup(self.more, ids).sum()


def test_every_table_goes_on_with_its_own_learning_rates(tmp_path):
    """Each table's accumulator is kept: from a new one, its next steps would be too long."""
    torch.manual_seed(0)
    whole = Tables()
    trained(whole, tmp_path / "whole")
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        trained(
            Tables(),
            tmp_path / "parts",
            batches=lambda epoch, done: epoch_batches(epoch, done) if epoch < 3 else stopped(),
        )
    torch.manual_seed(0)
    again = Tables()
    trained(again, tmp_path / "parts")
    assert same(tensors_of(again), tensors_of(whole))


def stopped():
    raise KeyboardInterrupt


def infinite_loss(model, row):
    return model(row) * math.inf


def lost_loss(model, row):
    return model(row) * math.nan


def lost_gradient(model, row):
    """Finite, but the slope of a root is infinite at zero."""
    return (model.layer.weight * 0).sqrt().sum() + model(row)


@pytest.mark.parametrize(
    ("break_loss", "message", "tables_learn"),
    [
        (infinite_loss, r"loss is -?inf in epoch 2, step 2: lower the learning rate", False),
        (lost_loss, r"loss is nan in epoch 2, step 2", False),
        (lost_gradient, r"gradients are not finite in epoch 2, step 2: \['layer.weight'\]", True),
    ],
    ids=["infinite", "nan", "gradient"],
)
def test_a_number_lost_stops_before_the_step_and_leaves_the_checkpoint(
    small, tmp_path, break_loss, message, tables_learn
):
    """Of the second epoch's second batch; the first epoch's checkpoint leads to the undisturbed run's weights."""
    fresh, undisturbed = make(), make()
    seen, before = [], {}

    def breaking(row):
        seen.append(row)
        if len(seen) < 4:
            return (small(row) - 2).square()
        before.update(tensors_of(small))
        return break_loss(small, row)

    with pytest.raises(TrainingError, match=message):
        trained(small, tmp_path, valid=[2.0, 1.0, 1.5], loss=breaking)
    for name, tensor in tensors_of(small).items():
        if not (tables_learn and "tables" in name):  # those learn during the backward pass
            assert torch.equal(tensor, before[name]), name
        assert tensor.isfinite().all(), name
    assert checkpoint_losses(tmp_path) == [2.0]
    expected, _ = trained(undisturbed, tmp_path / "whole", valid=[2.0, 1.0, 1.5, 1.6])
    found, _ = trained(fresh, tmp_path, valid=[2.0, 1.0, 1.5, 1.6])
    assert found == expected and same(tensors_of(fresh), tensors_of(undisturbed))


def test_another_jobs_epochs_are_not_continued(small, tmp_path):
    fresh = make()
    trained(small, tmp_path, job={"seed": 1}, plan=Plan(3, 2, 0.1, 3))
    outcome, _ = trained(fresh, tmp_path, job={"seed": 2}, plan=Plan(1, 2, 0.1, 3))
    assert outcome.epochs == 1


def test_the_last_epoch_lies_where_every_release_looks_for_it(small, tmp_path):
    trained(small, tmp_path, plan=Plan(1, 2, 0.1, 3))
    kept = load_file(tmp_path / "out.partial" / "epoch" / "state.safetensors")
    assert {name.split("/")[0] for name in kept} == {"model", "best", "tables", "adam"}
    assert torch.equal(kept["best/layer.weight"], small.layer.weight.detach())
