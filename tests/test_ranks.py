"""Several processes train one ranker: as one would, whatever is divided, stopped, killed or resumed."""

import multiprocessing
import os
import select
import signal
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ranker_world import Requests, full_frame, make_vectors
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ranker import attempt, memory, sharded
from ranker.epoch import epoch_batches
from ranker.fit import Plan, fit
from ranker.inputs.bags import jagged
from ranker.inputs.columns import learn_inputs
from ranker.inputs.frame_encoder import FrameEncoder, select_requests
from ranker.inputs.id_tables import collection, lookup
from ranker.learner import Learner, TrainingError
from ranker.losses import counted, training_loss
from ranker.model import WithPosition
from ranker.modules.module import Module, Output
from ranker.ranks import Share, in_ranks
from ranker.recipes import Recipe, cube
from ranker.score import CtrConfig, Ranker
from ranker.sharded import ShardedLearner, ShardedModel
from ranker.train import Training, train_ctr
from run.resume import Checkpoints
from run.sizes import size

NANO = size("nano")
STEPS, SLOTS = 10, 10  # of an epoch; padded candidates of a batch
FRAME = full_frame(60, seed=3)
VECTORS = make_vectors(24)


class Job:
    """A click model on sixty requests with all that a frame can hold, of which the last dozen validate."""

    def __init__(self, folder, loss="pointwise", recipe=None):
        self.loss, self.folder = loss, folder
        self.train = Requests(select_requests(FRAME, np.arange(48)))
        self.valid = Requests(select_requests(FRAME, np.arange(48, 60)))
        inputs, self.counts = learn_inputs(self.train, NANO.history)
        self.config = CtrConfig(
            recipe=recipe or cube(), inputs=inputs, id_width=NANO.id_width, content_width=VECTORS.width,
            embedding_id=VECTORS.id, loss=loss, learning_rate=1e-2, table_learning_rate=0.05,
        )  # fmt: skip
        self.encoder = FrameEncoder(inputs, VECTORS, self.config.recipe.search)

    def checkpoints(self):
        return Checkpoints(self.folder / "out", {"recipe": self.config.recipe.name}, {})

    def batches(self, epoch, share):
        every = list(epoch_batches(self.train, self.counts, self.encoder, SLOTS, (0, epoch), share))
        return every[:STEPS]

    def fit(self, epochs, model, logits, share, learner, batches=None):
        return fit(
            model,
            Plan(epochs, 9, 1e-2, 0),
            batches=lambda epoch, done: islice((batches or self.batches)(epoch, share), done, None),
            loss=lambda batch: share.weigh(
                training_loss(logits, batch, self.loss), counted(batch, self.loss)
            ),
            validate=lambda: attempt._validate(logits, self.valid, self.encoder, self.loss, share),
            checkpoints=self.checkpoints(),
            description="test",
            learner=learner,
        )

    def model(self):
        torch.manual_seed(0)
        return self.config.build()

    def alone(self, epochs):
        model = self.model()
        outcome = self.fit(epochs, model, WithPosition(model), Share(), Learner)
        return outcome, model

    def together(self, epochs, ranks=2, sharding=None, batches=None):
        model = self.model()

        def rank(share):
            mine = ShardedModel(model, share, sharding)
            self.fit(epochs, mine, mine, share, ShardedLearner, batches)

        in_ranks(ranks, rank)
        return self.alone(epochs)[0]

    def tensors(self):
        found = self.checkpoints().find("epoch")
        return load_file(found.file("state.safetensors"))


