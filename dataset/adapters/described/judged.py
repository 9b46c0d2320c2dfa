"""Queries and judgements of described tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import flat, under
from dataset.adapters.described.cells import Cell, Reader, read
from dataset.adapters.described.description import Judgements, Queries
from dataset.adapters.described.entities import Described, columns_of, files_of
from dataset.adapters.described.files import Batch
from dataset.adapters.described.log import Searches
from dataset.adapters.described.names import Names
from dataset.adapters.described.rows import KEY, extra_cells, extras, filled, latest
from dataset.adapters.described.sql import literal
from dataset.adapters.row_files import PARTS
from dataset.adapters.source import NEXT
from dataset.contracts import JUDGEMENTS, QUERIES, DataError
from dataset.identity import stable_hash

TEST_OF = 5  # one query in five is a test, with all its judgements, where the source does not say


def described_queries(root: Path, sections: Sequence[Queries], searches: Searches) -> Described:
    """The rows of all tables of queries, whose words are added to ``searches``."""
    tables, changed = [], 0
    for section in sections:
        used = set(columns_of(section)) - set(section.features)

        def cells(reader: Reader, section: Queries = section, used: set[str] = used) -> list[Cell]:
            key, text = reader.id("query", section.id), reader.text("query_text", section.text)
            return [key, text, *extra_cells(reader, used)]

        batches = (
            (Batch(one.file, one.start, one.table.drop_columns(["query", "query_text"])), ids)
            for one in read(files_of(root, section), section, columns_of(section), cells)
            for ids in [searches.ids(one, section.id, section.text)]
        )
        merged = latest(batches)
        tables.append(merged.table)
        changed += merged.changed
    rows = filled(tables) if tables else pa.table({KEY: pa.array([], pa.int64())})
    return Described(rows, extras(rows), changed)


def judgements_table(
    root: Path, sections: Sequence[Judgements], items: Names, searches: Searches
) -> pa.Table:
    """JUDGEMENTS of all tables, in their order."""
    made = [JUDGEMENTS.empty_table()]
    for section in sections:
        files, cells = files_of(root, section), partial(_cells, section)
        for batch in read(files, section, columns_of(section), cells):
            query = searches.ids(batch, section.query, section.query_text)
            columns = {
                "query_id": query,
                "item_id": items.ids(batch, "item", section.item),
                "relevance": flat(batch.table.column("relevance")).cast(pa.float32()),
                "part": _parts(section, batch, query),
            }
            made.append(under(JUDGEMENTS, columns))
    return pa.concat_tables(made).combine_chunks()


def queries_table(searches: Searches) -> pa.Table:
    """QUERIES in order of their id; those that the source names keep its id."""
    named = searches.names.table()
    external = dict(zip(named.column("id").to_pylist(), named.column("external").to_pylist(), strict=True))
    ids = sorted({*external, *searches.words})
    columns = {
        "query_id": pa.array(ids, pa.int64()),
        "text": pa.array([searches.words.get(one) for one in ids], pa.string()),
        "external_id": pa.array([external.get(one) for one in ids], pa.string()),
    }
    if clash := searches.unnamed & set(external):
        raise DataError(
            f"queries: expected ids apart from words, found {len(clash)} words that are another's id, first "
            f"{[external[one] for one in sorted(clash)[:3]]}. Name the column of the query's id everywhere. {NEXT}"
        )
    return under(QUERIES, columns)


def _cells(section: Judgements, reader: Reader) -> list[Cell]:
    low, high = section.relevance_scale
    grade = reader.number("relevance", section.relevance)
    scaled = f"(({grade.sql}) - {low}) / {high - low}"
    if section.grades:
        cases = " ".join(f"WHEN {literal(word)} THEN {value}" for word, value in section.grades.items())
        scaled = f"CASE CAST({grade.raw} AS VARCHAR) {cases} END"
        said = f"one of {', '.join(section.grades)}"
    else:
        said = f"a grade from {low:g} to {high:g}"
    return [
        reader.id("query", section.query),
        reader.text("query_text", section.query_text),
        reader.id("item", section.item),
        Cell("relevance", scaled, section.relevance, grade.raw, said),
        reader.text("part", section.part),
    ]


def _parts(section: Judgements, batch: Batch, query: pa.Array) -> pa.Array:
    """The part of each judgement: as its column says, else as its file's name says, else by a hash of the query."""
    if section.part is not None:
        said = flat(batch.table.column("part")).dictionary_encode()
        words = [PARTS.get(text.strip().lower(), text) for text in said.dictionary.to_pylist()]
        return pa.array(words, pa.string()).take(said.indices)
    named = [PARTS[word] for word in re.split(r"[^a-z]+", batch.file.lower()) if word in PARTS]
    if named:
        return pa.array(["train", "test"]).take(pa.array(np.full(len(query), int(named[-1] == "test"))))
    test = stable_hash(pc.fill_null(query, -1).to_numpy()) % np.uint64(TEST_OF) == 0
    return pa.array(["train", "test"]).take(pa.array(test.astype(np.int64)))
