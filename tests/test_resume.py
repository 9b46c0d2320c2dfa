"""Whoever resumes is killed at every write or rename, and ends with what an undisturbed run ends with.

Run: pytest tests/test_resume.py
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_requests
from encoder_world import START, TINY, shop
from ranker_world import TOWERS, Requests, catalogue, make_world

import encoder.embed
import encoder.train
from dataset.split import Split
from dataset.tables import Dataset
from encoder.encode import Encoder
from encoder.optim import Optimizers
from feature_repo.create import create_store
from feature_repo.frames import shards
from feature_repo.frames.source import FrameSource
from ranker.learner import Learner
from ranker.train import Training, train_ctr
from ranker.two_tower.train import train_two_tower
from run.artifacts import MANIFEST, Artifact, open_artifact, write_artifact
from run.resume import Checkpoints, find_artifact, remove_checkpoints
from run.sizes import size

Worked = Callable[[], None]  # called for every unit of work
NUMBERS = 2
# What this module and its helpers import; they themselves are not on the path of multiprocessing's fork server.
PRELOADED = [
    "pytest", "encoder.train", "encoder.embed", "evaluation.bench.local_redis", "feature_repo.create",
    "feature_repo.frames.shards", "ranker.attempt", "ranker.two_tower.train",
]  # fmt: skip


def tally(source: Path, out: Path, worked: Worked) -> None:
    """The smallest job: it counts, and saves after each number."""
    checkpoints = Checkpoints(out, {"numbers": NUMBERS}, {})
    found = checkpoints.find("tally")
    said = "" if found is None else found.file("deep/said").read_text()
    for number in range(0 if found is None else found.state["next"], NUMBERS):
        worked()
        said += f"{number} "
        with checkpoints.save("tally", {"next": number + 1}) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "said").write_text(said)
    with write_artifact(out, "tally", {}) as folder:
        (folder / "said").write_text(said)
    checkpoints.remove()


def train_encoder(source: Path, out: Path, worked: Worked) -> None:
    """Two stages, saved every other step."""
    encoder.train.CHECKPOINT_EVERY = 2
    counted(Optimizers, "update", worked)
    dataset, split = (
        Dataset.open(open_artifact(source / "dataset", "dataset")),
        Split.open(open_artifact(source / "split", "split")),
    )
    encoder.train.train_encoder(dataset, split, TINY, out, budget=0.05)


def embed(source: Path, out: Path, worked: Worked) -> None:
    """Three chunks of items, one of queries."""
    encoder.embed.CHUNK = 20
    counted(Encoder, "encode", worked)
    trained = open_artifact(source / "encoder", "encoder", "test")
    encoder.embed.embed(
        trained, Dataset.open(open_artifact(source / "dataset", "dataset")), START.replace(month=3), out
    )


def train_ranker(source: Path, out: Path, worked: Worked) -> None:
    """Three epochs."""
    counted(Learner, "step", worked)
    world, valid = make_world(requests=64, users=20), make_world(requests=20, users=20, seed=1)
    parents = {"data": Artifact(source, "data", "data-1", {}, {})}
    requests, checked = Requests(world.frame), Requests(valid.frame)
    train_ctr(requests, checked, world.vectors, size("nano"), out, parents, Training(epochs=3))


def train_towers(source: Path, out: Path, worked: Worked) -> None:
    """Three epochs."""
    counted(Learner, "step", worked)
    world = make_world(requests=64, users=20)
    items = pa.table(catalogue(world.vectors.ids))
    train_two_tower(Requests(world.frame, TOWERS), world.vectors, items, size("nano"), out, {}, epochs=3)


def write_frames(source: Path, out: Path, worked: Worked) -> None:
    """Two shards, joined."""
    counted(shards, "training_frame", worked)
    rows = pq.read_table(source / "rows.parquet")
    for number in (1, 2):
        shards.write_or_join(FrameSource(source / "store", lambda: [rows], 5, {}), out, (number, 2))


def counted(owner: object, name: str, worked: Worked) -> None:
    """Have every call of a function counted, once it is done."""
    real = getattr(owner, name)

    def called(*arguments: object, **named: object) -> object:
        result = real(*arguments, **named)
        worked()
        return result

    setattr(owner, name, called)


@dataclass(frozen=True)
class Job:
    """A job that resumes.

    Attributes:
        run: it.
        redone: most units of work that a kill costs: those since the last checkpoint.
        everywhere: kill it before every write, rename, fsync and removal, not only before every rename.
    """

    run: Callable[[Path, Path, Worked], None]
    redone: int
    everywhere: bool = False


JOBS = (
    Job(tally, 1, everywhere=True),
    Job(train_encoder, 2),
    Job(embed, 1),
    Job(train_ranker, 2),
    Job(train_towers, 2),
    Job(write_frames, 1),
)


class Killer:
    """Counts what is done to files below a folder, and kills the process before one of it.

    Args:
        below: the folder.
        renames: count renames only.
        last: kill before this one, counted from 1; 0: never.
        counter: shared with the parent.
    """

    def __init__(self, below: Path, renames: bool, last: int, counter) -> None:
        self.below, self.renames, self.last, self.counter = str(below), renames, last, counter
        fsync = os.fsync
        os.fsync = lambda handle: (self.strike(), fsync(handle))  # the one that raises no audit event
        sys.addaudithook(self.heard)

    def heard(self, event: str, arguments: tuple) -> None:
        """An audit hook: CPython announces every opening, renaming and removing of a file."""
        if event == "os.rename" and str(arguments[1]).startswith(self.below):
            self.strike(rename=True)
        elif event in ("os.mkdir", "os.remove", "os.rmdir"):
            self.strike()
        elif event == "open" and str(arguments[0]).startswith(self.below):
            if int(arguments[2]) & (os.O_WRONLY | os.O_RDWR):
                self.strike()

    def strike(self, rename: bool = False) -> None:
        """One more; perhaps the last."""
        if self.renames and not rename:
            return
        self.counter.value += 1
        if self.counter.value == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(job: Job, source: Path, out: Path, last: int, points, work) -> None:
    torch.set_num_threads(1)
    points.value = 0
    Killer(out.parent, not job.everywhere, last, points)

    def worked() -> None:
        work.value += 1

    job.run(source, out, worked)


@pytest.fixture(scope="module")
def source(tiny_world, tmp_path_factory) -> Path:
    """What the jobs work from."""
    folder = tmp_path_factory.mktemp("source")
    dataset, split = shop(folder)
    encoder.train.train_encoder(dataset, split, TINY, folder / "encoder", budget=0.02)
    create_store(folder / "store", tiny_world.dataset, tiny_world.split)
    pq.write_table(make_requests(tiny_world, seed=11, requests=60), folder / "rows.parquet")
    return folder


class Lives:
    """Runs a job in processes of its own, and counts what they did.

    Children of a fork server have imported torch and no more; the tally needs no torch and forks this process.
    """

    def __init__(self, job: Job, source: Path) -> None:
        self.job, self.source = job, source
        self.context = multiprocessing.get_context("fork" if job.everywhere else "forkserver")
        if not job.everywhere:
            self.context.set_forkserver_preload(PRELOADED)
        self.points, self.work = self.context.RawValue("i", 0), self.context.RawValue("i", 0)

    def live(self, folder: Path, last: int = 0) -> int:
        """Run the job into ``folder``, killed before point ``last``; how the process ended."""
        folder.mkdir(exist_ok=True)
        given = (self.job, self.source, folder / "out", last, self.points, self.work)
        child = self.context.Process(target=in_a_child, args=given)
        child.start()
        child.join()
        return child.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but its manifest, which holds how long it took."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.run.__name__)
def test_a_kill_at_any_write_or_rename_costs_no_bit_and_little_work(job, source, tmp_path):
    lives = Lives(job, source)
    assert lives.live(tmp_path / "whole") == 0
    whole, needed, kills = contents(tmp_path / "whole"), lives.work.value, lives.points.value
    assert needed > job.redone and kills >= 3
    for last in range(1, kills + 1):
        folder, lives.work.value = tmp_path / f"killed-{last}", 0
        assert lives.live(folder, last) == -signal.SIGKILL, last
        finished = (folder / "out").exists()  # killed while its checkpoints are removed: made again
        assert lives.live(folder) == 0, last
        assert lives.work.value <= needed + (needed if finished else job.redone), (last, lives.work.value)
        assert contents(folder) == whole, last
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS[1:-1], ids=lambda job: job.run.__name__)
def test_of_damaged_checkpoints_none_is_read(job, source, tmp_path):
    lives = Lives(job, source)
    assert lives.live(tmp_path / "whole") == 0
    needed, lives.work.value = lives.work.value, 0
    assert (
        lives.live(tmp_path / "parts", lives.points.value) == -signal.SIGKILL
    )  # all is done but the artifact
    saved = [path for path in (tmp_path / "parts").glob("*.partial/*/*") if path.is_file()]
    assert saved
    for path in saved:
        path.write_bytes(flipped(path.read_bytes()))
    assert lives.live(tmp_path / "parts") == 0
    assert lives.work.value == 2 * needed
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def flipped(content: bytes) -> bytes:
    """The content with one bit of its middle changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def parent(name: str) -> Artifact:
    return Artifact(Path(name), "thing", f"{name}-id", {}, {})