def assert_equal(tensors, wanted, atol):
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensors[name].shape == tensor.shape, name
        torch.testing.assert_close(tensors[name], tensor, atol=atol, rtol=0, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of ten, twenty and thirty steps: outcome and the tensors of its checkpoint."""
    job, found = Job(tmp_path_factory.mktemp("alone")), {}
    for epochs in (1, 2, 3):
        found[epochs] = job.alone(epochs)[0], job.tensors()
    return found


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "data_parallel", None])
def test_two_ranks_are_one_process_over_twenty_steps(alone, tmp_path, monkeypatch, sharding):
    """Weights, accumulators and moments; batches of fewer requests than ranks and of unequal shares among them.

    None is what the command does: in one collection some tables are divided and others are not.
    """
    monkeypatch.setattr(sharded, "SMALL", 30)
    wanted, tensors = alone[2]
    job = Job(tmp_path)
    shares = [len(batch.candidate_mask) for batch in job.batches(0, Share())]
    assert len(shares) == STEPS and 1 in shares and max(shares) > 2
    outcome = job.together(2, sharding=sharding)
    assert outcome.train_loss == pytest.approx(wanted.train_loss, abs=1e-5)
    assert outcome.valid_loss == pytest.approx(wanted.valid_loss, abs=1e-5)
    assert_equal(job.tensors(), tensors, atol=1e-5)
    moved = [name for name, tensor in tensors.items() if not torch.equal(tensor, alone[1][1][name])]
    assert len(moved) > len(tensors) / 2, "nothing would have been compared"


class Partial(Module):
    """Reads ids of the candidate only: no history, no request, and not all of its own weights."""

    per_candidate = 2

    def __init__(self, widths):
        super().__init__()
        self.layer = nn.Linear(widths.item, 2)
        self.unread = nn.Parameter(torch.ones(3))

    def forward(self, item_RNI):
        return Output(candidate=self.layer(item_RNI))


def test_what_a_recipe_leaves_unread_stays_as_it_is_in_ranks_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "SMALL", 30)
    one, two = (
        Job(tmp_path / name, recipe=Recipe("partial", {"partial": Partial})) for name in ("one", "two")
    )
    one.alone(1)
    two.together(1)
    found = two.tensors()
    assert_equal(found, one.tensors(), atol=1e-5)
    assert found["model/parts.partial.unread"].tolist() == [1, 1, 1]
    assert not found["tables/tables.behaviours/t_age.weight/t_age.weight.momentum_1"].any()


def test_a_checkpoint_of_two_ranks_opens_in_one_process_and_back(alone, tmp_path):
    """Two ranks train an epoch, one process the next, two ranks the third; as if one had trained alone."""
    job = Job(tmp_path)
    job.together(1)
    of_two = job.tensors()
    learner = Learner(job.model(), 1e-2)
    with safe_open(job.checkpoints().find("epoch").file("state.safetensors"), "pt") as saved:
        learner.restore(saved)
    best = {name: tensor for name, tensor in of_two.items() if name.startswith("best/")}
    assert_equal(learner.tensors() | best, of_two, atol=0)
    job.alone(2)
    assert_equal(job.tensors(), alone[2][1], atol=1e-5)
    job.together(3, sharding="row_wise")
    assert_equal(job.tensors(), alone[3][1], atol=1e-5)


def test_a_rank_that_dies_ends_the_others_and_training_goes_on_after_the_last_whole_epoch(alone, tmp_path):
    job, death = Job(tmp_path), tmp_path / "death"

    def dies(epoch, share):
        for step, batch in enumerate(job.batches(epoch, share)):
            if (epoch, share.rank, step) == (1, 1, 3):
                death.write_text(str(time.monotonic()))
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    with pytest.raises(TrainingError, match="rank 1 of 2 was ended by SIGKILL.*the others were stopped"):
        job.together(2, batches=dies)
    assert time.monotonic() - float(death.read_text()) < 5
    assert multiprocessing.active_children() == []
    assert_equal(job.tensors(), alone[1][1], atol=1e-5)
    job.together(2)
    assert_equal(job.tensors(), alone[2][1], atol=1e-5)


def test_ranks_do_not_go_on_from_a_checkpoint_of_another_recipe(alone, tmp_path, capfd):
    other = Job(tmp_path, recipe=Recipe("partial", {"partial": Partial}))
    other.alone(1)
    job = Job(tmp_path)
    job.together(1)
    assert_equal(job.tensors(), alone[1][1], atol=1e-5)
    assert capfd.readouterr().err.count("out.partial belongs to another run (recipe") == 1


def test_what_one_rank_cannot_go_on_from_is_said_and_not_that_others_lost_it(tmp_path):
    job = Job(tmp_path)

    def lost(epoch, share):
        for step, batch in enumerate(job.batches(epoch, share)):
            ruined = replace(batch, candidate_numbers=batch.candidate_numbers * float("nan"))
            yield ruined if (share.rank, step) == (1, 2) else batch

    with pytest.raises(TrainingError, match=r"^loss is nan in epoch 1, step 3: lower the learning rate$"):
        job.together(1, batches=lost)


def test_ranks_end_with_the_process_that_started_them():
    """Its death closes the only other ends of a pipe."""
    reading, writing = os.pipe()

    def wait(share):
        os.write(writing, b".")
        time.sleep(600)

    parent = multiprocessing.get_context("fork").Process(target=in_ranks, args=(2, wait))
    parent.start()
    os.close(writing)
    assert os.read(reading, 1) + os.read(reading, 1) == b".."
    parent.kill()
    assert select.select([reading], [], [], 30)[0], "ranks wait on"
    assert os.read(reading, 1) == b""
    os.close(reading)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A ranker of one process and one of two ranks, by the function that the command calls."""
    folder = tmp_path_factory.mktemp("shop")
    some, nobody = (Requests(select_requests(FRAME, np.arange(n))) for n in (48, 0))
    made = {
        n: train_ctr(some, nobody, VECTORS, NANO, folder / f"of_{n}", {}, Training(epochs=2), ranks=n)
        for n in (None, 2)
    }
    return folder, made


def test_what_ranks_trained_is_served_as_any_other(shop):
    folder, made = shop
    first, second = (Ranker.open(made[n], VECTORS).score(FRAME) for n in (None, 2))
    np.testing.assert_allclose(second, first, atol=1e-5)
    assert np.ptp(first) > 1e-3
    one, two = (made[n].config for n in (None, 2))
    assert two["outcome"]["train_loss"] == pytest.approx(one["outcome"]["train_loss"], abs=1e-5)
    assert {**one, "outcome": None} == {**two, "outcome": None}
    assert sorted(path.name for path in folder.iterdir()) == ["of_2", "of_None"], "no checkpoint is left"


def test_a_metric_is_of_all_ranks_and_of_no_earlier_training(shop, tmp_path):
    """Shares of unequal size, and another day validated before: the loss is that of all requests at once."""
    _, made = shop
    job, model = Job(tmp_path, "listwise"), Ranker.open(made[None], VECTORS).model
    whole = attempt._validate(WithPosition(model), job.valid, job.encoder, "listwise")
    found = tmp_path / "losses"

    def validate(share):
        mine = ShardedModel(model, share).eval()
        for part in (job.train, job.valid):  # another day first
            loss = attempt._validate(mine, part, job.encoder, "listwise", share)
        with found.open("a") as file:
            file.write(f"{loss}\n")

    in_ranks(3, validate)
    assert [float(line) for line in found.read_text().split()] == pytest.approx([whole] * 3, abs=1e-6)


def test_tables_that_would_outgrow_memory_are_refused_with_the_figure(tmp_path, monkeypatch):
    """Twelve million rows of 64 numbers: three times their weights, twice their accumulators."""
    rows = {"request.user_id": 1_999_000, "item.item_id": 10_000_000, "behaviour.age": 1_000}
    monkeypatch.setattr(memory, "available_bytes", lambda: int(9.32e9))
    memory.require_memory(rows, 64)
    monkeypatch.setattr(memory, "available_bytes", lambda: int(9.3e9))
    said = (
        r"^training needs 9\.3 GB for the id tables, and 9\.3 GB of memory are free: 12,000,000 rows of 64 numbers "
        r"and an accumulator each, of which item\.item_id 10,000,000, request\.user_id 1,999,000, "
        r"behaviour\.age 1,000\."
    )
    with pytest.raises(TrainingError, match=said):
        memory.require_memory(rows, 64)
    monkeypatch.setattr(memory, "available_bytes", lambda: 12_400_000_000)
    memory.require_memory(rows, 64, ranks=2)
    with pytest.raises(TrainingError, match=r"15\.5 GB"):
        memory.require_memory(rows, 64, ranks=2, kept=1)


def test_a_ranker_that_would_outgrow_memory_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 100_000)
    monkeypatch.setattr(CtrConfig, "build", lambda config: pytest.fail("tables were built"))
    some = Requests(select_requests(FRAME, np.arange(48)))
    with pytest.raises(
        TrainingError, match=r"of which item\.item_id 192, request\.user_id 64, .*Choose a --size"
    ):
        train_ctr(some, some, VECTORS, NANO, tmp_path / "r", {})
    assert not any(tmp_path.iterdir())


