"""What the ranker reads of a frame, and what it learned about those columns from the training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dataset.contracts import DataError
from feature_repo.frame import Frame, StoredRequests
from ranker.inputs.constants import filled
from ranker.inputs.hashing import hash_column, table_rows

REQUEST_IDS = ("user_id", "query_id", "age_band", "segment")
CANDIDATE_IDS = ("category", "category_top", "spu")
BAG = "attributes"
ITEM = "item_id"
REQUEST_NUMBERS = ("user_events", "user_found")
CANDIDATE_NUMBERS = (
    "price", "age_s", "shown_7d", "positive_7d", "shown_28d", "positive_28d", "shown_all", "positive_all",
    "rate_all", "item_found",
)  # fmt: skip
LINEAR = ("user_found", "item_found", "rate_all")  # all other numbers, but matches, enter as log(1 + x)
MATCH = "match_"
HEAVY_TAILED = {"match_cooccurrence": 1e-3}  # matches that enter as log(1 + x / unit); the others are bounded
CHUNK_REQUESTS = 8192


@dataclass(frozen=True)
class Inputs:
    """How columns become table rows and numbers; part of every model's configuration.

    Attributes:
        rows: table name -> number of its rows, from the distinct ids of the training data.
        scale: number -> (mean, deviation) after its transform, over the training rows.
        matches: names of the ``match_*`` columns of the candidates, sorted.
        history: most behaviours per request.
        position_share: fraction of the training candidates logged at each position; empty when none was.
    """

    rows: Mapping[str, int]
    scale: Mapping[str, tuple[float, float]]
    matches: tuple[str, ...]
    history: int
    position_share: tuple[float, ...]

    @property
    def candidate_numbers(self) -> tuple[str, ...]:
        """Names of the candidates' numbers, in the order of the model's inputs."""
        return CANDIDATE_NUMBERS + self.matches

    @classmethod
    def from_json(cls, content: Mapping) -> Inputs:
        """The inverse of ``dataclasses.asdict`` through JSON; unknown or missing keys raise TypeError."""
        known = dict(content)
        known["scale"] = {name: (float(mean), float(std)) for name, (mean, std) in known["scale"].items()}
        known["matches"] = tuple(known["matches"])
        known["position_share"] = tuple(known["position_share"])
        return cls(**known)


def number(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column after its transform, float32, not yet standardised.

    Raises:
        DataError: a value is null or not finite.
    """
    column = table[name].combine_chunks()
    values = column.cast(pa.float32()).to_numpy(zero_copy_only=False).astype(np.float32)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values))
        raise DataError(
            f"frame column {name}: {len(bad)} of {len(values)} values are null or not finite "
            f"(rows {bad[:3].tolist()}). Check the store with 'moon store'."
        )
    if name in HEAVY_TAILED:
        return np.log1p(np.maximum(values, 0) / HEAVY_TAILED[name])
    if name in LINEAR or name.startswith(MATCH):
        return values
    return np.log1p(np.maximum(values, 0))


def require_columns(table: pa.Table, names: tuple[str, ...], where: str) -> None:
    """Refuse a table without the columns a model was trained with.

    Raises:
        DataError: naming all missing columns.
    """
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(names)} expected columns are missing ({', '.join(missing)}); "
            f"found {', '.join(table.column_names)}. Read the frame with the feature service of this model."
        )


def matches_of(table: pa.Table) -> tuple[str, ...]:
    """The match columns of a candidate table, sorted."""
    return tuple(sorted(name for name in table.column_names if name.startswith(MATCH)))


def learn_inputs(train: StoredRequests, history: int) -> tuple[Inputs, np.ndarray]:
    """Count distinct ids and measure numbers over the training requests, in one pass.

    Returns:
        what the models need to know, and int64 [R] candidates of each request.

    Raises:
        DataError: no training requests, or columns are missing.
    """
    if not len(train):
        raise DataError("expected training requests, found none. Run 'moon split' with more events.")
    matches = matches_of(train.take(0, 1).candidates)
    distinct: dict[str, list[np.ndarray]] = {}
    moments: dict[str, np.ndarray] = {}
    places, counts = np.zeros(0, dtype=np.int64), []
    for frame in map(filled, _chunks(train)):
        require_columns(frame.requests, REQUEST_IDS + REQUEST_NUMBERS, "requests")
        require_columns(
            frame.candidates, (ITEM, BAG) + CANDIDATE_IDS + CANDIDATE_NUMBERS + matches, "candidates"
        )
        for name, hashes in _hashes(frame):
            distinct.setdefault(name, []).append(np.unique(hashes))
        for table, names in (
            (frame.requests, REQUEST_NUMBERS),
            (frame.candidates, CANDIDATE_NUMBERS + matches),
        ):
            for name in names:
                values = number(table, name).astype(np.float64)
                moments[name] = moments.get(name, np.zeros(3)) + [
                    len(values),
                    values.sum(),
                    np.square(values).sum(),
                ]
        if "position" in frame.candidates.column_names and len(frame.candidates):
            logged = np.bincount(frame.candidates["position"].drop_null().to_numpy(), minlength=len(places))
            places = logged + np.pad(places, (0, len(logged) - len(places)))
        counts.append(np.diff(frame.offsets))
    inputs = Inputs(
        rows={name: table_rows(len(np.unique(np.concatenate(parts)))) for name, parts in distinct.items()},
        scale={name: _scale(*sums) for name, sums in moments.items()},
        matches=matches,
        history=history,
        position_share=tuple((places / max(places.sum(), 1)).tolist()),
    )
    return inputs, np.concatenate(counts)


def _hashes(frame: Frame) -> Iterator[tuple[str, np.ndarray]]:
    for name in REQUEST_IDS:
        yield name, hash_column(frame.requests[name].combine_chunks().drop_null())
    for name in CANDIDATE_IDS:
        yield name, hash_column(frame.candidates[name].combine_chunks().drop_null())
    yield BAG, hash_column(frame.candidates[BAG].combine_chunks().flatten())
    items = frame.candidates[ITEM].to_numpy()
    yield ITEM, np.concatenate([items, frame.history.item_id])


def _chunks(train: StoredRequests) -> Iterator[Frame]:
    for start in range(0, len(train), CHUNK_REQUESTS):
        yield train.take(start, min(start + CHUNK_REQUESTS, len(train)))


def _scale(count: float, total: float, squares: float) -> tuple[float, float]:
    mean = total / max(count, 1)
    deviation = float(np.sqrt(max(squares / max(count, 1) - mean * mean, 0)))
    return float(mean), deviation if deviation > 1e-6 else 1.0