def saved(out: Path, config: dict, **parents: Artifact) -> Checkpoints:
    checkpoints = Checkpoints(out, config, parents)
    with checkpoints.save("one", {"step": 3, "loss": 0.1}) as folder:
        (folder / "weights").write_bytes(b"weights")
    return checkpoints


def test_the_same_job_finds_what_it_saved(tmp_path):
    """Equal as JSON is equal: what comes back has lists for tuples."""
    saved(tmp_path / "out", {"shard": (1, 2)}, data=parent("a"))
    assert (tmp_path / "out.partial").is_dir() and not (tmp_path / "out").exists()
    found = Checkpoints(tmp_path / "out", {"shard": [1, 2]}, {"data": parent("a")}).find("one")
    assert found.state == {"step": 3, "loss": 0.1} and found.file("weights").read_bytes() == b"weights"
    checkpoints = saved(tmp_path / "out", {"shard": (1, 2)}, data=parent("a"))
    assert checkpoints.find("two") is None
    checkpoints.remove()
    assert checkpoints.find("one") is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "parents", "said"),
    [
        ({"seed": 2}, {"data": parent("a")}, "seed 1, now 2"),
        ({"seed": 1, "more": 1}, {"data": parent("a")}, "more null, now 1"),
        ({"seed": 1}, {"data": parent("b")}, 'data "a-id", now "b-id"'),
        ({"seed": 1}, {}, 'data "a-id", now null'),
    ],
)
def test_another_job_starts_afresh_and_says_once_why(tmp_path, capsys, config, parents, said):
    saved(tmp_path / "out", {"seed": 1}, data=parent("a"))
    other = Checkpoints(tmp_path / "out", config, parents)
    assert other.find("one") is None and other.find("one") is None
    assert capsys.readouterr().err == f"  {other.folder} belongs to another run ({said}): starting afresh\n"
    with other.save("one", {"step": 9}):
        pass
    assert other.find("one").state == {"step": 9}
    assert capsys.readouterr().err == ""


