"""The results table: a row per encoder, a column per measurement, mean and deviation over seeds in each cell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.measurements import read_measurements
from evaluation.metrics import Measurement

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """One measurement of one encoder over its seeds.

    Attributes:
        mean: over seeds.
        sd: standard deviation over seeds (n - 1); None with one seed.
        seeds: number of seeds.
        n: ``Measurement.n``, the same for each seed.
    """

    mean: float
    sd: float | None
    seeds: int
    n: int

    def __str__(self) -> str:
        digits = 3 if abs(self.mean) < 100 else 0
        mean = f"{self.mean:,.{digits}f}"
        return mean if self.sd is None else f"{mean} ± {self.sd:,.{digits}f}"


@dataclass(frozen=True)
class EncoderTable:
    """Measurements of each encoder, one mapping per seed."""

    rows: dict[str, list[dict[str, Measurement]]]

    @classmethod
    def read(cls, files: Mapping[str, Sequence[Path]]) -> EncoderTable:
        """Read what ``write_measurements`` wrote.

        Args:
            files: name of the row -> its measurement files, one per seed.

        Raises:
            ValueError: a file does not contain measurements.
        """
        return cls({name: [read_measurements(path) for path in paths] for name, paths in files.items()})

    def cell(self, row: str, name: str) -> Cell | None:
        """The measurement ``name`` of an encoder; None where no seed measured it.

        Raises:
            ValueError: n differs between seeds, or some seeds lack the measurement.
        """
        found = [one[name] for one in self.rows[row] if name in one]
        if not found:
            return None
        sizes = {one.n for one in found}
        if len(found) < len(self.rows[row]) or len(sizes) > 1:
            raise ValueError(
                f"{row}: expected {name} in each of {len(self.rows[row])} seeds on the same n, found it in "
                f"{len(found)} with n {sorted(sizes)}. Measure every seed on one benchmark split."
            )
        values = np.array([one.value for one in found])
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        return Cell(float(values.mean()), sd, len(values), sizes.pop())

    def markdown(self, columns: Mapping[str, str], rows: str = "encoder") -> str:
        """A Markdown table with the encoders in their order; ``–`` where a task does not apply.

        Args:
            columns: measurement -> its heading; one that no encoder has is left out.
            rows: heading of the first column.
        """
        measured = {name for seeds in self.rows.values() for one in seeds for name in one}
        columns = {name: label for name, label in columns.items() if name in measured}
        lines = [
            f"| {rows} | " + " | ".join(columns.values()) + " |",
            "|---|" + "---|" * len(columns),
        ]
        for row in self.rows:
            cells = (self.cell(row, name) for name in columns)
            texts = (MISSING if cell is None else str(cell) for cell in cells)
            lines.append(f"| {row} | " + " | ".join(texts) + " |")
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Every cell of every encoder: {row: {measurement: {mean, sd, seeds, n}}}."""
        content = {
            row: {
                name: vars(cell)
                for name in sorted({name for one in seeds for name in one})
                if (cell := self.cell(row, name)) is not None
            }
            for row, seeds in self.rows.items()
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
