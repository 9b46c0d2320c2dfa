"""Rates that fall linearly to zero, of dense weights and of tables that update themselves."""

from functools import partial

import pytest
import torch
from test_ranker_fit import epoch_batches, make, same

from ranker.falling import FallingLearner
from ranker.fit import Plan, fit
from ranker.weights import tensors_of
from run.resume import Checkpoints

STEPS = 4


def test_each_step_is_taken_at_its_share_of_the_first_rate():
    """Seen by how far a weight with a constant gradient moves, and by a table, which stands still at the end."""
    learner = FallingLearner(make(), 0.1, STEPS)
    model, moved = learner.model, []
    for step in range(STEPS + 1):
        before = tensors_of(model)
        learner.step(model(5) * 1.0, f"step {step}")
        after = tensors_of(model)
        moved.append({name: (after[name] - before[name]).abs().max().item() for name in before})
    bias = [
        one["layer.bias"] for one in moved
    ]  # a constant gradient: AdamW moves by the rate, less the decay
    assert bias == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0], abs=0.002)
    (table,) = (name for name in moved[0] if "tables" in name)
    assert moved[0][table] > moved[1][table] > moved[3][table] > 0 == moved[4][table]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, stop):
    plan = Plan(3, 3, 0.1, 3)
    steps = plan.epochs * len(epoch_batches(0))

    def train(model, out, batches):
        return fit(
            model, plan, batches, lambda row: (model(row) - 2).square(), None, Checkpoints(out, {}, {}), "t",
            learner=partial(FallingLearner, steps=steps),
        )  # fmt: skip

    def interrupted(epoch, done):
        if epoch == stop:
            raise KeyboardInterrupt
        return epoch_batches(epoch)

    whole, first, second = make(), make(), make()
    expected = train(whole, tmp_path / "whole", epoch_batches)
    with pytest.raises(KeyboardInterrupt):
        train(first, tmp_path / "cut", interrupted)
    assert train(second, tmp_path / "cut", epoch_batches) == expected
    assert same(tensors_of(second), tensors_of(whole))
    assert not torch.equal(second.layer.weight, make().layer.weight)
