"""What every importer keeps. A new one inherits it by a few lines: its name, a small folder and what lies in it:

class TestGlobo(ImporterContract):
    importer, write = "scale_globo", staticmethod(globo_pack)
    titles = {"70": None, "71": None}
    events = [("70", "click", None), ("71", "click", None), ("71", "click", None)]
"""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from dataset.checks import check
from dataset.contracts import SCHEMAS, DataError, Tables
from dataset.importers import IMPORTERS, append_files, import_dataset
from dataset.order import HASH, SORTED, SOURCE, sequenced
from dataset.tables import Dataset
from run.artifacts import open_artifact

ENDINGS = (".csv", ".jsonl", ".parquet")


def files_of(folder):
    return sorted(path for path in folder.iterdir() if path.suffix in ENDINGS)


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path)
    if path.suffix == ".jsonl":
        return pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()])
    names = pa.csv.read_csv(path).column_names
    words = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
    return pa.csv.read_csv(path, pa.csv.ReadOptions(), pa.csv.ParseOptions(newlines_in_values=True), words)


def write(table, path):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        rows = [{key: value for key, value in row.items() if value is not None} for row in table.to_pylist()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def opened(path):
    return Dataset.open(open_artifact(path, "dataset"))


def content(dataset, name):
    """The rows of a table in no order, without the numbers that the order gave them."""
    rows = getattr(dataset, name).to_pylist()
    return sorted(
        repr({key: value for key, value in row.items() if key not in ("event_id", "row", "sequence")})
        for row in rows
    )


class ImporterContract:
    importer = ""
    titles: dict = {}  # of every item, by the source's own id
    events: list = []  # (source's item id, type, value)
    judged: list = []  # (source's item id, relevance)
    quarantined: dict = {}  # rows set aside, by table and rule
    any_files = False  # True: any number of files of any name, columns beyond the known ones left unread
    needed = None  # a column that no file may lack; None: the first one

    @staticmethod
    def write(folder):
        raise NotImplementedError

    @pytest.fixture
    def raw(self, tmp_path):
        self.write(tmp_path / "raw")
        return tmp_path / "raw"

    def imported(self, raw, out):
        import_dataset(self.importer, raw, out)
        return opened(out)

    def refused(self, raw, *names):
        """The error's message: it names the file and all of ``names``, says what to run, and leaves nothing."""
        out = raw.parent / "refused"
        with pytest.raises(DataError) as refusal:
            import_dataset(self.importer, raw, out)
        message = str(refusal.value)
        assert all(name in message for name in (*names, "moon dataset")), message
        assert not out.exists()

    def test_what_was_planted_is_imported(self, raw, tmp_path):
        dataset = self.imported(raw, tmp_path / "d")
        items = {row["item_id"]: row for row in dataset.items.to_pylist()}
        assert {row["external_id"]: row["title"] for row in items.values()} == self.titles

        def own(row):
            return items[row["item_id"]]["external_id"]

        events = [(own(row), row["type"], row["value"]) for row in dataset.events.to_pylist()]
        assert sorted(events, key=repr) == sorted(self.events, key=repr)
        judged = [(own(row), row["relevance"]) for row in dataset.judgements.to_pylist()]
        assert sorted(judged) == sorted(self.judged)
        assert dataset.artifact.config["quarantined"] == self.quarantined
        assert dataset.artifact.config["name"] == self.importer

    def test_what_is_written_is_under_contract_and_reads_as_it_was_imported(self, raw, tmp_path):
        dataset = self.imported(raw, tmp_path / "d")
        checked = check(IMPORTERS[self.importer](raw)[0])
        checked = replace(checked, events=sequenced(checked.events, checked.items)[0])
        tables = {name: getattr(dataset, name) for name in SCHEMAS}
        for name, table in tables.items():
            assert table.equals(getattr(checked, name)), name
            assert dataset.artifact.config["rows"][name] == table.num_rows
        again = check(Tables(**tables, quarantine=dataset.quarantine.slice(0, 0)))
        assert again.quarantine.num_rows == 0
        for picture in {*dataset.items["image_id"].to_pylist(), *dataset.queries["image_id"].to_pylist()}:
            assert (dataset.image_bytes(picture) is None) == (picture is None)

    def test_importing_twice_gives_the_same_artifact_that_names_no_place(self, raw, tmp_path):
        first = self.imported(raw, tmp_path / "a").artifact
        self.write(tmp_path / "moved" / "raw")
        second = self.imported(tmp_path / "moved" / "raw", tmp_path / "b").artifact
        assert first.id == second.id
        assert str(tmp_path) not in (first.path / "manifest.json").read_text()
        assert {"name", "source", "rows", "quarantined"} <= set(first.config)
        orders = [SOURCE, HASH, SORTED] if first.config["rows"]["events"] else [None]
        assert first.config.get("ties") in orders

    def test_appending_what_is_there_changes_nothing(self, raw, tmp_path):
        first = self.imported(raw, tmp_path / "d")
        done = append_files(self.importer, raw, first)
        assert done.is_nothing and done.already_there == len(first.events)
        assert opened(tmp_path / "d").artifact.id == first.artifact.id

    def test_the_order_of_a_file_changes_nothing(self, raw, tmp_path):
        first = self.imported(raw, tmp_path / "a")
        draw = np.random.default_rng(0)
        for path in files_of(raw):
            table = read(path)
            write(table.take(draw.permutation(table.num_rows)), path)
        second = self.imported(raw, tmp_path / "b")
        for name in (*SCHEMAS, "quarantine"):
            assert content(second, name) == content(first, name), name

    def test_an_id_stays_when_data_come(self, raw, tmp_path, monkeypatch):
        """Every item, user and query of a part of the source has the id that it has in the whole."""

        def ids(dataset):
            tables = {name: getattr(dataset, f"{name}s").to_pylist() for name in ("item", "user")}
            tables["query"] = dataset.queries.to_pylist()
            return {(name, row["external_id"], row[f"{name}_id"]) for name in tables for row in tables[name]}

        whole = ids(self.imported(raw, tmp_path / "whole"))
        assert all(external for _, external, _ in whole)
        assert len({(name, external) for name, external, _ in whole}) == len(whole)
        for path in files_of(raw):
            table = read(path)
            write(table.slice(table.num_rows > 1), path)  # without its first row
        monkeypatch.setattr("dataset.sieve.MAX_REFUSED_FRACTION", 1.0)
        assert ids(self.imported(raw, tmp_path / "part")) < whole

    def test_files_without_rows_are_refused(self, raw):
        for path in files_of(raw):
            write(read(path).slice(0, 0), path)
        self.refused(raw)

    def test_a_missing_file_is_named_with_what_was_found(self, raw):
        paths = files_of(raw)
        for number, path in enumerate(paths):
            hidden = path.rename(raw / f"notes{number}.txt")
            if not self.any_files:
                self.refused(raw, path.name, hidden.name)
                hidden.rename(path)
        if self.any_files:
            self.refused(raw, *(f"notes{number}.txt" for number in range(len(paths))))

    def test_a_missing_folder_is_named(self, tmp_path):
        self.refused(tmp_path / "nowhere", "nowhere", "no such folder")

    def test_a_lost_column_is_named_with_what_was_found(self, raw):
        for path in files_of(raw):
            before, table = path.read_bytes(), read(path)
            lost = self.needed or table.column_names[0]
            write(
                table.rename_columns([{lost: "mystery"}.get(name, name) for name in table.column_names]), path
            )
            self.refused(raw, path.name, lost, "mystery")
            path.write_bytes(before)

    def test_a_column_nobody_knows_is_not_passed_over_in_silence(self, raw, tmp_path):
        path = files_of(raw)[0]
        table = read(path)
        write(table.append_column("mystery", pa.array(["?"] * table.num_rows)), path)
        if self.any_files:
            assert self.imported(raw, tmp_path / "d").artifact.config["columns_unread"] == ["mystery"]
        else:
            self.refused(raw, path.name, "mystery")

    @pytest.mark.parametrize("damage", [b"", b"PAR1", b'{"id": ', b"\x00\xff\xfe"])
    def test_a_damaged_file_is_named(self, raw, damage):
        for path in files_of(raw):
            before = path.read_bytes()
            path.write_bytes(damage)
            self.refused(raw, path.name)
            path.write_bytes(before)
