"""Check whether the store is fit to serve: coverage, freshness, nulls, drift and online/offline parity of each view.

For a sample of entities the online rows are compared, bit by bit, with what materializing the same interval would
write now. A row that is newer online (an event was pushed since) is counted separately, not as a mismatch. A check
without problems becomes the baseline that the next one measures drift from. On-demand views are computed from both
sides of what they read, so that their functions meet what is really stored, nulls included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView, OnDemandFeatureView

from feature_repo.both_sides import both_sides, computed
from feature_repo.extras import read_extras
from feature_repo.online import UNREACHABLE, StoreUnavailable
from feature_repo.sources import DATA
from feature_repo.store import open_store
from moonstore.batch import Batch
from moonstore.decode import Column
from moonstore.disk import make_folder
from moonstore.errors import StoreError
from moonstore.files import write_json
from moonstore.matrix import Matrix
from run.artifacts import read_json

COVERAGE, PARITY, NULLS, DRIFT = 0.99, 1.0, 0.9, 0.25  # at least, at least, at most, at most
BINS = 10
LEAST_ROWS = 500  # below, drift is mostly sampling noise
HEAD = ("view", "entities", "coverage", "parity", "newer", "age h", "most nulls", "most drift")
CHECKS = "checks"  # folder of the baselines
Baseline = dict[
    str, dict[str, list[float]]
]  # feature -> bin edges ("edges") and fractions of the rows ("shares")


@dataclass(frozen=True)
class Finding:
    """What the check measured of one view.

    Attributes:
        view: its name.
        entities: number of entities with an offline row by the end of the last load; of an on-demand view, number of
            rows it was computed for.
        coverage: fraction of the sampled entities that are online.
        parity: fraction of the sampled entities online, and not newer there, with every value equal to offline.
        newer: number of sampled entities whose online row is newer than the load.
        age_hours: from the newest event time to the end of the last load.
        nulls: the largest fraction of nulls, and its feature; of a left-over column that is off they are no fault.
        drift: the largest population stability index of a numeric feature since the last check without problems, and
            its feature; None without such a check or with too few rows.
        wrong: feature -> number of rows that differ.
        problems: a sentence for each figure beyond its limit.
    """

    view: str
    entities: int
    coverage: float | None = None
    parity: float | None = None
    newer: int = 0
    age_hours: float | None = None
    nulls: tuple[float, str] | None = None
    drift: tuple[float, str] | None = None
    wrong: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def check_store(store_dir: Path) -> list[Finding]:
    """Check every view of the store at ``store_dir`` as of its last load, the on-demand ones last.

    Args:
        store_dir: the run's store.

    Raises:
        StoreError: there is no store.
        StoreUnavailable: the online store does not answer.
    """
    store = open_store(store_dir)
    views = sorted(store.list_feature_views(), key=lambda view: str(view.name))
    on_demand = sorted(store.list_on_demand_feature_views(), key=lambda view: str(view.name))
    try:
        return [
            *(_examine(store, view) for view in views),
            *(_examine_on_demand(store, view) for view in on_demand),
        ]
    except UNREACHABLE as error:
        raise StoreUnavailable(f"the online store does not answer: {error}") from error


def to_text(findings: list[Finding]) -> str:
    """A table with a row per view, followed by the problems."""
    rows = [HEAD, *(tuple(cells(one)) for one in findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    problems = [f"{one.view}: {problem}" for one in findings for problem in one.problems]
    return "\n".join([*lines, "", *(problems or ["no problems"])])


def cells(one: Finding) -> Iterator[str]:
    """A view's row of the table, in the order of ``HEAD``."""
    yield one.view
    yield f"{one.entities:,}"
    yield "-" if one.coverage is None else f"{one.coverage:.3f}"
    yield "-" if one.parity is None else f"{one.parity:.3f}"
    yield str(one.newer)
    yield "-" if one.age_hours is None else f"{one.age_hours:.1f}"
    for pair in (one.nulls, one.drift):
        yield "-" if pair is None else f"{pair[0]:.2f} {pair[1]}"


def _examine(store: FeatureStore, view: FeatureView) -> Finding:
    repository = Path(store.config.repo_path or ".")
    end = view.most_recent_end_time  # recorded by Feast for every engine
    if end is None:
        return Finding(view.name, 0, problems=("never loaded: run 'moon materialize'",))
    path = repository / DATA / CHECKS / f"{view.name}.json"
    sides = both_sides(store, view, end)
    if sides is None:
        return Finding(view.name, 0)
    batch, online, newer = sides.batch, sides.online, sides.newer
    same, wrong = _compare(online, sides.offline, online.found & ~newer)
    compared = int((online.found & ~newer).sum())
    finding = Finding(
        view=view.name,
        entities=len(batch),
        coverage=float(online.found.mean()),
        parity=float(same.sum() / compared) if compared else None,
        newer=int(newer.sum()),
        age_hours=(end.timestamp() - batch.event_us.max() / 1e6) / 3600,
        nulls=_nulls(batch, {one.field for one in read_extras(repository) if not one.is_on}),
        drift=_drift(_load(path), batch),
        wrong=wrong,
    )
    problems = tuple(_problems(finding, view.ttl))
    if not problems:
        _save(path, _baseline(batch))
    return replace(finding, problems=problems)


