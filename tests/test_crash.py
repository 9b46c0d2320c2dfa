"""A draw from the crash matrix (``make crashes`` runs all of it), and what the matrix itself must notice.

Run: pytest tests/test_crash.py
"""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from tests.crash import watched
from tests.crash.job import Job
from tests.crash.matrix import examine
from tests.crash.watched import GO, KILL, TEAR

pytestmark = pytest.mark.watched
DRAWN = ("start a run", "dataset, replaced", "events over HTTP", "fold", "items over HTTP", "clock")


def writes(folder):
    """Every way to write a file, in Python and below it."""
    import sqlite3

    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import save_file

    (folder / "new").mkdir()
    (folder / "new" / "text").write_text("0123456789")
    (folder / "new" / "text").rename(folder / "text")
    pq.write_table(pa.table({"x": [1]}), folder / "table.parquet")
    save_file({}, folder / "tensors.safetensors")
    with sqlite3.connect(folder / "rows.db") as rows:
        rows.execute("CREATE TABLE t (x)")
    (folder / "new").rmdir()


def test_every_change_is_seen_whoever_makes_it_and_in_order(tmp_path):
    ended = watched.run(lambda: writes(tmp_path), tmp_path, lambda _: GO)
    assert not ended.error and not ended.killed
    done = [(one.call, one.path) for one in ended.operations]
    assert [one.number for one in ended.operations] == list(range(1, len(done) + 1))
    assert done[:4] == [("mkdir", "new"), ("openat", "new/text"), ("write", "new/text"), ("rename", "text")]
    written = {path for call, path in done if call in ("write", "pwrite64")}
    assert {"table.parquet", "rows.db"} <= written
    assert any(call.startswith("rename") and path == "tensors.safetensors" for call, path in done)
    assert done[-1] == ("rmdir", "new")


@pytest.mark.parametrize(("verdict", "left"), [(KILL, ""), (TEAR, "01234")])
def test_a_kill_leaves_what_was_written_before_it(tmp_path, verdict, left):
    ended = watched.run(
        lambda: writes(tmp_path), tmp_path, lambda one: verdict if one.call == "write" else GO
    )
    assert ended.killed and (tmp_path / "new" / "text").read_text() == left
    assert len(ended.operations) == 3 and not (tmp_path / "text").exists()


def test_a_refused_call_fails_with_the_error_it_was_refused_with(tmp_path):
    ended = watched.run(lambda: writes(tmp_path), tmp_path, lambda one: 28 if one.call == "rename" else GO)
    assert not ended.killed and "[Errno 28] No space left on device" in ended.error
    ended = watched.run(lambda: os.kill(os.getpid(), signal.SIGTERM), tmp_path, lambda _: GO)
    assert ended.error == f"ended by signal {int(signal.SIGTERM)}"


@pytest.mark.slow
def test_a_draw_of_kills_and_faults_is_healed(tmp_path):
    """A few points of some jobs; another draw for another seed."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.crash",
            "--most",
            "2",
            "--json",
            tmp_path / "found.json",
        ]
        + [word for name in DRAWN for word in ("--only", name)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {one["job"] for one in found} == {*DRAWN}
    assert all(one["points"] > 4 and one["kills"] + one["faults"] == 2 and not one["wrong"] for one in found)


def in_place(folder):
    (folder / "record").write_text("new new new")


def counts(folder):
    with (folder / "record").open("a") as stream:
        stream.write("one more\n")


@pytest.mark.parametrize("work", [in_place, counts])
def test_a_job_that_writes_in_place_or_counts_twice_is_found_out(work, tmp_path):
    """The matrix is a test of the jobs; this is the test of the matrix."""
    (tmp_path / "base").mkdir()
    job = Job(
        work.__name__,
        "empty",
        work,
        prepare=lambda folder: (folder / "record").write_text("old old old\n"),
        look=lambda folder: (folder / "record").read_text(),
    )
    wrong = examine(job, tmp_path / "base", tmp_path / "scratch").wrong
    assert any(one.startswith("tear at 2 ") for one in wrong)
    assert (work is counts) or any(one.startswith("disk full at 2 ") for one in wrong)
