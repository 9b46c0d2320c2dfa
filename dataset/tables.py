"""The dataset artifact: canonical tables on disk, read lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset.checks import check, quarantine_counts
from dataset.contracts import SCHEMAS, DataError, Tables, completed
from dataset.order import sequenced
from dataset.slates import SCOPE, SEVERAL_TIMES, SEVERAL_USERS, clicks_explained, unexplained
from run.artifacts import Artifact, open_artifact, write_artifact

BESIDE = ("truth", "propensities")  # tables about impressions that not every source has


def write_dataset(out: Path, tables: Tables, config: Mapping[str, Any]) -> Artifact:
    """Check the tables, move offending rows to quarantine, and write the artifact of kind "dataset".

    Args:
        out: where to write.
        tables: canonical tables.
        config: "name", "protocol" ("time", "holdout" or "none": how the split treats the events), and any other
            provenance. Added here: "rows" of each table; "quarantined" rows by table and rule; "ties", what orders
            events with equal times (``dataset.order``); "clicks", how many label an impression, and why others do not
            (``dataset.slates``).

    Raises:
        DataError: a table breaks its schema, too many of its rows would be quarantined, or no row is left.
    """
    checked = check(tables)
    if checked.events.num_rows == 0 and config["protocol"] != "none":
        raise DataError(
            f"events: expected some for protocol {config['protocol']!r}, found 0 rows. "
            f"Give the source's behaviour, or use protocol 'none', then run 'moon dataset' again."
        )
    counts = {name: getattr(checked, name).num_rows for name in SCHEMAS}
    complete = {**config, "rows": counts, "quarantined": quarantine_counts(checked.quarantine)}
    if checked.events.num_rows:
        events, complete["ties"] = sequenced(checked.events, checked.items)
        checked = replace(checked, events=events)
        if clicks := clicks_explained(events):
            complete["clicks"] = clicks
    with write_artifact(out, "dataset", complete) as folder:
        for name in (*counts, "quarantine"):
            pq.write_table(getattr(checked, name), folder / f"{name}.parquet", compression="zstd")
        for name in BESIDE:
            if (table := getattr(checked, name)) is not None:
                pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
    return open_artifact(out, "dataset")


def noticed(config: Mapping[str, Any]) -> list[str]:
    """What its reader should know of a dataset, in sentences: what was set aside, and clicks that label nothing.

    Args:
        config: of the artifact.
    """
    lines = []
    for table, rules in config["quarantined"].items():
        kinds = ", ".join(f"{rows:,} {rule}" for rule, rows in rules.items())
        lines.append(f"{table}: {sum(rules.values()):,} set aside, in quarantine.parquet: {kinds}")
        if table == "events" and {SEVERAL_USERS, SEVERAL_TIMES} & set(rules):
            lines.append(SCOPE)
    if said := unexplained(config.get("clicks", {})):
        lines.append(said)
    return lines


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
