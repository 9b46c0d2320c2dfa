"""A service that starts, and ``moon ranker``, verify and load every artifact once.

Run: pytest tests/test_each_artifact_is_opened_once.py
"""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import safetensors.numpy
import safetensors.torch

import ranker.relevance
import ranker.train
from moon import stages
from run import artifacts, generations
from run.folder import load
from serving.live import Live
from serving.settings import Settings

SERVED = (
    "cooccurrence", "embedding", "encoder", "fusion", "index", "picture_index", "ranker_full", "relevance", "search",
    "taken", "taste", "two_tower", "two_tower_index", "word_vectors", "words",
)  # fmt: skip
LEARNED_FROM = (
    "cooccurrence_fit", "dataset", "embedding", "encoder", "fusion", "index", "split", "taken", "taste",
    "two_tower_fit", "two_tower_index_fit", "word_vectors", "words",
)  # fmt: skip
WRITTEN = ("picture_index", "relevance", "search")  # by the stage, and verified as it writes them


class Opened:
    """How often each file was verified, and how often its tensors were read."""

    def __init__(self) -> None:
        self.verified: Counter[Path] = Counter()
        self.loaded: Counter[Path] = Counter()

    def folders(self, run: Path) -> list[str]:
        """The artifacts that were verified; the months of a split's log lie in a folder of their own."""
        owners = {
            one.parent.parent if one.parent.suffix == ".parquet" else one.parent for one in self.verified
        }
        return sorted(one.relative_to(run).as_posix() for one in owners)


@pytest.fixture
def opened(monkeypatch):
    counted, sha256 = Opened(), artifacts._sha256

    def hashed(path):
        counted.verified[path] += 1
        return sha256(path)

    def counting(real):
        def opening(path, *arguments, **named):
            counted.loaded[Path(path)] += 1
            return real(path, *arguments, **named)

        return opening

    monkeypatch.setattr(artifacts, "_sha256", hashed)
    for module in (safetensors.numpy, safetensors.torch):
        monkeypatch.setattr(module, "safe_open", counting(module.safe_open))
    return counted


@pytest.fixture
def run(finished_run, tmp_path):
    shutil.copytree(finished_run[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_a_service_starts_with_each_artifact_verified_and_loaded_once(run, opened):
    live = Live.open(Settings(run=run))
    assert live.problem == live.stale_reason == ""
    generation = generations.folder_of(run, live.current.generation)
    served = [f"{generation.relative_to(run)}/{name}" for name in SERVED]
    assert opened.folders(run) == sorted(["dataset", *served, "split"])
    assert set(opened.verified.values()) == {1}
    read = {path for path in opened.verified if path.suffix == ".safetensors"}
    assert generation / "embedding/items.safetensors" in opened.loaded
    assert set(opened.loaded) <= read and set(opened.loaded.values()) == {1}


@pytest.mark.slow
def test_moon_ranker_verifies_and_loads_each_artifact_once(run, opened, monkeypatch):
    trained = {}
    monkeypatch.setattr(
        ranker.train,
        "train_ctr",
        lambda train, valid, vectors, size, out, parents, *how, asked: trained.update(
            {out.name: (vectors, parents, {name for frames in (train, valid) for name in frames.names})}
        ),
    )
    stages.ranker(load(run))
    written = [one for name in WRITTEN for one in (name, f"{name}.tmp")]
    assert opened.folders(run) == sorted([*LEARNED_FROM, *written])
    assert set(opened.verified.values()) == set(opened.loaded.values()) == {1}
    assert run / "embedding/items.safetensors" in opened.loaded

    embedding = artifacts.open_artifact(run / "embedding", "embedding")
    assert trained.keys() == {f"ranker_{name}" for name in ("full", "plain_content", "id_only", "shuffled")}
    assert trained["ranker_plain_content"][0] is None
    says = {"match_words_mean", "match_query_words", "match_taste_words"}
    assert {name for name, (*_, read) in trained.items() if says & read} == trained.keys() - {
        "ranker_id_only"
    }
    assert trained["ranker_full"][0].id == embedding.id and trained["ranker_id_only"][0] is None
    assert "embedding" not in trained["ranker_id_only"][1]
