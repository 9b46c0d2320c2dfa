"""``--data`` takes a folder, its moon.toml, or a dataset artifact; what changes there is imported again.

Run: pytest tests/test_data_of_a_path.py
"""

import os

import folder_world as world
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset.importers import import_path
from dataset.tables import Dataset, noticed, write_dataset
from moon import journey
from moon.describing import init
from run.artifacts import open_artifact
from run.folder import JourneyError


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder of films, and a working directory of its own."""
    world.rated_films(tmp_path / "films")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "films"


@pytest.fixture
def start(monkeypatch):
    """Begin a run whose only stage is the import."""
    monkeypatch.setattr(journey, "STAGES", journey.STAGES[:1])

    def begin(data, **changes):
        run = journey.start(str(data), changes.get("folder"), None, 0, "embedded")
        journey.travel(run)
        return run, Dataset.open(open_artifact(run.folder / "dataset", "dataset"))

    return begin


def test_a_folder_is_described_on_the_way_and_imported(shop, start, capsys):
    run, dataset = start(shop)
    assert len(dataset.items) == world.ITEMS and run.folder.name == "films" and run.data == str(shop)
    assert (shop / "moon.toml").exists() and "moon demo --data" in capsys.readouterr().err


def test_a_relative_path_is_the_same_run_from_anywhere(shop, start, monkeypatch):
    first, _ = start("films")
    monkeypatch.chdir(shop)
    second, _ = start(".", folder=first.folder.absolute())
    assert first.data == second.data == str(shop)


def test_what_is_corrected_is_imported_again_and_nothing_else_is(shop, start, capsys):
    start(shop)
    capsys.readouterr()
    start(shop)
    assert "already done" in capsys.readouterr().err
    path = shop / "moon.toml"
    path.write_text(path.read_text() + "\n# a remark\n")
    start(shop)
    assert "already done" in capsys.readouterr().err
    path.write_text(path.read_text().replace('title = "title"', 'description = "title"'))
    _, dataset = start(shop)
    assert "imported again" in capsys.readouterr().err
    assert dataset.items["title"].null_count == world.ITEMS


def test_a_toml_that_becomes_wrong_stops_the_run_and_leaves_what_was_imported(shop, start):
    run, dataset = start(shop)
    path = shop / "moon.toml"
    path.write_text(path.read_text().replace('"rating"  ', '"ratting"'))
    with pytest.raises(ValueError, match="moon.toml|ratting"):
        start(shop)
    assert open_artifact(run.folder / "dataset", "dataset").id == dataset.artifact.id


def test_a_toml_elsewhere_says_where_the_data_are(shop, start, tmp_path):
    init(shop, tmp_path / "mine.toml")
    assert not (shop / "moon.toml").exists()
    _, dataset = start(tmp_path / "mine.toml")
    assert len(dataset.items) == world.ITEMS
    assert str(tmp_path) not in (dataset.artifact.path / "manifest.json").read_text()


def test_a_folder_that_cannot_be_written_to_is_described_in_the_run(shop, start, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    run, dataset = start(shop)
    assert not (shop / "moon.toml").exists() and (run.folder / "moon.toml").exists()
    assert len(dataset.items) == world.ITEMS


def test_a_dataset_that_a_program_wrote_is_accepted_as_it_is(shop, start, tmp_path):
    init(shop)
    made = import_path(shop, tmp_path / "made")
    tables = Dataset.open(made)
    names = ("items", "images", "users", "events", "queries", "judgements", "quarantine")
    from dataset.contracts import Tables

    own = Tables(**{name: getattr(tables, name) for name in names})
    written = write_dataset(tmp_path / "own", own, {"name": "own", "protocol": "time"})
    _, dataset = start(tmp_path / "own")
    assert dataset.artifact.id == written.id
    assert dataset.events.equals(tables.events)


def test_what_is_not_there_is_named(shop, start):
    with pytest.raises(JourneyError, match="data 'nowhere': expected marketplace, FORMAT:FOLDER"):
        start("nowhere")


def test_a_log_on_disk_becomes_the_same_events_as_one_in_memory(tmp_path, monkeypatch):
    """Times are distinct, so that their order does not depend on how equal ones are ordered."""
    draw = np.random.default_rng(0)
    times = draw.permutation(5000) * 60 + 1_700_000_000
    rows = {
        "customer": [f"c{one}" for one in draw.integers(0, 90, 5000)],
        "sku": [f"{one:05d}" for one in draw.integers(0, 200, 5000)],
        "stars": draw.integers(1, 6, 5000).astype(float),
        "ts": times,
    }
    pq.write_table(pa.table(rows), tmp_path / "ratings.parquet")
    init(tmp_path)
    short = Dataset.open(import_path(tmp_path, tmp_path / "short"))
    monkeypatch.setattr("dataset.adapters.described.log.LARGE", 1)
    monkeypatch.setattr("dataset.adapters.described.cells.read.__defaults__", (700,))
    long = Dataset.open(import_path(tmp_path, tmp_path / "long"))
    assert len(short.events) == 5000
    for name in ("items", "users"):
        assert (
            getattr(long, name).sort_by("external_id").equals(getattr(short, name).sort_by("external_id"))
        ), name
    kept = [name for name in short.events.column_names if name != "sequence"]
    assert long.events.select(kept).equals(short.events.select(kept))
    assert long.artifact.config["ties"] != short.artifact.config["ties"]


def test_what_a_long_log_is_kept_without_is_said(tmp_path, monkeypatch):
    rows = {"user": ["a", "a", "b"], "item": ["x", "y", "x"], "t": [1_700_000_000] * 3, "visit": [1, 1, 2]}
    pq.write_table(pa.table({**rows, "device": ["web"] * 3}), tmp_path / "log.parquet")
    keys = (
        'user = "user"\nitem = "item"\ntime = "t"\ntime_format = "s"\nrequest = "visit"\ncontext = ["device"]'
    )
    toml = f'[data]\nname = "x"\n[[events]]\nfiles = ["log.parquet"]\ntype = "click"\n{keys}\n'
    (tmp_path / "moon.toml").write_text(toml)
    said = "a log of this size is kept without these columns: visit, device"
    assert said not in noticed(import_path(tmp_path, tmp_path / "short").config)
    monkeypatch.setattr("dataset.adapters.described.log.LARGE", 1)
    assert said in noticed(import_path(tmp_path, tmp_path / "long").config)