def test_the_memory_of_a_container_is_its_limit_and_what_it_holds_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = memory.available_bytes()
    (tmp_path / "memory.stat").write_text("anon 3000\nfile 500\n")
    (tmp_path / "memory.max").write_text("10000\n")
    assert memory.available_bytes() == 7000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() == pytest.approx(free, rel=0.5)


ROWS, WIDTH = 500_000, 32  # 64 MB


class Wide(nn.Module):
    """A large table and a dense weight."""

    def __init__(self):
        super().__init__()
        self.tables = collection({"item_id": ROWS}, WIDTH, 0.1)
        self.layer = nn.Linear(WIDTH, 1)

    def forward(self, row):
        return self.layer(lookup(self.tables, jagged(("item_id",), [np.array([row])], [np.array([1])]))).sum()


def test_the_memory_foretold_is_what_training_takes(tmp_path):
    """The peak of a process that trains two epochs, over what it had before."""

    def peak(share):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = psutil.Process().memory_info().rss
        model = Wide()
        fit(
            model,
            Plan(2, 9, 0.1, 0),
            batches=lambda epoch, done: range(3),
            loss=model,
            validate=lambda: 1 / len(list(tmp_path.rglob("manifest.json")) + [1]),
            checkpoints=Checkpoints(tmp_path / "out", {}, {}),
            description="test",
        )
        lines = Path("/proc/self/status").read_text().splitlines()
        most = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        (tmp_path / "peak").write_text(str(most - before))

    in_ranks(1, peak)
    foretold = memory.training_bytes(ROWS, WIDTH)
    assert int((tmp_path / "peak").read_text()) == pytest.approx(foretold, rel=0.2)
