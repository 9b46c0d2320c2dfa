"""The plain feast commands work inside the feature repository on the active run.

Run: pytest tests/test_feast_commands.py
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import DAY, START, free_port
from test_repository import add_example

from dataset.contracts import TIME
from feature_repo.create import create_store
from feature_repo.frames.join import training_frame
from feature_repo.online import OnlineReader
from feature_repo.store import DATA, REPOSITORY, activate
from moonstore.errors import StoreError

FEAST = [sys.executable, "-m", "feast.cli.cli"]
WAIT_S = 120


def test_only_the_definitions_are_read_by_feast():
    from feast.repo_operations import get_repo_files

    found = {path.relative_to(REPOSITORY).as_posix() for path in get_repo_files(REPOSITORY)}
    assert found == {"definitions/active_run.py"}


def test_a_new_file_needs_no_line_in_feastignore():
    lines = (REPOSITORY / ".feastignore").read_text().splitlines()
    named = {line for line in lines if line and not line.startswith("#")} - {"*.py"}
    assert named and all((REPOSITORY / name).is_dir() for name in named - {DATA})


@pytest.fixture(scope="module")
def repository(tiny_world, tmp_path_factory):
    """A copy of the repository, so that the run active in this checkout stays active."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(REPOSITORY, folder / "repository", ignore=shutil.ignore_patterns(DATA, "__pycache__"))
    return folder / "repository"


def asked(user, when):
    """One request of a user."""
    rows = {"request_id": [0], "user_id": [user], "query_id": pa.nulls(1, pa.int64()), "item_id": [1]}
    return pa.table({**rows, "time": pa.array([when], TIME)})


def feast(repository, *arguments):
    result = subprocess.run(
        [*FEAST, *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env={**os.environ, "FEAST_USAGE": "False"},
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.slow
def test_without_a_run_feast_says_how_to_make_one(repository):
    code, output = feast(repository, "apply")
    assert code != 0 and "moon demo" in output


@pytest.mark.slow
def test_apply_materialize_serve_and_ui_act_on_the_active_run(tiny_world, repository, monkeypatch):
    run = repository.parent / "run" / "store"
    add_example(repository, tiny_world.item_ids)
    monkeypatch.setattr("feature_repo.store.REPOSITORY", repository)
    create_store(run, tiny_world.dataset, tiny_world.split)
    activate(run)

    code, output = feast(repository, "plan")
    assert "No changes to registry" in output, output  # both ways register the same definitions
    code, output = feast(repository, "apply")
    assert code == 0, output

    user, end = int(tiny_world.user_ids[2]), START + 35 * DAY
    first = (START + 5 * DAY, ["materialize", START.isoformat()[:19]])
    known = []
    for until, command in (first, (end, ["materialize-incremental"])):  # which goes on where the first ended
        code, output = feast(repository, *command, (until - DAY / 86_400).isoformat()[:19])
        assert code == 0, output
        frame = OnlineReader(run, 5).read(user, tiny_world.item_ids, end)
        known.append(frame.requests.column("user_events").to_pylist()[0])
    assert known[0] < known[1] == training_frame(run, asked(user, end), 5).requests["user_events"][0].as_py()
    assert len(frame.history.item_id) == 5 and frame.requests.column("user_found").to_pylist() == [True]

    with server(repository, "serve") as address:
        body = {"features": ["user_history:recent_position"], "entities": {"user_id": [user]}}
        answer = post(f"{address}/get-online-features", body)
        served = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
        assert served["recent_position"]["values"] == frame.requests.column("user_events").to_pylist()
        body = {"features": ["discounts:discount"], "entities": {"item_id": tiny_world.item_ids[:3].tolist()}}
        answer = post(f"{address}/get-online-features", body)
        served = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
        assert served["discount"]["values"] == pytest.approx([0, 0.1, 0.2])  # of a file in mine/
    with server(repository, "ui") as address:
        assert "<html" in urllib.request.urlopen(address, timeout=30).read().decode().lower()


def test_a_folder_in_the_place_of_the_link_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / DATA).mkdir()
    monkeypatch.setattr("feature_repo.store.REPOSITORY", tmp_path)
    with pytest.raises(StoreError, match="expected a link"):
        activate(tmp_path / "store")
    assert (tmp_path / DATA).is_dir()


class server:
    """``feast serve`` or ``feast ui`` on a free port, until the end of the block."""

    def __init__(self, repository: Path, command: str) -> None:
        self.repository, self.command, self.port = repository, command, free_port()

    def __enter__(self) -> str:
        self.process = subprocess.Popen(
            [*FEAST, self.command, "--host", "127.0.0.1", "--port", str(self.port)],
            cwd=self.repository,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{self.port}"
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"feast {self.command} ended"
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                return address
            except urllib.error.HTTPError:
                return address
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"feast {self.command} did not answer in {WAIT_S} s")

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait(10)


def post(address, body):
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=30).read())
