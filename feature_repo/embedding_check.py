"""Check whether vectors are fit to serve: coverage, width, anisotropy, and overlap of nearest neighbours.

That they are finite and of unit norm is checked wherever vectors are read (``feature_repo.vectors``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.jagged import owners
from feature_repo.vectors import VectorTable

# Limits from experience here: good embeddings had a mean cosine of .26 and .5, damaged but still usable ones .86.
# TIMES_CHANCE is relative to the overlap of vectors shuffled among the items.
COVERAGE, ANISOTROPY, TIMES_CHANCE = 0.99, 0.95, 3.0
NEIGHBOURS = 10
LEAST_COMMON = 1000  # items; below, the overlap is mostly noise
QUERIES, POOL = 1000, 10_000  # most items sampled from those in both embeddings


class EmbeddingError(ValueError):
    """Vectors that are not fit to serve."""


@dataclass(frozen=True)
class Examined:
    """Measurements of the item vectors of an embedding.

    Attributes:
        items: number of items with a vector.
        width: of the vectors.
        coverage: fraction of the items with content that have a vector.
        anisotropy: mean cosine of two different items; 1: all point the same way.
        common: number of items that the previous embedding has too; None: there is no previous one.
        overlap: mean fraction of an item's 10 nearest neighbours that are the same as before; None with fewer
            than 1,000 common items.
        chance: the overlap expected by chance.
    """

    items: int
    width: int
    coverage: float
    anisotropy: float
    common: int | None = None
    overlap: float | None = None
    chance: float | None = None

    def figures(self) -> dict[str, float | int | None]:
        """The attributes by name."""
        return asdict(self)


def examine(vectors: VectorTable, expected: np.ndarray, width: int, before: VectorTable | None) -> Examined:
    """Measure the item vectors of an embedding before it serves.

    Args:
        vectors: of the items.
        expected: int64, the items that should have one (``with_content``).
        width: of the encoder.
        before: the embedding that serves now, of any width.

    Raises:
        EmbeddingError: figures are beyond their limits; lists all of them, with the first offenders.
    """
    missing = expected[vectors.rows(expected) < 0]
    coverage = 1 - len(missing) / max(len(expected), 1)
    found = Examined(len(vectors.ids), vectors.width, coverage, anisotropy(vectors.matrix))
    problems = []
    if coverage < COVERAGE:
        problems.append(
            f"{len(missing)} of {len(expected)} items with content have no vector (item_id {missing[:3].tolist()}): "
            f"coverage {coverage:.4f}, expected at least {COVERAGE}"
        )
    if vectors.width != width:
        problems.append(f"vectors of width {vectors.width}, expected {width}, the encoder's")
    if found.anisotropy > ANISOTROPY:
        problems.append(
            f"the space has collapsed: mean cosine of two items {found.anisotropy:.4f}, expected at most {ANISOTROPY}"
        )
    if before is not None:
        ids = np.intersect1d(vectors.ids, before.ids, assume_unique=True)
        found = replace(found, common=len(ids))
        if len(ids) >= LEAST_COMMON:
            asked, kept, chance = overlap(vectors, before, ids, seed=0)
            found = replace(found, overlap=float(kept.mean()), chance=chance)
            if kept.mean() < TIMES_CHANCE * chance:
                lost = asked[kept == 0]
                problems.append(
                    f"items have different neighbours than before: {len(lost)} of {len(asked)} kept none (item_id "
                    f"{lost[:3].tolist()}), overlap {kept.mean():.4f}, expected at least {TIMES_CHANCE * chance:.4f}"
                )
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise EmbeddingError(
            f"{len(vectors.ids)} vectors are not fit to serve:{listed}\nRun 'moon embed' again."
        )
    return found


def with_content(items: pa.Table) -> np.ndarray:
    """Ids of the items that have a picture or text, int64: those that an encoder embeds.

    Args:
        items: rows of ``dataset.contracts.ITEMS``.
    """
    full = items["image_id"].is_valid()
    words = (items["title"], items["description"], pc.binary_join(items["category"], " "))
    for column in words:
        full = pc.or_(full, pc.fill_null(_said(column), False))
    attributes = items["attributes"].combine_chunks()
    row = owners(attributes.offsets.to_numpy())
    named = pc.and_(pc.greater(pc.binary_length(attributes.keys), 0), _said(attributes.items))
    first = attributes.offsets[0].as_py()
    said = pc.fill_null(named, False).to_numpy(zero_copy_only=False)[first : first + len(row)]
    has = full.to_numpy() | np.isin(np.arange(len(items)), row[said])
    return items["item_id"].to_numpy()[has]


def anisotropy(matrix: np.ndarray) -> float:
    """Mean cosine of two different rows: 0 where directions are spread evenly, 1 where all point the same way.

    Args:
        matrix: float32 of shape (M, D), unit rows; 0 with fewer than two.
    """
    count = len(matrix)
    if count < 2:
        return 0.0
    total = matrix.sum(axis=0, dtype=np.float64)
    with_itself = np.einsum("md,md->", matrix, matrix, dtype=np.float64)
    return float((total @ total - with_itself) / (count * (count - 1)))


def overlap(
    one: VectorTable, other: VectorTable, ids: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fraction of an item's nearest neighbours that two embeddings agree on.

    Args:
        one, other: embeddings, of any widths.
        ids: int64 ascending, items of both.
        seed: of the sample.

    Returns:
        the sampled items int64 (Q), the fraction of their 10 nearest that agree float64 (Q), and the fraction
        expected to agree by chance.
    """
    rng = np.random.default_rng(seed)
    pool = rng.permutation(ids)[:POOL]
    asked = min(QUERIES, len(pool))
    near = [_nearest(table.gather(pool)[0], asked) for table in (one, other)]
    agree = (near[0][:, :, None] == near[1][:, None, :]).any(axis=2).mean(axis=1)
    return pool[:asked], agree, NEIGHBOURS / (len(pool) - 1)


def _nearest(matrix: np.ndarray, asked: int) -> np.ndarray:
    """Rows of the 10 nearest neighbours of each of the first ``asked`` rows, itself excluded: int64 (asked, 10)."""
    cosine = matrix[:asked] @ matrix.T
    cosine[np.arange(asked), np.arange(asked)] = -np.inf
    return np.argpartition(cosine, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]


def _said(words: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    return pc.greater(pc.binary_length(pc.utf8_trim_whitespace(words)), 0)