def test_checkpoints_of_an_artifact_and_of_what_was_trained_for_it_are_removed_and_no_others(tmp_path):
    gone = ("out[1].partial", "out[1].2.partial", "out[1].2.make.partial")
    stay = ("out[1]", "out[1]2.partial", "out1.2.partial", "other.partial")
    for name in (*gone, *stay):
        (tmp_path / name / "epoch").mkdir(parents=True)
    remove_checkpoints(tmp_path / "out[1]")
    assert {path.name for path in tmp_path.iterdir()} == set(stay)


def test_what_differs_is_said_by_its_place_and_only_the_first_few(tmp_path, capsys):
    before = {"config": {"recipe": {"name": "muse"}, "width": 8}, "features": ["price", "brand"]}
    saved(tmp_path / "out", before)
    now = {
        "config": {"recipe": {"name": "cube"}, "width": 8},
        "features": ["brand", "price"],
        "seeds": [1, 2, 3],
    }
    assert Checkpoints(tmp_path / "out", now, {}).find("one") is None
    said = 'config.recipe.name "muse", now "cube", features.0 "price", now "brand", features.1 "brand", now "price", '
    assert f"({said}seeds null, now [1, 2, 3])" in capsys.readouterr().err
    assert Checkpoints(tmp_path / "out", {str(key): key for key in range(9)}, {}).find("one") is None
    told = "(0 null, now 0, 1 null, now 1, 2 null, now 2, 3 null, now 3, and 7 more): starting afresh\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
        lambda path: path.write_bytes(flipped(path.read_bytes())),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["cut", "bit", "empty", "removed"],
)
@pytest.mark.parametrize("name", ["weights", MANIFEST])
def test_a_damaged_checkpoint_is_ignored_and_said_so(tmp_path, capsys, name, harm):
    checkpoints = saved(tmp_path / "out", {})
    harm(tmp_path / "out.partial" / "one" / name)
    assert checkpoints.find("one") is None
    expected = f"{tmp_path / 'out.partial' / 'one'}: a damaged checkpoint, so its work is repeated"
    assert expected in capsys.readouterr().err


