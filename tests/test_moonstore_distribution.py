"""moonstore is a distribution of its own: it needs Feast, DuckDB and Redis, and knows nothing of Moon."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"feast", "duckdb", "redis", "hiredis"}
OTHERS = (
    "torch torchrec fbgemm_gpu transformers tokenizers peft safetensors faiss scipy PIL matplotlib typer rich"
)
MOON = "moon evaluation serving retrieval ranker encoder feature_repo dataset run"
IMPORT_ALL = """
import importlib, pkgutil, sys
folder, *refused = sys.argv[1:]
sys.path.insert(0, folder)

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"moonstore asked for {name}")

sys.meta_path.insert(0, Refuse())
import moonstore
assert moonstore.__file__.startswith(folder), moonstore.__file__
from moonstore.quick_import import without_type_checks
names = [one.name for one in pkgutil.iter_modules(moonstore.__path__)]
with without_type_checks():
    for name in names:
        importlib.import_module(f"moonstore.{name}")
print(len(names))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "moonstore", source, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (made,) = folder.glob("moonstore-*.whl")
    return made


def test_the_wheel_imports_without_anything_of_moons(wheel, tmp_path):
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    modules = sorted(path.stem for path in (ROOT / "moonstore").glob("*.py"))
    assert sorted(path.stem for path in (tmp_path / "moonstore").glob("*.py")) == modules
    command = [sys.executable, "-c", IMPORT_ALL, str(tmp_path), *OTHERS.split(), *MOON.split()]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules) - 1  # without __init__


def test_it_asks_for_feast_duckdb_and_redis_with_the_versions_that_moon_asks_for():
    def asked(path):
        content = tomllib.loads(path.read_text())["project"]
        names = {re.match(r"[\w-]+", one)[0]: one for one in content["dependencies"]}
        return content["version"], {name: re.sub(r"^[\w-]+(\[.*\])?", "", one) for name, one in names.items()}

    version, own = asked(ROOT / "moonstore" / "pyproject.toml")
    whole_version, whole = asked(ROOT / "pyproject.toml")
    assert set(own) == NEEDED
    assert version == whole_version and own == {name: whole[name] for name in NEEDED}


def test_it_knows_no_name_of_moons():
    names = re.compile(
        r"\bmoon\b|feature_repo|user_history|item_embedding|\b(encoder|ranker|recommender)", re.I
    )
    found = {
        f"{path.name}: {match[0]}"
        for path in (ROOT / "moonstore").glob("*.py")
        for match in names.finditer(path.read_text())
    }
    assert found == set()
