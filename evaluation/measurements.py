"""Read and write metrics.json: {name: {"value": number, "n": rows, "split": part of the data}}.

An entry with a 95 % interval has "low" and "high" as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from evaluation.metrics import Measurement
from moonstore.disk import make_folder
from moonstore.files import write_json


def write_measurements(path: Path, measurements: Iterable[Measurement]) -> list[Measurement]:
    """Write all measurements to ``path`` at once (temporary file, then rename) and return them.

    Raises:
        ValueError: a name occurs twice. (A value that is not finite cannot become a Measurement.)
    """
    kept = list(measurements)
    content: dict[str, dict[str, float | int | str]] = {}
    for one in sorted(kept, key=lambda one: one.name):
        if one.name in content:
            raise ValueError(f"{path}: {one.name} was measured twice; names must be distinct")
        content[one.name] = {"n": int(one.n), "split": one.split, "value": float(one.value)}
        if one.low is not None and one.high is not None:
            content[one.name] |= {"low": float(one.low), "high": float(one.high)}
    make_folder(path.parent)
    write_json(path, content)
    return kept


def read_measurements(path: Path) -> dict[str, Measurement]:
    """The measurements of a metrics.json, by name.

    Raises:
        ValueError: not JSON, a name occurs twice, a value is not finite, or an entry has other keys than
            value, n and split, and perhaps low and high.
    """
    try:
        content = json.loads(path.read_text(), object_pairs_hook=_distinct)
    except ValueError as error:
        raise ValueError(f"{path}: {error}. Run 'moon evaluate' to write it again.") from None
    measurements = {}
    for name, entry in content.items():
        if not isinstance(entry, dict) or set(entry) - {"low", "high"} != {"value", "n", "split"}:
            raise ValueError(f"{path}: {name}: expected keys value, n, split, found {entry!r}")
        interval = (entry.get("low"), entry.get("high"))
        measurements[name] = Measurement(
            name, float(entry["value"]), int(entry["n"]), str(entry["split"]), *interval
        )
    return measurements


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"measured twice: {sorted({name for name in names if names.count(name) > 1})[:3]}")
    return content