def test_a_failure_while_saving_keeps_the_checkpoint_before(tmp_path):
    checkpoints = saved(tmp_path / "out", {})
    with pytest.raises(KeyError), checkpoints.save("one", {"step": 4}) as folder:
        (folder / "weights").write_bytes(b"half")
        raise KeyError("interrupted")
    assert checkpoints.find("one").state["step"] == 3


def test_everything_of_a_checkpoint_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Files, then the folders that name them; the new folder's own name in the folder above at the end."""
    order: list[str] = []
    sync, rename = os.fsync, os.rename

    def synced(handle: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    def renamed(source: Path, target: Path, **named: object) -> None:
        order.append("rename")
        rename(source, target, **named)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    checkpoints = Checkpoints(tmp_path / "out", {}, {})
    with checkpoints.save("one", {}) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"x")
    unfinished = str(checkpoints.folder / "one.tmp")
    assert order[0] == str(tmp_path)
    at = order.index("rename")
    assert set(order[1:at]) == {unfinished, *(f"{unfinished}/{n}" for n in ("deep", "deep/file", MANIFEST))}
    assert order[at + 1 :] == [str(checkpoints.folder)]


def test_an_artifact_is_found_only_by_what_it_was_made_from(tmp_path):
    with write_artifact(tmp_path / "a", "thing", {"seed": 1}, {"data": parent("a")}) as folder:
        (folder / "file").write_bytes(b"x")
    same = {"kind": "thing", "config": {"seed": 1}, "parents": {"data": parent("a")}}
    assert find_artifact(tmp_path / "a", **same).path == tmp_path / "a"
    for change in (
        {"kind": "other"},
        {"config": {"seed": 2}},
        {"parents": {"data": parent("b")}},
        {"parents": {}},
    ):
        assert find_artifact(tmp_path / "a", **{**same, **change}) is None
    assert find_artifact(tmp_path / "b", **same) is None
    (tmp_path / "a" / "file").write_bytes(b"y")
    assert find_artifact(tmp_path / "a", **same) is None
