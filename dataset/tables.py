"""The dataset artifact: canonical tables on disk, read lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset.adapters.source import AT_ONCE
from dataset.checks import by_own_ids, check, check_events, quarantine_counts
from dataset.contracts import EVENT_TYPES, EVENTS, QUARANTINE, SCHEMAS, Tables, completed
from dataset.extra import TABLES as EXTRA
from dataset.extra import extra_file, extra_types, write_extra
from dataset.identity import IMPORTED
from dataset.long_log import LongLog
from dataset.order import HASH, sequenced
from dataset.shop_ids import ALL_INT64, IdKind, Kinds, id_kinds
from dataset.sieve import require_most
from dataset.slates import SCOPE, SEVERAL_TIMES, SEVERAL_USERS, clicks_explained, unexplained
from run.artifacts import Artifact, open_artifact, write_artifact
from run.progress import track

BESIDE = ("truth", "propensities")  # tables about impressions that not every source has


def write_dataset(out: Path, tables: Tables, config: Mapping[str, Any]) -> Artifact:
    """Check the tables, move offending rows to quarantine, and write the artifact of kind "dataset".

    Args:
        out: where to write.
        tables: canonical tables; ``events`` may be a LongLog, which is read once and closed.
        config: "name" and any other provenance. "candidates": "pictured" if the source's benchmark is of items that
            have a picture and were acted on (``dataset.split.measured_items``); "protocol", by which to split if the
            run does not say (``dataset.protocols``), and "repeats", whether what users like again is asked for
            (``dataset.repeats``). Of importers: "first_seen", how they derive it from the log
            (``dataset.first_seen``), "event_ids": "given" if the source names its events (``dataset.append``), and
            "ids": what the source's ids are (field -> kind, ``dataset.shop_ids``), and "said", sentences for whoever
            imports. Added here: "ids" that the source
            does not state; "rows" of each table; "quarantined" rows by table and rule; "ties", what orders events
            with equal times (``dataset.order``); "last_event_id", the largest; "clicks", how many label an
            impression, and why others do not (``dataset.slates``).

    Raises:
        DataError: a table breaks its schema, too many of its rows would be quarantined, no row is left, or ids are
            not of the kind that "ids" says.
    """
    if tables.extra:
        config = {**config, "extra": extra_types(tables.extra)}
    if isinstance(tables.events, LongLog):
        return _write_long(out, tables, tables.events, config)
    checked = check(tables)
    complete = dict(config)
    if checked.events.num_rows:
        complete["last_event_id"] = pc.max(tables.events.column("event_id")).as_py()
        events, complete["ties"] = sequenced(checked.events, checked.items)
        checked = replace(checked, events=events)
    return write_checked(out, checked, complete)


def _write_long(out: Path, tables: Tables, log: LongLog, config: Mapping[str, Any]) -> Artifact:
    """``write_dataset`` of a log that is longer than memory: it is checked and written some events at a time."""
    complete = {**config, "last_event_id": IMPORTED + log.rows, "ties": HASH}
    with log.removed_if_it_fails(), write_artifact(out, "dataset", complete) as folder:
        checked = check(replace(tables, events=EVENTS.empty_table()))
        complete["ids"] = _ids(checked, config)  # ``complete`` is sealed when all is written
        kept, refused = _write_events(folder / "events.parquet", log, checked)
        named = by_own_ids(pa.concat_tables([QUARANTINE.empty_table(), *refused]), checked)
        quarantine = pa.concat_tables([checked.quarantine, named])
        counts = {name: getattr(checked, name).num_rows for name in SCHEMAS}
        complete |= {"rows": {**counts, "events": kept}, "quarantined": quarantine_counts(quarantine)}
        checked = replace(checked, quarantine=quarantine)
        for name in {*SCHEMAS, "quarantine"} - {"events"}:
            pq.write_table(getattr(checked, name), folder / f"{name}.parquet", compression="zstd")
        write_extra(folder, checked.extra, {name: getattr(checked, name) for name in SCHEMAS})
    log.close()
    return open_artifact(out, "dataset")


def _write_events(path: Path, log: LongLog, checked: Tables) -> tuple[int, list[pa.Table]]:
    """Write the events that obey every rule; returns their number and the QUARANTINE entries of the others."""
    done = kept = 0
    refused: list[pa.Table] = []
    with pq.ParquetWriter(path, EVENTS, compression="zstd") as writer:
        for events in track(log.chunks(), "check events", total=-(-log.rows // AT_ONCE), unit="parts"):
            sieve = check_events(events, checked)
            for entries in sieve.entries:
                row = pc.add(entries.column("row"), done)
                refused.append(entries.set_column(2, QUARANTINE.field("row"), row))
            writer.write_table(sieve.kept())
            done += len(events)
            kept += int(sieve.alive.sum())
    require_most("events", refused, 0, done)
    return kept, refused


def write_checked(out: Path, checked: Tables, config: Mapping[str, Any]) -> Artifact:
    """Write tables that obey every rule, their events with a sequence number, as ``write_dataset`` does."""
    counts = {name: getattr(checked, name).num_rows for name in SCHEMAS}
    complete = {
        **config,
        "ids": _ids(checked, config),
        "rows": counts,
        "quarantined": quarantine_counts(checked.quarantine),
    }
    if checked.events.num_rows and (clicks := clicks_explained(checked.events)):
        complete["clicks"] = clicks
    with write_artifact(out, "dataset", complete) as folder:
        for name in (*counts, "quarantine"):
            pq.write_table(getattr(checked, name), folder / f"{name}.parquet", compression="zstd")
        for name in BESIDE:
            if (table := getattr(checked, name)) is not None:
                pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        write_extra(folder, checked.extra, {name: getattr(checked, name) for name in SCHEMAS})
    return open_artifact(out, "dataset")


def _ids(checked: Tables, config: Mapping[str, Any]) -> dict[str, str]:
    named = {"items": checked.items, "users": checked.users, "queries": checked.queries}
    return id_kinds(named, config.get("ids", {}))


def held(config: Mapping[str, Any]) -> str:
    """How many rows of each table a dataset has: ``250 items, 600 users, 9,000 events``.

    Args:
        config: of the artifact.
    """
    rows = {table: config["rows"].get(table, 0) for table in SCHEMAS}
    return ", ".join(
        f"{count:,} {table}" for table, count in rows.items() if count or table in ("items", "events")
    )


def noticed(config: Mapping[str, Any]) -> list[str]:
    """What its reader should know of a dataset, in sentences: what was set aside, and clicks that label nothing.

    Args:
        config: of the artifact.
    """
    lines = [*config.get("said", [])]
    for table, rules in config["quarantined"].items():
        kinds = ", ".join(f"{rows:,} {rule}" for rule, rows in rules.items())
        lines.append(f"{table}: {sum(rules.values()):,} set aside, in quarantine.parquet: {kinds}")
        if table == "events" and {SEVERAL_USERS, SEVERAL_TIMES} & set(rules):
            lines.append(SCOPE)
    if said := untyped(config):
        lines.append(said)
    for entity, rows in config.get("merged", {}).items():
        lines.append(
            f"{rows:,} row{'s' if rows > 1 else ''} of {EXTRA[entity]} replaced by a later one of the same id"
        )
    for table, ids in config.get("unlisted", {}).items():
        lines.append(f"{ids:,} of the {table} are known by the log alone, no table lists them")
    if left := config.get("left_out"):
        lines.append(f"a log of this size is kept without these columns: {', '.join(left)}")
    if rare := config.get("rare_properties"):
        lines.append(f"{rare:,} properties that few items have are left out")
    if returned := config.get("returned"):
        lines.append(f"{returned:,} rows of the log take something back (a number below zero), left out")
    for reason, pictures in config.get("pictures", {}).items():
        lines.append(f"{pictures:,} pictures {reason}")
    if said := unexplained(config.get("clicks", {})):
        lines.append(said)
    return lines


def untyped(config: Mapping[str, Any]) -> str:
    """Which types of events ``moon.toml`` does not list, and what to do; empty if it lists all.

    Args:
        config: of an importer, or of the artifact.
    """
    found = config.get("unlisted_types", {})
    if not found:
        return ""
    first = ", ".join(f"{text[:40]!r} ({rows:,} rows)" for text, rows in list(found.items())[:3])
    return (
        f"{len(found)} types of events are not among 'types' of moon.toml, first {first}: list them there as "
        f"{', '.join(EVENT_TYPES)} or ignore"
    )


@dataclass(frozen=True)
class Dataset:
    """An opened dataset artifact."""

    artifact: Artifact

    @classmethod
    def open(cls, artifact: Artifact) -> Dataset:
        """Open an artifact of kind "dataset"."""
        return cls(artifact)

    def _read(self, name: str) -> pa.Table:
        table = pq.read_table(self.artifact.file(f"{name}.parquet"))
        return completed(table, SCHEMAS[name]) if name in SCHEMAS else table

    @property
    def id_kinds(self) -> Kinds:
        """What the shop's ids are; earlier releases knew integers only."""
        return {field: IdKind(kind) for field, kind in self.artifact.config.get("ids", ALL_INT64).items()}

    @cached_property
    def items(self) -> pa.Table:
        """The catalogue (ITEMS)."""
        return self._read("items")

    @cached_property
    def images(self) -> pa.Table:
        """Pictures by content hash (IMAGES)."""
        return self._read("images")

    @cached_property
    def users(self) -> pa.Table:
        """Users (USERS)."""
        return self._read("users")

    @cached_property
    def events(self) -> pa.Table:
        """All events (EVENTS)."""
        return self._read("events")

    @cached_property
    def queries(self) -> pa.Table:
        """Text and image searches (QUERIES)."""
        return self._read("queries")

    @cached_property
    def judgements(self) -> pa.Table:
        """Graded query-item relevance (JUDGEMENTS)."""
        return self._read("judgements")

    @cached_property
    def quarantine(self) -> pa.Table:
        """Refused rows and the rules they broke (QUARANTINE)."""
        return self._read("quarantine")

    @cached_property
    def extra(self) -> dict[str, pa.Table]:
        """Left-over columns of the source by entity (``dataset.extra``)."""
        files = {entity: self.artifact.file(extra_file(entity)) for entity in EXTRA}
        return {entity: pq.read_table(path) for entity, path in files.items() if path.exists()}

    @cached_property
    def truth(self) -> pa.Table | None:
        """True click probability of each impression; only the simulated marketplace has it."""
        return self._read("truth") if self.artifact.file("truth.parquet").exists() else None

    @cached_property
    def propensities(self) -> pa.Table | None:
        """How likely each impression of a randomly drawn slate was; None where no slate was drawn at random."""
        return self._read("propensities") if self.artifact.file("propensities.parquet").exists() else None

    @cached_property
    def _image_rows(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.images.column("image_id").to_pylist())}

    def image_bytes(self, image_id: str | None) -> bytes | None:
        """The encoded picture with this id; None if there is none."""
        row = self._image_rows.get(image_id) if image_id is not None else None
        return None if row is None else self.images.column("bytes")[row].as_py()
