"""Imports follow the data, files stay small, the tree keeps its promises."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the roof down: a package imports itself and what stands below it, never what stands above or beside it.
FLOORS = (
    ("moon",),
    ("evaluation",),
    ("serving",),
    ("retrieval",),
    ("ranker",),
    ("encoder", "feature_repo"),
    ("dataset",),
    ("run",),
    ("moonstore",),  # a distribution of its own, which knows nothing of the rest
)
PACKAGES = tuple(package for floor in FLOORS for package in floor)
# What would be downward, and is not wanted: the two models meet in Feast, Feast's stores know nothing of Moon.
NEVER = {"ranker": {"encoder"}, "retrieval": {"encoder"}}


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def modules():
    """Every module of ours by its dotted name; a package is the module of its ``__init__.py``."""
    found = {}
    for package in PACKAGES:
        for path in files(package):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def arrows():
    """(importing module, imported module) among ours; ``from package import module`` is an arrow to the module."""
    known = modules()
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names if alias.name in known)
            elif isinstance(node, ast.ImportFrom) and node.module in known:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield name, inner if inner in known else node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package):
    floor = next(number for number, floor in enumerate(FLOORS) if package in floor)
    below = {name for names in FLOORS[floor + 1 :] for name in names} | {package}
    for path in files(package):
        for name in imported(path):
            top = name.split(".")[0]
            if top in PACKAGES:
                assert top in below - NEVER.get(package, set()), f"{path.relative_to(ROOT)} imports {name}"


def test_no_file_imports_itself_through_others():
    graph = {}
    for importing, other in arrows():
        graph.setdefault(importing, set()).add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    "path",
    [
        "encoder/backbone/backbone.py",
        "ranker/model.py",
        "ranker/modules/cube.py",
        "ranker/modules/attention.py",
    ],
)
def test_models_do_not_know_how_they_are_trained_stored_or_served(path):
    package = path.split("/")[0]
    for name in imported(ROOT / path):
        assert name.split(".")[0] not in {"feast", "fastapi", "redis", "pyarrow", "pandas"}, (
            f"{path} imports {name}"
        )
        assert not name.startswith(tuple(f"{p}." for p in PACKAGES if p not in (package, "moon"))), name


def test_nothing_that_learns_or_serves_reads_what_is_true():
    """Only measurements know a simulated shop's tastes; the plain methods are rankers, so they do not either."""
    learning = [
        path for name in ("serving", "retrieval", "ranker", "encoder", "feature_repo") for path in files(name)
    ]
    plain = (
        "baselines",
        "content",
        "earlier",
        "plain",
        "plain_controls",
        "plain_features",
        "replay",
        "shop_baselines",
    )
    for path in [*learning, *files("moonstore"), *(ROOT / "evaluation" / f"{name}.py" for name in plain)]:
        for name in imported(path):
            forbidden = (
                "dataset.marketplace",
                "evaluation.truth",
                "evaluation.observer",
                "evaluation.off_policy",
            )
            assert not name.startswith(forbidden), f"{path.relative_to(ROOT)} imports {name}"
        for node in ast.walk(ast.parse(path.read_text())):
            read = getattr(node, "attr", None) or (node.value if isinstance(node, ast.Constant) else None)
            assert read not in ("truth", "propensities", "truth.parquet"), (
                f"{path.relative_to(ROOT)} reads {read}"
            )


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
