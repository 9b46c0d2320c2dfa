"""What an error says of items, users and queries reaches a person in the shop's own ids, never in the int64 inside.

Run: pytest tests/test_own_ids.py
"""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from dataset.shop_ids import HASHED, IdKind, stable_id
from feature_repo import dead_letters
from feature_repo.embedding_check import EmbeddingError, examine
from feature_repo.own_ids import in_own_ids
from feature_repo.shop_ids import write_shop_ids
from feature_repo.vectors import Vectors, VectorTable, _read
from moon import journey, refused
from moon.failures import names_own_ids, told
from retrieval.index import _check

ROOT = Path(__file__).resolve().parents[1]
ITEMS = ["sku-1", "007", "Golden 'Delicious'"]
INSIDE = [stable_id("sku-1"), stable_id("007"), 3]  # the importer chose the last one
KINDS = dict.fromkeys(("item_id", "user_id", "query_id"), IdKind.TEXT)
KINDS |= dict.fromkeys(("event_id", "request_id", "spu"), IdKind.ANY)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "store" / "data").mkdir(parents=True)
    of = {
        "items": {"item_id": pa.array(INSIDE), "external_id": ITEMS},
        "users": {"user_id": pa.array([stable_id("ann")]), "external_id": ["ann"]},
        "queries": {"query_id": pa.array([stable_id("q/1")]), "external_id": ["q/1"]},
    }
    write_shop_ids(tmp_path / "store", KINDS, {name: pa.table(columns) for name, columns in of.items()})
    return tmp_path


def unit(count):
    return np.eye(max(count, 2), dtype=np.float32)[:count]


def not_finite(folder):
    save_file(
        {"item_id": np.sort(INSIDE), "vector": unit(3) * np.float32("nan")}, folder / "items.safetensors"
    )
    _read(folder / "items.safetensors", "item_id", 3)


def no_vectors(folder):
    nobody = VectorTable(np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
    examine(Vectors(nobody.ids, nobody.matrix, nobody, "none"), np.sort(INSIDE), 2, None)


FAULTS = {
    "an item twice": lambda folder: _check(np.array(INSIDE * 2), unit(6), [""] * 6),
    "vectors that are not finite": not_finite,
    "items without a vector": no_vectors,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_an_error_names_the_shops_items(run, fault):
    @names_own_ids
    def work(run):
        fault(run.folder)

    with pytest.raises(Exception) as error:
        work(SimpleNamespace(folder=run))
    said = told(error.value) or str(error.value)
    assert all(repr(one) in said for one in ITEMS), said
    assert not re.search(
        rf"\b({'|'.join(map(str, INSIDE))})\b", said.partition("item_id")[2].partition("]")[0]
    ), said


def test_what_stands_for_no_id_of_the_shop_stays(run):
    sku, ann = stable_id("sku-1"), stable_id("ann")
    said = in_own_ids(run / "store", f"user_id {ann}, item_ids [3, 4], query_id [{stable_id('q/1')}]: 3 of 4")
    assert said == f"user_id 'ann', item_ids [{ITEMS[2]!r}, 4], query_id ['q/1']: 3 of 4"
    assert in_own_ids(run / "store", f"first {sku}") == "first 'sku-1'"  # a hash, whatever stands before it
    for kept in (
        f"/data/{sku}.json",
        f"'{sku}'",
        f"{HASHED + 1}",
        "1" * 19,
        "9" * 19,
        f"{sku}.5",
        "item_id 3.5",
    ):
        assert in_own_ids(run / "store", kept) == kept
    assert in_own_ids(run / "none", f"item_id 3, {sku}") == f"item_id 3, {sku}"  # a shop of integers
    (run / "store/data/item_id.arrow").write_bytes(b"damaged")
    assert in_own_ids(run / "store", f"item_id 3, {sku}") == f"item_id 3, {sku}"


def test_the_dead_letter_says_why_in_the_shops_ids(run):
    reason = f"EmbeddingError: no vector (item_id {INSIDE})"
    letter = dead_letters.put(
        run / "store", dead_letters.GENERATIONS, "serve", reason, {"generation": 2}, "2"
    )
    row = {"item_id": INSIDE[0], "price": 1.0}
    dead_letters.put(
        run / "store", dead_letters.EMBEDDINGS, "embed", f"item_id {INSIDE[2]} is empty", row, "one"
    )
    said = [
        refused.table(run, None),
        refused.as_json(refused.listed(run, None)),
        refused.shown(run, letter.id),
    ]
    said.append(refused.drop(run, letter.id))
    for text in said:
        assert "sku-1" in text and not re.search("|".join(map(str, INSIDE[:2])), text), text


def test_an_error_of_a_command_is_raised_with_the_shops_ids(run, monkeypatch):
    monkeypatch.setattr(journey, "VERBS", (journey.Verb("fails", None, lambda run: no_vectors(run.folder)),))
    monkeypatch.setattr(journey, "_require", lambda *_: None)
    with pytest.raises(EmbeddingError, match=r"item_id \[") as error:
        journey.do(SimpleNamespace(folder=run), "fails")
    assert all(repr(one) in str(error.value) for one in ITEMS)


def test_every_message_that_lists_ids_says_of_what_they_are():
    """By the field before them integers are known to be ids; those of ``truth`` are the simulated shop's own."""
    listed = re.compile(r"\b(?:ids|missing|strangers|bad|unknown)(?:\[\w+\])?\[:\d\]\.tolist\(\)\}")
    packages = ("dataset", "feature_repo", "encoder", "ranker", "retrieval", "serving", "evaluation", "moon")
    sources = [path for one in packages for path in (ROOT / one).rglob("*.py") if path.name != "truth.py"]
    lines = [line for path in sources for line in path.read_text().splitlines() if listed.search(line)]
    unnamed = [one for one in lines if not re.search(r"item_id|user_id|query_id|\{key\}|rows", one)]
    assert len(lines) >= 6 and not unnamed
