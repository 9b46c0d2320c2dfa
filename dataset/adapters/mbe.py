"""MBE and MBE2.0, the public benchmarks of MOON and MOON2.0: product rows, and search triplets.

Known columns of MBE (papers' notes, section 2.2 [H1b]): id, doc_title, doc_image, doc_industry_name, doc_cate1_name
to doc_cate4_name, doc_attributes; train or test is given by a column ``split`` or by the file's name. Of MBE2.0
only the sides "query, positive, negative" are known: a side may be flat columns with the prefix ``query_``,
``positive_`` or ``negative_`` instead of ``doc_``, a struct, or a title. Other columns are not read, and are listed
in the dataset's configuration, because we have not seen the complete files. Everything is read into memory.

The public files hold addresses of pictures, not pictures. Bytes, base64 and paths are read directly; for an address,
put the picture into ``images/`` beside the files, named after the row's id or the last part of the address. Rows
whose picture is missing are kept without one, and counted in the configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataset.adapters.canonical import NO_CLOCK, ids_of, image_table, refusals, under
from dataset.adapters.row_files import Source, id_text
from dataset.contracts import (
    EVENTS,
    ITEMS,
    JUDGEMENTS,
    QUARANTINE,
    QUERIES,
    TIME,
    USERS,
    Tables,
    content_hash,
)

LEVELS = ("industry_name", "cate1_name", "cate2_name", "cate3_name", "cate4_name")  # broadest first
FIELDS = ("id", "title", "image", *LEVELS, "attributes")
MBE_COLUMNS = ("id", *(f"doc_{name}" for name in FIELDS[1:]), "split")
SIDES = ("query", "positive", "negative")
TRIPLET_COLUMNS = (*SIDES, *(f"{side}_{name}" for side in SIDES for name in FIELDS), "split")


def mbe(folder: Path) -> tuple[Tables, dict[str, Any]]:
    """MBE: one item per row; a test item is relevant to two queries, its own title and its own picture.

    These are MBE's text-based and image-based retrieval, with the source's split: items judged only in part "test"
    are held out to test encoders (``evaluation.science.encoders.exam.hold_out``).

    Raises:
        DataError: no files, no id column, neither title nor picture column, or rows of an unknown part.
    """
    source = Source(folder)
    items, queries, judged = Products(source), Searches(source), {}
    repeated = []
    for number, (part, row) in enumerate(source.rows(MBE_COLUMNS, (("id",), ("doc_title", "doc_image")))):
        fields = {name: row.get(name if name == "id" else f"doc_{name}") for name in FIELDS}
        if (named := id_text(row["id"])) in items.record:
            repeated.append((number, str(named)))
            continue
        item = items.add(fields)
        if part == "test":
            for seen in ("title", "image"):
                query = queries.add({"id": f"{seen} of {item}", seen: fields[seen]}, items.image[item])
                if query is not None:
                    judged[query, item] = (1.0, part)
    refused = refusals("items", "row of an id already read", repeated)
    title = "MBE, Multimodal Benchmark for E-commerce (MOON)"
    return _tables(source, items, queries, judged, refused, "mbe", title)


def mbe2(folder: Path) -> tuple[Tables, dict[str, Any]]:
    """MBE2.0: triplets of a query, the product bought after it (relevance 1) and a hardly relevant one (0).

    Raises:
        DataError: no files, no columns of a query or a positive, or rows of an unknown part.
    """
    source = Source(folder)
    items, queries = Products(source), Searches(source)
    judged: dict[tuple[str, str], tuple[float, str]] = {}
    needed = tuple((side, f"{side}_title", f"{side}_image") for side in SIDES[:2])
    for part, row in source.rows(TRIPLET_COLUMNS, needed):
        query = queries.add(_side(row, "query"))
        for side, relevance in (("positive", 1.0), ("negative", 0.0)):
            fields = _side(row, side)
            if query is None or not (fields.get("title") or fields.get("image")):
                continue
            pair = (query, items.add(fields))
            judged[pair] = max(judged.get(pair, (relevance, part)), (relevance, part))
    title = "MBE2.0, search triplets of Taobao (MOON2.0)"
    return _tables(source, items, queries, judged, QUARANTINE.empty_table(), "mbe2", title)


def _side(row: Mapping[str, Any], side: str) -> dict[str, Any]:
    """The fields of one side of a triplet, from flat columns, a struct, or a title."""
    fields = {name: row.get(f"{side}_{name}") for name in FIELDS}
    whole = row.get(side)
    if isinstance(whole, Mapping):
        known = {name: whole.get(name, whole.get(f"doc_{name}")) for name in FIELDS}
        return {name: value if fields[name] is None else fields[name] for name, value in known.items()}
    if fields["title"] is None and isinstance(whole, str):
        fields["title"] = whole
    return fields


def attribute_map(value: Any) -> list[tuple[str, str]]:
    """Attributes of a cell: a mapping, a JSON object, or MBE's ``name:value,,name:value``.

    MBE joins several values of an attribute by ``!!!``; here they are joined by a comma. Other text is left out.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    if isinstance(value, list) and all(isinstance(pair, str) for pair in value):
        value = ",,".join(value)
    if isinstance(value, str):
        value = [pair.split(":", 1) for pair in value.split(",,") if ":" in pair]
    pairs = value.items() if isinstance(value, Mapping) else value or []
    clean = {
        str(name).strip(): ", ".join(str(text).split("!!!")).strip()
        for name, text in pairs
        if text is not None
    }
    return [(name, text) for name, text in clean.items() if name and text]


