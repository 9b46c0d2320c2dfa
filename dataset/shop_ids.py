"""The shop's own ids: what they look like where a person or a client meets them, and what stands for them inside.

Inside, every id is an int64. Where all ids of a kind are integers of 64 bits, they are the same inside and outside.
Elsewhere the shop's id is a text, or the decimal digits of an integer, and ``stable_id`` of it stands for it. "007"
and "7" are two ids; an integer 7 is the id "7".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.contracts import DataError

ShopId = int | str
LARGEST_ID = 2**63 - 1
HASHED = 2**62  # an integer below stands for itself, what is hashed is above: they cannot meet
MOST_ID = 1000  # characters of a text, digits of an integer
FOLDERS = (".", "..")  # addresses lose them: a client would ask for another page
CANONICAL = r"0|-?[1-9][0-9]*"  # an integer, as every language writes it
# The fields of records that hold ids. Of the first three the dataset knows what it has, with its ``external_id``.
NAMED = {"item_id": "items", "user_id": "users", "query_id": "queries"}
OTHERS = ("event_id", "request_id", "spu")


class IdKind(StrEnum):
    """What ids of one kind are, for a client."""

    INT64 = "int64"  # integers of 64 bits, the same inside
    INTEGER = "integer"  # integers of any width
    TEXT = "text"
    ANY = "any"  # integers and texts: the senders' own numbers, in a shop whose ids are texts


Kinds = Mapping[str, IdKind]
ALL_INT64: Kinds = dict.fromkeys((*NAMED, *OTHERS), IdKind.INT64)


def stable_id(name: ShopId) -> int:
    """The int64 that stands for an id, the same on every machine and in every run.

    It depends on the id alone, so that it is the same in every file of a source and does not change when data are
    added: an integer below 2**62 keeps its value (a MovieLens id stays readable), anything else becomes 2**62 plus 62
    bits of its sha256.
    """
    text = str(name)
    if len(text) <= 19 and text.isascii() and text.isdigit() and (text[0] != "0" or text == "0"):
        number = int(text)
        if number < HASHED:
            return number
    return HASHED + (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2)


def stable_ids(external: Sequence[str]) -> np.ndarray:
    """``stable_id`` of each of the source's ids, int64.

    Raises:
        DataError: two different ids map to the same int64.
    """
    mapped = {text: stable_id(text) for text in external}
    if len(set(mapped.values())) != len(mapped):
        raise DataError(
            f"expected {len(mapped)} distinct integers for {len(mapped)} external ids, found "
            f"{len(set(mapped.values()))}: ids collide"
        )
    return np.fromiter((mapped[text] for text in external), dtype=np.int64, count=len(external))


def from_text(text: str, kind: IdKind) -> ShopId:
    """An id from an address, a form or the page, where every value is a text.

    Raises:
        ValueError: no id of this kind is written so.
    """
    if kind is IdKind.INT64:
        if not re.fullmatch(r"[0-9]{1,19}", text):
            raise ValueError("expected a whole number in decimal digits")
        if int(text) > LARGEST_ID:
            raise ValueError(f"expected at most {LARGEST_ID}")
        return int(text)
    if not text or len(text) > MOST_ID:
        raise ValueError(f"expected an id of 1 to {MOST_ID} characters")
    if text in FOLDERS:
        raise ValueError("expected an id other than . and .., which an address cannot hold")
    if kind is IdKind.INTEGER:
        if not re.fullmatch(CANONICAL, text, flags=re.ASCII):
            raise ValueError("expected an integer in decimal digits")
        return int(text)
    return text


def shown(name: str, kind: IdKind) -> ShopId:
    """An id of the dataset as a client sees it."""
    return int(name) if kind in (IdKind.INT64, IdKind.INTEGER) else name


def id_kinds(tables: Mapping[str, pa.Table], stated: Mapping[str, str]) -> dict[str, str]:
    """What the ids of a dataset are, to be recorded in its manifest.

    Args:
        tables: "items", "users" and "queries".
        stated: kinds that the source says; where it says none, they follow from the ids.

    Raises:
        DataError: an unknown field or kind, or ids that are not of the kind that is stated.
    """
    for field, kind in stated.items():
        if field not in ALL_INT64 or kind not in list(IdKind):
            raise DataError(
                f"ids: expected one of the kinds {', '.join(IdKind)} for fields among {', '.join(ALL_INT64)}, found "
                f"{field!r}: {kind!r}."
            )
    found = {field: _kind_of(tables[name], field) for field, name in NAMED.items()}
    for field, kind in found.items():
        asked = IdKind(stated.get(field, kind))
        if (asked is IdKind.INT64 and kind is not IdKind.INT64) or (
            asked is IdKind.INTEGER and kind is IdKind.TEXT
        ):
            raise DataError(f"{NAMED[field]}: expected ids of the kind {asked}, as is stated, found {kind}.")
    named = {**found, **{field: IdKind(kind) for field, kind in stated.items() if field in NAMED}}
    mapped = any(kind is not IdKind.INT64 for kind in named.values())
    others = {field: stated.get(field, IdKind.ANY if mapped else IdKind.INT64) for field in OTHERS}
    return {field: str(kind) for field, kind in {**named, **others}.items()}


def _kind_of(table: pa.Table, field: str) -> IdKind:
    names = table.column("external_id")
    if pc.all(pc.equal(names, table.column(field).cast(pa.string()))).as_py() is not False:
        return IdKind.INT64
    numeric = pc.match_substring_regex(names, f"^({CANONICAL})$")
    return IdKind.INTEGER if pc.all(numeric).as_py() else IdKind.TEXT
