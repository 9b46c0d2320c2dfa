"""Imports follow the data, files stay small, the tree keeps its promises."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("moon", "dataset", "feature_repo", "encoder", "ranker", "retrieval", "serving", "evaluation")
# Who may import whom. moon.artifacts, .generations, .progress, .shards and .sizes are open to all.
ARROWS = {
    "dataset": {"dataset"},
    "feature_repo": {"feature_repo", "dataset"},
    "encoder": {"encoder", "dataset", "feature_repo"},
    "ranker": {"ranker", "dataset", "feature_repo"},
    "retrieval": {"retrieval", "ranker", "feature_repo", "dataset"},
    "serving": {"serving", "retrieval", "ranker", "encoder", "feature_repo", "dataset"},
    "evaluation": {"evaluation", "serving", "retrieval", "ranker", "encoder", "feature_repo", "dataset"},
}
OPEN = {"moon.artifacts", "moon.generations", "moon.progress", "moon.shards", "moon.sizes"}


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("package", ARROWS)
def test_imports_point_one_way_along_the_journey(package):
    for path in files(package):
        for name in imported(path):
            top = name.split(".")[0]
            if top in PACKAGES and top != "moon":
                assert top in ARROWS[package], f"{path.relative_to(ROOT)} imports {name}"
            elif top == "moon":
                assert name in OPEN, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
    "path", ["encoder/backbone.py", "ranker/model.py", "ranker/cube.py", "ranker/attention.py"]
)
def test_models_do_not_know_how_they_are_trained_stored_or_served(path):
    package = path.split("/")[0]
    for name in imported(ROOT / path):
        assert name.split(".")[0] not in {"feast", "fastapi", "redis", "pyarrow", "pandas"}, (
            f"{path} imports {name}"
        )
        assert not name.startswith(tuple(f"{p}." for p in PACKAGES if p not in (package, "moon"))), name


def test_no_unsafe_loading_is_spelled_anywhere():
    for package in PACKAGES:
        for path in files(package):
            text = path.read_text()
            for spelling in (
                "import pickle",
                "allow_pickle=True",
                "weights_only=False",
                "import joblib",
                "import dill",
            ):
                assert spelling not in text, f"{path.relative_to(ROOT)}: {spelling}"


def test_files_stay_small():
    for package in PACKAGES:
        for path in files(package):
            assert len(path.read_text().splitlines()) <= 420, f"{path.relative_to(ROOT)} is too long"


def test_no_junk_drawers():
    drawers = {"utils.py", "helpers.py", "common.py", "base.py", "manager.py", "misc.py"}
    for package in PACKAGES:
        assert not {path.name for path in files(package)} & drawers


def test_simple_help_does_not_import_the_heavy_world():
    import subprocess
    import sys

    program = "import sys, moon.cli; print(sorted({'torch', 'feast', 'pandas'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