@dataclass
class Products:
    """Items by the source's id, or by a hash of title and picture; of equal ones the first is kept."""

    source: Source
    record: dict[str, dict[str, Any]] = field(default_factory=dict)
    image: dict[str, bytes | None] = field(default_factory=dict)

    def add(self, fields: Mapping[str, Any]) -> str:
        """Add a product unless it is known; returns its id."""
        named = id_text(fields.get("id"))
        if named is not None and named in self.record:
            return named
        picture = self.source.picture(fields.get("image"), named)
        key = named or content_hash(f"{fields.get('title')}".encode() + (picture or b""))
        if key not in self.record:
            self.record[key], self.image[key] = dict(fields), picture
        return key

    def table(self) -> pa.Table:
        """The products as ITEMS."""
        rows, keys = list(self.record.values()), list(self.record)
        number = ids_of(pa.array(keys, pa.string()))
        path = [[str(row[level]) for level in LEVELS if row.get(level)] for row in rows]
        columns = {
            "item_id": number,
            "external_id": pa.array(keys, pa.string()),
            "title": pa.array([_text(row.get("title")) for row in rows], pa.string()),
            "category": pa.array(path, ITEMS.field("category").type),
            "attributes": pa.array(
                [attribute_map(row.get("attributes")) for row in rows], ITEMS.field("attributes").type
            ),
            "spu": number,
            "image_id": pa.array([_name(one) for one in self.image.values()], pa.string()),
            "first_seen": pa.array([NO_CLOCK] * len(rows), TIME),
        }
        return under(ITEMS, columns)


@dataclass
class Searches:
    """Queries by id, or by a hash of their text and picture."""

    source: Source
    record: dict[str, tuple[str | None, bytes | None]] = field(default_factory=dict)

    def add(self, fields: Mapping[str, Any], picture: bytes | None = None) -> str | None:
        """Add a query unless it is known; returns its key, or None if it has neither text nor picture.

        Args:
            fields: of the query.
            picture: the picture that ``fields`` names, if already read.
        """
        text, named = _text(fields.get("title")), id_text(fields.get("id"))
        if fields.get("image") and picture is None:
            picture = self.source.picture(fields["image"], named)
        shown = picture if fields.get("image") else None
        if text is None and shown is None:
            return None
        key = named or content_hash((text or "").encode() + (shown or b""))
        self.record.setdefault(key, (text, shown))
        return key

    def table(self) -> pa.Table:
        """The queries as QUERIES."""
        columns = {
            "query_id": ids_of(pa.array(list(self.record), pa.string())),
            "text": pa.array([text for text, _ in self.record.values()], pa.string()),
            "image_id": pa.array([_name(picture) for _, picture in self.record.values()], pa.string()),
            "external_id": pa.array(list(self.record), pa.string()),
        }
        return under(QUERIES, columns)


def _text(value: Any) -> str | None:
    return (str(value).strip() or None) if value is not None else None


def _name(picture: bytes | None) -> str | None:
    return None if picture is None else content_hash(picture)


def _tables(
    source: Source,
    items: Products,
    queries: Searches,
    judged: Mapping[tuple[str, str], tuple[float, str]],
    refused: pa.Table,
    name: str,
    title: str,
) -> tuple[Tables, dict[str, Any]]:
    """Canonical tables and the configuration to record in the artifact."""
    catalogue, searches = items.table(), queries.table()
    item_of = dict(zip(items.record, catalogue["item_id"].to_pylist(), strict=True))
    query_of = dict(zip(queries.record, searches["query_id"].to_pylist(), strict=True))
    judgements = {
        "query_id": pa.array([query_of[query] for query, _ in judged], pa.int64()),
        "item_id": pa.array([item_of[item] for _, item in judged], pa.int64()),
        "relevance": pa.array([relevance for relevance, _ in judged.values()], pa.float32()),
        "part": pa.array([part for _, part in judged.values()], pa.string()),
    }
    shown = [*items.image.values(), *(picture for _, picture in queries.record.values())]
    tables = Tables(
        items=catalogue,
        images=image_table(one for one in shown if one is not None),
        users=USERS.empty_table(),
        events=EVENTS.empty_table(),
        queries=searches,
        judgements=under(JUDGEMENTS, judgements),
        quarantine=refused,
    )
    config = {
        "name": name,
        "source": title,
        "columns_unread": sorted(source.unread),
        "pictures_missing": source.missing,
    }
    return tables, config
