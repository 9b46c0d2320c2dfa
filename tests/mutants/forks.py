"""Runs pytest in forked children, each in a copy of the working tree, with the slow imports already done.

Importing torch and Feast costs seconds and a mutant's tests often cost less, so the parent imports the libraries
once (never Moon itself) and forks.
"""

from __future__ import annotations

import compileall
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

LIBRARIES = (
    "coverage", "duckdb", "faiss", "fastapi.testclient", "feast", "feast.infra.online_stores.redis", "httpx",
    "hypothesis", "ibis", "matplotlib.pyplot", "pandas", "pyarrow.dataset", "pyarrow.parquet", "pytest", "redis",
    "safetensors.torch", "scipy.sparse", "sklearn.metrics", "torch", "torchrec", "transformers", "uvicorn",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One call of ``work(copy, *arguments)`` in a child; its answer is JSON."""

    name: str
    work: Callable[..., Any]
    arguments: tuple
    limit: float  # seconds
    changed: dict[str, str] = field(
        default_factory=dict
    )  # files of the copy with the text they have for this job


@dataclass(frozen=True)
class Ended:
    """How a job ended: its answer, or None where it was stopped at its limit or died."""

    job: Job
    answer: Any
    seconds: float


def say(line: str) -> None:
    """Prints a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def prepare() -> None:
    """Imports what the tests import, except Moon, and lets an ended run end its children."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    with redirect_stderr(StringIO()):  # some of them warn whatever the filter says
        for name in LIBRARIES:
            importlib.import_module(name)


def snapshot(root: Path, to: Path) -> Path:
    """A fresh copy of the tracked and new files of ``root``, which may change while the mutants run.

    Compiled files are trusted by the content of their source: two mutants of one second and one size are not
    taken for each other.
    """
    shutil.rmtree(to, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True).stdout.split(
        "\0"
    ):
        if name and (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    (to / ".venv").symlink_to(sys.prefix)
    compileall.compile_dir(to, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return to


def workplaces(tree: Path, count: int) -> list[Path]:
    """``count`` copies of a snapshot, beside it."""
    copies = [tree.with_name(f"copy{number}") for number in range(count)]
    for copy in copies:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tree, copy, symlinks=True)
    return copies


def run_all(jobs: Iterable[Job], copies: list[Path]) -> Iterator[Ended]:
    """Runs every job, one child per copy at a time, and yields them as they end.

    Stopped by an exception or Ctrl-C, it leaves no child behind.
    """
    waiting, free = iter(jobs), list(copies)
    running: dict[int, tuple[Job, Path, float]] = {}
    original: dict[Path, dict[str, str]] = {}
    try:
        while True:
            while free and (job := next(waiting, None)):
                copy = free.pop()
                original[copy] = {name: (copy / name).read_text() for name in job.changed}
                _write(copy, job.changed)
                running[_fork(job, copy)] = (job, copy, time.monotonic())
            if not running:
                return
            for pid, (job, copy, start) in list(running.items()):
                seconds = time.monotonic() - start
                ended, _ = os.waitpid(pid, os.WNOHANG)
                if not ended and seconds < job.limit:
                    continue
                _stop(pid, reaped=bool(ended))
                _write(copy, original[copy])
                del running[pid]
                free.append(copy)
                yield Ended(job, _answer(copy), seconds)
            time.sleep(0.02)
    finally:
        for pid in running:
            _stop(pid, reaped=False)


def _fork(job: Job, copy: Path) -> int:
    (copy.parent / f"{copy.name}.json").unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        out = os.open(copy.parent / f"{copy.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path[0] = str(copy)
        answer = job.work(copy, *job.arguments)
        (copy.parent / f"{copy.name}.json").write_text(json.dumps(answer))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def _write(copy: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (copy / name).write_text(text)


def _answer(copy: Path) -> Any:
    path = copy.parent / f"{copy.name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _stop(pid: int, reaped: bool) -> None:
    """Ends a child and whatever it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if not reaped:
        os.waitpid(pid, 0)
