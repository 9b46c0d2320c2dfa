"""A training that was killed goes on with the next batch: its losses and weights are those of one that was not."""

import os
import signal
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ranker_world import Requests, make_world
from safetensors.torch import load_file
from test_ranker_fit import BATCHES, PLAN, epoch_batches, make, same, trained

from ranker import attempt
from ranker import fit as fit_module
from ranker.settings import Settings
from ranker.train import Training, train_ctr
from ranker.weights import tensors_of
from run.artifacts import open_artifact
from run.resume import Checkpoints
from run.sizes import size

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(size("nano"), id_width=4, history=50, ranker_slots=100)
WORLD, VALID = make_world(requests=60, items=60), make_world(requests=20, items=60, seed=1)
KILLED = 4  # times


def train(out, kill_before=None):
    """Train a click model; end the process before it takes a step on that batch, all such batches counted."""
    real, seen = attempt.fit, []

    def fit(*given, batches, **named):
        def counted(epoch, done):
            for batch in batches(epoch, done):
                if len(seen) == kill_before:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen.append(1)
                yield batch

        return real(*given, batches=counted, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "fit", fit)
        requests, checked = Requests(WORLD.frame), Requests(VALID.frame)
        made = train_ctr(requests, checked, WORLD.vectors, TINY, out, {}, Training(epochs=3))
    return made, len(seen)


def test_killed_at_any_batch_it_ends_with_the_same_losses_and_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "EVERY_S", 0.0)  # a checkpoint after every batch
    whole, total = train(tmp_path / "whole" / "ranker")
    out = tmp_path / "cut" / "ranker"
    draw = np.random.default_rng()  # other batches every time
    cuts = [int(one) for one in draw.integers(1, total // (KILLED + 1), KILLED)]
    for cut in cuts:
        child = get_context("fork").Process(target=train, args=(out, cut))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL and not out.exists(), cuts
    made, left = train(out)
    assert left == total - sum(cuts), "no batch is trained twice, none is left out"
    assert made.config == whole.config, cuts
    assert made.id == whole.id, cuts  # of the bytes of all weights


@pytest.mark.parametrize("batch", range(1, 2 * BATCHES + 1))
def test_random_numbers_go_on_where_they_were(tmp_path, monkeypatch, batch):
    """The noise of each step is drawn by torch while it trains."""
    monkeypatch.setattr(fit_module, "EVERY_S", 0.0)
    undisturbed, resumed = make(), make()
    expected, _ = trained(undisturbed, tmp_path / "whole")
    seen = []

    def interrupted(epoch, done):
        for row in epoch_batches(epoch, done):
            if len(seen) == batch:
                raise KeyboardInterrupt
            seen.append(row)
            yield row

    with pytest.raises(KeyboardInterrupt):
        trained(make(), tmp_path / "cut", batches=interrupted)
    torch.rand(7)
    found, _ = trained(resumed, tmp_path / "cut")
    assert found == expected and same(tensors_of(resumed), tensors_of(undisturbed))


def test_a_checkpoint_within_an_epoch_is_due_by_the_clock(tmp_path, monkeypatch):
    """By a clock that moves a second with every batch, after every other one."""
    now, saved = [0.0], []
    monkeypatch.setattr(fit_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(fit_module, "EVERY_S", 2.0)
    real = fit_module._save

    def save(*given):
        saved.append(given[-1].get("steps"))
        real(*given)

    def batches(epoch, done):
        for row in range(7):
            now[0] += 1
            yield row

    monkeypatch.setattr(fit_module, "_save", save)
    trained(make(), tmp_path, plan=replace(PLAN, epochs=1), batches=batches)
    assert saved == [2, 4, 6, None]
    kept = Checkpoints(tmp_path / "out", {}, {}).find("epoch")
    assert "steps" not in kept.state and fit_module.RANDOM not in load_file(kept.file("state.safetensors"))


def test_a_checkpoint_names_service_features_and_version_and_another_is_told_and_not_used(tmp_path, capsys):
    frame, killed = Requests(WORLD.frame), KeyboardInterrupt

    def made(place, version, signature=frame.signature, after=None):
        vectors = replace(WORLD.vectors, version=version)
        requests = Requests(WORLD.frame, signature)
        training = Training(settings=Settings(TINY.id_width, 2e-3, 0.005), epochs=2)
        return train_ctr(requests, requests, vectors, TINY, place, {}, training, after=after)

    def cut(epoch, loss):
        if epoch == 2:
            raise killed

    def interrupted():
        with pytest.raises(killed):
            made(tmp_path / "r", 2, after=cut)

    interrupted()
    job = open_artifact(tmp_path / "r.partial" / "epoch", "checkpoint", "").config["job"]
    assert job["service"] == "ctr_v1" and job["embedding_version"] == 2
    assert job["features"] == [one.name for one in frame.signature.features]
    turned = replace(frame.signature, features=frame.signature.features[::-1])
    renamed = replace(frame.signature, service="ctr_v2")
    for version, signature, said in (
        (3, frame.signature, "(embedding_version 2, now 3): starting afresh"),
        (2, renamed, '(service "ctr_v1", now "ctr_v2", '),
        (2, turned, f'(features.0 "{job["features"][0]}", now "{job["features"][-1]}", '),
    ):
        capsys.readouterr()
        fresh = made(tmp_path / "fresh", version, signature)
        again = made(tmp_path / "r", version, signature)
        assert said in capsys.readouterr().err and again.id == fresh.id, "as if there had been none"
        interrupted()
    capsys.readouterr()
    assert made(tmp_path / "r", 2).config["outcome"]["epochs"] == 2
    assert "starting afresh" not in capsys.readouterr().err
