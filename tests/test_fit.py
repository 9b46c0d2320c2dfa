"""Training keeps the best epoch, stops when it is not beaten, and an interrupted run ends as an uninterrupted one.

The model is one weight that grows by about the learning rate an epoch; the validation losses are planted.
"""

import pytest
import torch
from torch import nn

from ranker import fit as module
from ranker.fit import Plan, fit

PLAN = Plan(epochs=6, patience=2, learning_rate=0.1, seed=0)


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))


def run(partial, losses, plan=PLAN, identity="run", seen=None):
    """Fits a Weight; ``seen`` gets its value after every epoch. Returns what ``fit`` says and the last value."""
    model, seen = Weight(), [] if seen is None else seen

    def validate():
        seen.append(float(model.value.detach()))
        return losses[len(seen) - 1]

    outcome = fit(
        model,
        plan,
        batches=lambda epoch: [epoch],
        loss=lambda batch: -model.value.sum(),
        validate=validate if losses else None,
        partial=partial,
        identity={"of": identity},
        description="test",
    )
    return outcome, float(model.value.detach()), seen


@pytest.mark.parametrize(
    "losses, epochs, best",
    [
        ([3.0, 2.0, 1.0, 0.5, 0.4, 0.3], 6, 6),  # always better: all epochs
        ([3.0, 1.0, 2.0, 4.0], 4, 2),  # two epochs without a better one
        ([1.0, 1.0, 1.0], 3, 1),  # equal is not better
        ([3.0, 4.0, 2.0, 5.0, 6.0], 5, 3),
    ],
)
def test_the_best_epochs_weights_are_left_in_the_model(tmp_path, losses, epochs, best):
    outcome, value, seen = run(tmp_path / "partial", losses)
    assert (outcome.epochs, outcome.best) == (epochs, best)
    assert list(outcome.valid_loss) == losses[:epochs] and len(outcome.train_loss) == epochs
    assert value == seen[best - 1] and len(set(seen)) == epochs


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    outcome, value, _ = run(tmp_path / "partial", [])
    assert (outcome.epochs, outcome.best, outcome.valid_loss) == (6, 6, ())
    assert value == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("losses", [[3.0, 1.0, 2.0, 4.0], [1.0, 2.0, 3.0], [3.0, 4.0, 2.0, 5.0, 6.0]])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_interrupted_after_any_epoch_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, losses, after):
    whole = run(tmp_path / "whole", losses)
    keep, kept, seen = module._keep, [], []

    def killed(*arguments):
        keep(*arguments)
        kept.append(1)
        if len(kept) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_keep", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "partial", losses, seen=seen)
    monkeypatch.setattr(module, "_keep", keep)
    assert run(tmp_path / "partial", losses, seen=seen) == whole


def test_what_another_run_left_is_not_gone_on_with(tmp_path):
    run(tmp_path / "partial", [5.0, 6.0, 7.0], identity="other")
    outcome, value, seen = run(tmp_path / "partial", [3.0, 1.0, 2.0, 4.0])
    assert outcome.epochs == 4 and value == seen[1]
