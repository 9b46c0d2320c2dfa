"""Every importer keeps the contract of ``contracts.importer``, and none is without it."""

from contracts.importer import ImporterContract
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


def test_no_importer_is_without_the_contract():
    def below(suite):
        return {suite, *(one for child in suite.__subclasses__() for one in below(child))}

    assert {suite.importer for suite in below(ImporterContract) - {ImporterContract}} == set(IMPORTERS)
