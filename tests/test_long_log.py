"""A log that is longer than memory becomes the same dataset, and little of it is in memory at once.

Run: pytest tests/test_long_log.py
"""

from __future__ import annotations

import tempfile
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from test_importers import article, picture, put, write

from dataset import long_log, shop_ids, tables
from dataset.adapters import canonical, hm, source
from dataset.contracts import SCHEMAS, TIME, DataError
from dataset.importers import import_dataset
from dataset.tables import Dataset
from evaluation.bench import imports
from run.artifacts import open_artifact

ARTICLES = [f"0{100 + n}001" for n in range(30)]
FEW = 1_000  # rows and bytes at once


@pytest.fixture
def long(monkeypatch, tmp_path):
    """Every log is a long one; its temporary files are under ``tmp_path``."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(hm, "LARGE", 0)
    for module in (source, long_log, tables):
        monkeypatch.setattr(module, "AT_ONCE", FEW)
    monkeypatch.setattr(source, "CSV_BLOCK", 16 * FEW)
    return tmp_path / "temporary"


def raw(folder, rows=5_000, **strange):
    """Sales in no order, most customers without a profile, some days impossible, some articles unknown."""
    rng = np.random.default_rng(0)
    write(folder / "articles.csv", hm.RAW_SCHEMAS["articles.csv"], [article(one) for one in ARTICLES[:28]])
    customers = [{"customer_id": f"{n:064x}", "age": 20.0 + n} for n in (3, 500, 7)]
    write(folder / "customers.csv", hm.RAW_SCHEMAS["customers.csv"], customers)
    days = [date(2020, 9, 1) + timedelta(days=int(n)) for n in rng.integers(0, 20, rows)]
    days[7], days[4_000 % rows] = date(1960, 1, 1), date(2150, 1, 1)
    sales = [
        {"t_dat": day, "customer_id": f"{rng.integers(60):064x}", "article_id": ARTICLES[rng.integers(30)]}
        for day in days
    ]
    sales[11]["customer_id"] = sales[12]["article_id"] = sales[13]["t_dat"] = None
    sales[-1] |= strange
    write(folder / "transactions_train.csv", hm.RAW_SCHEMAS["transactions_train.csv"], sales)
    put(folder / f"images/010/{ARTICLES[0]}.jpg", picture(3))
    return folder


def imported(folder, out):
    return Dataset.open(import_dataset("hm_fashion", folder, out))


def test_a_long_log_becomes_the_dataset_of_a_short_one(tmp_path, request):
    short = imported(raw(tmp_path / "raw"), tmp_path / "short")
    folder = request.getfixturevalue("long")
    made = imported(tmp_path / "raw", tmp_path / "made")
    for name in SCHEMAS:
        assert getattr(made, name).equals(getattr(short, name)), name
    assert len(made.events) > 4_500 and len(made.users) == 61
    assert made.artifact.config == short.artifact.config
    refused = [sorted(one.quarantine.to_pylist(), key=repr) for one in (made, short)]
    assert refused[0] == refused[1] and len(refused[0]) > 300
    assert not list(folder.iterdir())


def test_few_events_are_in_memory_at_once(long, tmp_path, monkeypatch):
    sizes, check = [], tables.check_events

    def noted(events, known):
        sizes.append(len(events))
        return check(events, known)

    monkeypatch.setattr(tables, "check_events", noted)
    read, batches = [], source.together

    def counted(given):
        for part in batches(given):
            read.append(len(part))
            yield part

    monkeypatch.setattr(source, "together", counted)
    imported(raw(tmp_path / "raw"), tmp_path / "made")
    assert sum(sizes) == sum(read) == 5_000
    assert max(read) < 2 * FEW and len(read) > 3
    assert max(sizes) < 4 * FEW


def test_what_is_wrong_at_the_end_of_a_long_log_is_said_and_nothing_is_left(long, tmp_path):
    with pytest.raises(DataError, match="expected integers, found 1 others") as refusal:
        imported(raw(tmp_path / "raw", article_id="none"), tmp_path / "made")
    assert not (tmp_path / "made").exists() and not list(long.iterdir())
    assert refusal.traceback  # still holds the log


def test_article_ids_have_one_length_in_all_of_a_long_log(long):
    def sold(article_id):
        columns = {"t_dat": [date(2020, 9, 1)], "article_id": [article_id], "customer_id": ["a"]}
        return pa.table(columns)

    with pytest.raises(DataError, match=r"because some begin with 0, found lengths \[9, 10\]") as refusal:
        hm._long_log([sold("0100000001"), sold("100000001")])
    assert not list(long.iterdir())
    assert refusal.traceback  # still holds the log


def test_a_broken_row_is_said_with_its_file(long, tmp_path):
    path = raw(tmp_path / "raw") / "transactions_train.csv"
    with path.open("a") as stream:
        stream.write('"2020-09-01","one column too few"\n')
    with pytest.raises(
        DataError, match="transactions_train.csv: expected CSV of .*Expected 5 columns, got 2"
    ):
        imported(tmp_path / "raw", tmp_path / "made")
    assert not list(long.iterdir())


def test_two_names_of_one_id_are_refused_wherever_they_stand(long, monkeypatch):
    monkeypatch.setattr(shop_ids, "stable_id", lambda name: 7)
    monkeypatch.setattr(canonical, "SOME", 1)
    with pytest.raises(DataError, match="ids collide"):
        canonical.ids_of(pa.array(["a", "b"]))
    log, noon = long_log.LongLog(), pa.array([datetime(2020, 9, 1, 12, tzinfo=UTC)], TIME)
    for name in (pa.array(["a"]), pa.array(["b"])):
        log.add("purchase", canonical.ids_of(name), pa.array([1]), noon, name)
    with pytest.raises(DataError, match="ids collide"), log.removed_if_it_fails():
        log.users()
    assert not list(long.iterdir())


def test_a_long_log_of_refused_events_is_refused(long, tmp_path):
    folder = raw(tmp_path / "raw")
    write(folder / "articles.csv", hm.RAW_SCHEMAS["articles.csv"], [article(ARTICLES[0])])
    with pytest.raises(
        DataError, match="events: expected at most 50% of the rows to break the contract"
    ) as refusal:
        imported(folder, tmp_path / "made")
    assert not (tmp_path / "made").exists() and not list(long.iterdir())
    assert refusal.traceback  # still holds the log


def test_the_benchmark_measures_an_import_of_as_many_rows_as_were_asked_for():
    lines = imports.bench_import(3_000)
    stages = ("import", "split", "event log and statistics")
    shop = "3,000 events, 100 items, 150 users"
    assert [one.name for one in lines[::4]] == [f"{stage} of {shop}, seconds" for stage in stages]
    assert len(lines) == 12 and all(one.value > 0 for one in lines)


def test_the_files_of_the_benchmark_are_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        imports.write_hm(tmp_path / name, 500)
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in hm.RAW
    )
    import_dataset("hm_fashion", tmp_path / "a", tmp_path / "dataset")
    config = open_artifact(tmp_path / "dataset", "dataset").config
    assert config["rows"]["events"] == 500 and not config["quarantined"]