def _examine_on_demand(store: FeatureStore, view: OnDemandFeatureView) -> Finding:
    try:
        found = computed(store, view)
    except StoreError as error:
        return Finding(view.name, 0, problems=(str(error),))
    if isinstance(found, str):
        return Finding(view.name, 0, problems=(found,))
    rows = np.flatnonzero(~found.newer)
    wrong: dict[str, int] = {}
    same = np.ones(len(rows), dtype=bool)
    for name, offline in found.offline.items():
        sides = zip(found.online[name].take(rows).to_pylist(), offline.take(rows).to_pylist(), strict=True)
        equal = np.array([one == other for one, other in sides], dtype=bool)
        if not equal.all():
            wrong[name] = int((~equal).sum())
        same &= equal
    nulls = max((column.null_count / len(found.newer), name) for name, column in found.online.items())
    finding = Finding(
        view=view.name,
        entities=len(found.newer),
        parity=float(same.mean()) if len(rows) else None,
        newer=int(found.newer.sum()),
        nulls=None if found.is_asked else nulls,
        wrong=wrong,
    )
    return replace(finding, problems=tuple(_problems(finding)))


def _nulls(batch: Batch, unread: set[str]) -> tuple[float, str] | None:
    """The largest fraction of nulls of the features that are read, and its feature; None: none is."""
    read = {name: column for name, column in batch.features.items() if name not in unread}
    return max(((column.null_count / len(column), name) for name, column in read.items()), default=None)


def _load(path: Path) -> Baseline:
    again = "Remove it: the next check without problems writes another one."
    found: Baseline = read_json(path, again) if path.exists() else {}
    return found


def _save(path: Path, baseline: Baseline) -> None:
    make_folder(path.parent)
    write_json(path, baseline)


def _compare(
    online: Matrix, expected: dict[str, Column], rows: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
    """Which of ``rows`` (a mask) are equal in every feature, and per feature the number that differ."""
    right, wrong = rows.copy(), {}
    for name, column in expected.items():
        found = online.columns[name]
        same = found.valid == column.valid
        for row in np.flatnonzero(rows & found.valid & column.valid).tolist():
            one, other = np.asarray(found.values[row]), np.asarray(column.values[row])
            same[row] = one.shape == other.shape and (
                np.array_equal(one, other) if one.dtype.kind in "OUS" else one.tobytes() == other.tobytes()
            )
        if (rows & ~same).any():
            wrong[name] = int((rows & ~same).sum())
        right &= same
    return right, wrong


def _drift(before: Baseline, batch: Batch) -> tuple[float, str] | None:
    """The largest population stability index between the last check without problems and now.

    PSI = sum over bins of (p - q) ln(p / q), over the deciles of the baseline, each fraction at least 1e-4; by
    convention a value above .25 means a changed population.
    """
    found = []
    for name, values in _numbers(batch):
        if name in before and len(values) >= LEAST_ROWS:
            edges, q = np.array(before[name]["edges"]), np.array(before[name]["shares"])
            p = _fractions(values, edges)
            found.append((float(((p - q) * np.log(p / q)).sum()), name))
    return max(found, default=None)


def _baseline(batch: Batch) -> Baseline:
    """Deciles of every numeric feature, and the fraction of rows in each bin between them."""
    found: Baseline = {}
    for name, values in _numbers(batch):
        if len(values) >= LEAST_ROWS:
            edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
            found[name] = {"edges": edges.tolist(), "shares": _fractions(values, edges).tolist()}
    return found


def _numbers(batch: Batch) -> Iterator[tuple[str, np.ndarray]]:
    for name, column in batch.features.items():
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            values = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan")).to_numpy()
            yield name, values[np.isfinite(values)]


def _fractions(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    return np.maximum(counts / len(values), 1e-4)


def _problems(found: Finding, ttl: timedelta | None = None) -> Iterator[str]:
    if found.coverage is not None and found.coverage < COVERAGE:
        yield f"{found.coverage:.1%} of the entities are online, expected {COVERAGE:.0%}: run 'moon materialize'"
    if found.parity is not None and found.parity < PARITY:
        features = ", ".join(f"{name} ({count})" for name, count in found.wrong.items())
        yield f"{1 - found.parity:.1%} of the rows differ from offline, in {features}: run 'moon materialize'"
    if ttl and found.age_hours is not None and found.age_hours * 3600 > ttl.total_seconds():
        yield f"the newest row is {found.age_hours:.0f} hours old, its time to live is {ttl}"
    if found.nulls is not None and found.nulls[0] > NULLS:
        yield f"{found.nulls[0]:.0%} of {found.nulls[1]} are null"
    if found.drift is not None and found.drift[0] > DRIFT:
        yield f"{found.drift[1]} has drifted: stability index {found.drift[0]:.2f}, expected at most {DRIFT}"
