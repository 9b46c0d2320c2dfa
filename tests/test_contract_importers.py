"""Every importer keeps the contract of ``contracts.importer``, and none is without it."""

import layout_world
import pyarrow as pa
import pytest
from contracts.importer import ImporterContract, read, write
from test_importers import (
    globo_pack,
    grocery_pack,
    hm_pack,
    hm_raw,
    homedepot_pack,
    ml_pack,
    ml_raw,
)
from test_mbe import BLUE, RED, lines, put, row, triplet

from dataset.adapters.described.description import FILE
from dataset.adapters.described.importer import described
from dataset.contracts import DataError
from dataset.importers import IMPORTERS


class TestHmPack(ImporterContract):
    importer, write = "hm_fashion", staticmethod(hm_pack)
    titles = {article: f"Top {article}" for article in ("0108775015", "0108775044", "0990000001")}
    events = [("0108775015", "purchase", None)] * 2 + [("0108775044", "purchase", None)] * 3
    quarantined = {"events": {"unknown item_id": 1}, "images": {"picture of an unknown item": 1}}


class TestHmRaw(TestHmPack):
    write = staticmethod(hm_raw)


class TestMovielensPack(ImporterContract):
    importer, write = "ml_posters", staticmethod(ml_pack)
    titles = {"1": "Toy, Story (1995)", "2": "Jumanji (1995)", "3": "Heat (1995)"}
    events = [("1", "rating", 3.0), ("1", "rating", 4.5), ("2", "rating", 2.0)]
    quarantined = {
        "images": {"broken or too large picture": 1},
        "items": {"image_id without an image": 1},
    }


class TestMovielensRaw(TestMovielensPack):
    write = staticmethod(ml_raw)


class TestHomeDepot(ImporterContract):
    importer, write = "homedepot_relevance", staticmethod(homedepot_pack)
    titles = {f"{number}": f"drill {number}" for number in (100, 101, 102)}
    judged = [(f"{100 + grade}", grade / 2) for grade in range(3)] * 200


class TestGrocery(ImporterContract):
    importer, write = "grocery_store", staticmethod(grocery_pack)
    titles = {"Golden-Delicious": "Golden Delicious", "Oat-Milk": "Oat Milk"}
    judged = [("Golden-Delicious", 1.0)] + [("Oat-Milk", 1.0)] * 3


class TestGlobo(ImporterContract):
    importer, write = "scale_globo", staticmethod(globo_pack)
    titles = {"70": None, "71": None}
    events = [("70", "click", None), ("71", "click", None), ("71", "click", None)]


class TestMbe(ImporterContract):
    importer, any_files, needed = "mbe", True, "id"
    titles = {"a1": "裙子 a1", "a2": "裙子 a2", "b1": "裙子 b1"}
    judged = [("b1", 1.0), ("b1", 1.0)]  # by its title and by its picture

    @staticmethod
    def write(folder):
        put(folder / "images/red.png", RED)
        put(folder / "images/blue.png", BLUE)
        lines(folder / "train.jsonl", [row("a1", "https://shop.com/red.png"), row("a2", None)])
        lines(folder / "test.jsonl", [row("b1", "blue.png")])


class TestMbe2(ImporterContract):
    importer, any_files, needed = "mbe2", True, "query_title"
    titles = {"p1": "good 1", "n1": "bad 1", "p2": "good 2", "n2": "bad 2"}
    judged = [("p1", 1.0), ("n1", 0.0), ("p2", 1.0), ("n2", 0.0)]

    @staticmethod
    def write(folder):
        lines(folder / "triplets.jsonl", [triplet(1), triplet(2, split="test")])


FEW = 40


def few_samples() -> layout_world.World:
    """Three users of five samples each, among FEW items."""
    return layout_world.world(users=3, items=FEW, each=5, behaviours=2, seed=1)


def played(made: layout_world.World, parts: tuple[str, ...]) -> list:
    """What became of the samples of these parts, items by their number."""
    shown = [one for one in made.samples if one.part in parts]
    return [(str(one.item), "impression", None) for one in shown]


class KeepsColumns(ImporterContract):
    """Columns that nobody knows are kept as features of items."""

    titles = {str(item): None for item in range(1, FEW + 1)}

    def test_a_column_nobody_knows_is_not_passed_over_in_silence(self, raw, tmp_path):
        table = read(raw / "item_info.parquet")
        write(
            table.append_column("mystery", pa.array(["?"] * table.num_rows)),
            raw / "item_info.parquet",
        )
        extra = self.imported(raw, tmp_path / "d").extra["item"]
        assert extra.column("mystery").to_pylist() == ["?"] * FEW


