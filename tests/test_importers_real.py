"""The real packs import whole: what their README counts is what the tables hold."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import pytest
from needs import DATA

from dataset.importers import import_dataset
from dataset.tables import Dataset
from run.artifacts import open_artifact

# Rows after identical pictures became one; nothing in the packs breaks the contract.
EXPECTED = {
    "hm_fashion": {"items": 19_474, "images": 13_500, "users": 68_984, "events": 240_311},
    "ml_posters": {"items": 9_742, "images": 9_668, "users": 610, "events": 100_836},
    "homedepot_relevance": {"items": 54_667, "queries": 11_795, "judgements": 74_067},
    "grocery_store": {"items": 81, "images": 5_502, "queries": 5_421, "judgements": 5_421},
    "scale_globo": {"items": 46_033, "users": 322_897, "events": 2_988_181},
}
PICTURED = {"hm_fashion": 13_532, "ml_posters": 9_673, "grocery_store": 81}
MOST_SECONDS = 60


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.real(name)) for name in EXPECTED])
def test_the_pack_imports_whole(name: str, tmp_path: Path) -> None:
    start = time.monotonic()
    artifact = import_dataset(name, DATA / name, tmp_path / name)
    assert time.monotonic() - start < MOST_SECONDS
    assert artifact.config["quarantined"] == {}
    assert {table: rows for table, rows in artifact.config["rows"].items() if rows} == EXPECTED[name]
    dataset = Dataset.open(open_artifact(tmp_path / name, "dataset"))
    assert pc.count(dataset.items.column("image_id")).as_py() == PICTURED.get(name, 0)
    if name == "hm_fashion":
        moments = pc.min_max(dataset.events.column("event_time")).as_py()
        assert moments["min"] == datetime(2020, 9, 16, 12, tzinfo=UTC)
        assert moments["max"].date() == datetime(2020, 9, 22, tzinfo=UTC).date()
    if name == "grocery_store":
        parts = dataset.judgements.column("part").value_counts().to_pylist()
        assert {part["values"]: part["counts"] for part in parts} == {"train": 2_640 + 296, "test": 2_485}
