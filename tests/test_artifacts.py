"""A stage's output is whole and verified, or it does not exist."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from run.artifacts import ArtifactError, open_artifact, require_parent, write_artifact


def make(path, kind="thing", value=1, parents=None):
    with write_artifact(path, kind, {"value": value}, parents) as folder:
        pq.write_table(pa.table({"x": [value] * 3}), folder / "rows.parquet")
        (folder / "note.json").write_text(json.dumps({"value": value}))
    return open_artifact(path, kind, "moon thing")


def test_round_trip_records_rows_config_and_parents(tmp_path):
    parent = make(tmp_path / "a")
    child = make(tmp_path / "b", value=2, parents={"base": parent})
    assert child.config == {"value": 2}
    assert child.parents == {"base": parent.id}
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    assert manifest["files"]["rows.parquet"]["rows"] == 3
    require_parent(child, "base", parent)


def test_equal_content_has_equal_id_and_other_content_another(tmp_path):
    first, same, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", value=2)
    assert first.id == same.id != other.id


def test_consumer_of_two_artifacts_refuses_a_mixture(tmp_path):
    child = make(tmp_path / "b", parents={"base": make(tmp_path / "a")})
    with pytest.raises(ArtifactError, match="made from base"):
        require_parent(child, "base", make(tmp_path / "c", value=9))


def test_failure_while_writing_keeps_the_old_artifact(tmp_path):
    old = make(tmp_path / "a")
    with pytest.raises(KeyError), write_artifact(tmp_path / "a", "thing", {}) as folder:
        (folder / "half.json").write_text("{")
        raise KeyError("interrupted")
    assert open_artifact(tmp_path / "a", "thing", "moon thing").id == old.id
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "rows.parquet").write_bytes((p / "rows.parquet").read_bytes()[:-1]), "sha256"),
        (lambda p: (p / "note.json").write_text('{"value": 2}'), "sha256"),
        (lambda p: (p / "note.json").unlink(), "1 files missing"),
        (lambda p: (p / "extra").write_text(""), "1 unknown"),
        (lambda p: (p / "manifest.json").write_text("{"), "not JSON"),
        (lambda p: (p / "manifest.json").unlink(), "found no manifest"),
        (
            lambda p: (p / "manifest.json").write_text(
                (p / "manifest.json").read_text().replace('"value": 1', '"value": 7')
            ),
            "edited",
        ),
    ],
)
def test_damage_is_refused_with_the_command_that_repairs_it(tmp_path, damage, message):
    make(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(ArtifactError, match=message) as error:
        open_artifact(tmp_path / "a", "thing", "moon thing")
    assert "moon thing" in str(error.value)


def test_every_single_bit_flip_in_a_file_is_caught(tmp_path):
    make(tmp_path / "a")
    file = tmp_path / "a/rows.parquet"
    clean = file.read_bytes()
    for place in range(0, len(clean), max(len(clean) // 64, 1)):
        flipped = bytearray(clean)
        flipped[place] ^= 1
        file.write_bytes(bytes(flipped))
        with pytest.raises(ArtifactError):
            open_artifact(tmp_path / "a", "thing", "moon thing")


def test_other_kind_is_refused(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="expected a vector artifact, found a thing one"):
        open_artifact(tmp_path / "a", "vector", "moon embed")


def test_kill_between_the_two_renames_loses_nothing(tmp_path):
    old = make(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "a.previous")
    assert open_artifact(tmp_path / "a", "thing", "moon thing").id == old.id


@pytest.mark.parametrize("calls_before_death", range(6))
def test_kill_at_any_fsync_leaves_old_or_new(tmp_path, calls_before_death):
    old = make(tmp_path / "a")
    program = f"""
import os, run.artifacts as artifacts
left = {calls_before_death}
real = artifacts.fsync
def fsync(path):
    global left
    if left == 0:
        os._exit(137)
    left -= 1
    real(path)
artifacts.fsync = fsync
from pathlib import Path
with artifacts.write_artifact(Path({str(tmp_path / "a")!r}), "thing", {{"value": 2}}) as folder:
    (folder / "x").write_text("x")
    (folder / "y").write_text("y")
"""
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert done.returncode in (0, 137)
    found = open_artifact(tmp_path / "a", "thing", "moon thing")
    assert found.id == old.id or found.config == {"value": 2}
    assert make(tmp_path / "a", value=3).config == {"value": 3}, "a later write heals whatever was left"