class TestLongCtr(KeepsColumns):
    importer = "longctr"
    events = [
        *played(few_samples(), ("train", "valid", "test")),
        *((str(item), "click", None) for history in few_samples().history for item in history),
    ]

    @staticmethod
    def write(folder):
        layout_world.longctr(folder, few_samples())


class TestMicroLens(KeepsColumns):
    importer = "microlens"
    events = [
        *played(few_samples(), ("train", "valid")),
        *((str(item), "click", None) for history in few_samples().history for item in history[:2]),
        *(
            (str(one.item), "click", None)
            for one in few_samples().samples
            if one.clicked and one.part != "test"
        ),
    ]

    @staticmethod
    def write(folder):
        layout_world.microlens(folder, few_samples())


class TestTaobaoMm(ImporterContract):
    importer = "taobao_mm"
    titles = {
        str(layout_world.signed(item)): None
        for item in {one.item for one in few_samples().samples if one.part != "valid"}
        | {item for one in few_samples().samples if one.part != "valid" for item in one.seen}
    }
    events = [
        (str(layout_world.signed(int(item))), *rest)
        for item, *rest in [
            *played(few_samples(), ("train", "test")),
            *((item, "click", None) for one in few_samples().part("test") for item in one.seen),
            *layout_world.unseen_clicks(few_samples()),
        ]
    ]

    @staticmethod
    def write(folder):
        layout_world.taobao_mm(folder, few_samples())


class TestDescribed(ImporterContract):
    """The importer of any folder, as its ``moon.toml`` describes it."""

    importer = "described"
    titles = {"A1": "red lamp", "B2": "oak chair", "C3": "tall shelf"}
    events = [("A1", "click", None), ("A1", "rating", 4.0), ("B2", "click", None), ("C3", "click", None)]
    judged = [("A1", 1.0), ("B2", 0.0)]
    quarantined = {"events": {"null user_id": 1}}

    @pytest.fixture(autouse=True)
    def _known_by_a_name(self, monkeypatch):
        monkeypatch.setitem(IMPORTERS, self.importer, lambda folder: described(folder / FILE))

    @staticmethod
    def write(folder):
        folder.mkdir(parents=True)
        (folder / FILE).write_text(DESCRIBED)
        for name, content in DESCRIBED_FILES.items():
            (folder / name).write_text("\n".join(content) + "\n")

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(DataError, match="nowhere.*no such file. Run 'moon init FOLDER'"):
            self.imported(tmp_path / "nowhere", tmp_path / "d")

    def test_a_column_nobody_knows_is_not_passed_over_in_silence(self, raw, tmp_path):
        """It is kept as a feature of its entity."""
        table = read(raw / "items.csv")
        write(table.append_column("mystery", pa.array(["?"] * table.num_rows)), raw / "items.csv")
        assert self.imported(raw, tmp_path / "d").extra["item"].column("mystery").to_pylist() == ["?"] * 3


DESCRIBED = """
[data]
name = "described"

[[items]]
files = ["items.csv"]
id = "sku"
title = "name"

[[events]]
files = ["log.csv"]
user = "user"
item = "sku"
time = "time"
type_column = "kind"
types = { view = "click", rated = "rating" }
value = "stars"

[[queries]]
files = ["queries.csv"]
id = "query"
text = "words"

[[judgements]]
files = ["labels.csv"]
query = "query"
item = "sku"
relevance = "grade"
"""
DESCRIBED_FILES = {
    "items.csv": ["sku,name", "A1,red lamp", "B2,oak chair", "C3,tall shelf"],
    "log.csv": [
        "user,sku,time,kind,stars",
        "ann,A1,2024-03-01T10:00:00Z,view,",
        "bob,A1,2024-03-02T10:00:00Z,rated,4",
        "ann,B2,2024-03-03T10:00:00Z,view,",
        "bob,C3,2024-03-04T10:00:00Z,view,",
        ",C3,2024-03-05T10:00:00Z,view,",
    ],
    "queries.csv": ["query,words", "q1,lamp", "q2,old chair"],
    "labels.csv": ["query,sku,grade", "q1,A1,1", "q1,B2,0"],
}


def test_no_importer_is_without_the_contract():
    def below(suite):
        return {suite, *(one for child in suite.__subclasses__() for one in below(child))}

    assert {suite.importer for suite in below(ImporterContract) - {ImporterContract, KeepsColumns}} == {
        *IMPORTERS,
        "described",
    }
