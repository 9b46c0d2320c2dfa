"""What ``moon embeddings`` does: publish a generation, activate it, roll back, and remove old ones.

Vectors are stored in Feast as versioned views; the models trained on them are sealed by ``run.generations``. Feast
is written first and the file that the service watches last, so that after a killed step the old generation still
serves and the step can be repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moon.failures import names_own_ids
from run import generations
from run.artifacts import Artifact, open_artifact
from run.generations import Generation

if TYPE_CHECKING:
    from moonstore.engine import Report

COLUMNS: dict[str, Callable[[Generation], Any]] = {
    "generation": lambda one: one.number,
    "published": lambda one: one.published[:16].replace("T", " "),
    "recipe": lambda one: one.figures["recipe"],
    "encoder": lambda one: one.artifacts["encoder"][:8],
    "embedding": lambda one: one.artifacts["embedding"][:8],
    "items": lambda one: f"{one.figures['items']:,}",
    "width": lambda one: one.figures["width"],
    "coverage": lambda one: f"{one.figures['coverage']:.4f}",
    "anisotropy": lambda one: f"{one.figures['anisotropy']:.3f}",
    "overlap": lambda one: _overlap(one.figures),
}


@names_own_ids
def publish(run: Path) -> Generation:
    """Check the artifacts of the run folder and seal them as a generation, unless they already are one.

    Raises:
        ArtifactError: they are missing, damaged, or were not made from one another and from the run's data.
        EmbeddingError: the vectors fail the check; nothing is published.
        StoreError: the run has no store.
    """
    from dataset.tables import Dataset
    from encoder.encode import width_of
    from feature_repo.embedding_check import examine, with_content
    from feature_repo.vectors import Vectors

    artifacts, data = _open(run, run)
    before = generations.current(run)
    vectors = Vectors.open(artifacts["embedding"])
    figures = examine(
        vectors,
        with_content(Dataset.open(data["dataset"]).items),
        width_of(artifacts["encoder"]),
        None if before is None else Vectors.open(_embedding(run, before.generation)),
    ).figures()
    put_online(run, artifacts["embedding"])
    known = generations.published(run, artifacts)
    figures["recipe"] = artifacts["encoder"].config["recipe"]
    figures["before"] = None if before is None else before.generation
    return known or generations.seal(run, artifacts, figures)


@names_own_ids
def activate(run: Path, number: int) -> Generation:
    """Make a generation active: feature services read its vectors, the service its artifacts.

    Raises:
        GenerationError: there is none with this number.
        ArtifactError: its artifacts are damaged, or not of the run's data any more.
    """
    generation = generations.find(run, number)
    _read_by_services(run, number)
    generations.point(run, number)
    return generation


@names_own_ids
def rollback(run: Path) -> Generation:
    """Return to the generation that was active before.

    Raises:
        GenerationError: there is none.
        ArtifactError: its artifacts are damaged, or not of the run's data any more.
    """
    number = generations.before(run)
    if number is not None:
        _read_by_services(run, number)
    return generations.find(run, generations.point_back(run).generation)


def collect(run: Path) -> list[str]:
    """Remove all generations but the active one and the one a rollback returns to, and the vectors only they read.

    The run folder's own artifacts, and their vectors, stay.

    Returns:
        what was removed, in words.

    Raises:
        GenerationError: none is active.
    """
    from feature_repo.embeddings import drop_embeddings

    active = generations.serving(run).generation
    kept = {active, generations.before(run)}
    leaving = [one.number for one in generations.generations(run) if one.number not in kept]
    generations.remove(run, leaving)
    needed = {one.artifacts["embedding"] for one in generations.generations(run)}
    if (run / "embedding").exists():
        needed.add(open_artifact(run / "embedding", "embedding").id)
    dropped = drop_embeddings(run / "store", needed)
    return [f"generation {number}" for number in leaving] + [
        f"vectors version {one.version} of embedding {one.artifact_id}" for one in dropped
    ]


def table(run: Path) -> str:
    """All generations, a line each, and which is active."""
    found, now = generations.generations(run), generations.current(run)
    if not found:
        return "no generation yet: run 'moon embeddings publish'"
    rows = [list(COLUMNS), *([str(cell(one)) for cell in COLUMNS.values()] for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    back = generations.before(run)
    for line, one in enumerate(found, start=1):
        if now is not None and one.number == now.generation:
            lines[line] += "  active"
        elif one.number == back:
            lines[line] += "  rollback returns to it"
    return "\n".join(line.rstrip() for line in lines)


def put_online(run: Path, embedding: Artifact) -> None:
    """Write an embedding's vectors to the feature store and materialize only their views."""
    from feature_repo.embeddings import publish_embedding
    from feature_repo.store import known_until, materialize

    version = publish_embedding(run / "store", embedding)
    reports = materialize(run / "store", known_until(run / "store"), (version.item_view, version.query_view))
    tell(run, reports)


def tell(run: Path, reports: dict[str, Report]) -> None:
    """Say which rows a load set aside, and why."""
    for report in reports.values():
        if report.refused:
            why = ", ".join(f"{reason}: {count}" for reason, count in report.refused.items())
            sys.stderr.write(f"  {report.view}: set aside {why}; see {run / 'store' / report.dead_letter}\n")


def _read_by_services(run: Path, number: int) -> None:
    """Verify a generation and have Feast's services read its vectors."""
    from feature_repo.embeddings import activate_embedding
    from feature_repo.views import EmbeddingRecord

    artifacts, _ = _open(run, generations.folder_of(run, number))
    embedding = artifacts["embedding"]
    if EmbeddingRecord.load(run / "store").find(embedding.id) is None:  # the store was created again
        put_online(run, embedding)
    activate_embedding(run / "store", embedding.id)


def _open(run: Path, folder: Path) -> tuple[dict[str, Artifact], dict[str, Artifact]]:
    """The artifacts of a run or a generation, and the run's data, after checking that they belong together."""
    artifacts = generations.open_parts(folder)
    data = {role: open_artifact(run / role, role) for role in ("dataset", "split")}
    generations.require_whole(artifacts, data)
    return artifacts, data


def _embedding(run: Path, number: int) -> Artifact:
    return open_artifact(generations.folder_of(run, number) / "embedding", "embedding")


def _overlap(figures: dict[str, Any]) -> str:
    if figures["before"] is None:
        return "-"
    if figures["overlap"] is None:
        return f"{figures['common']} common items"
    return f"{figures['overlap']:.3f} with {figures['before']}, {figures['chance']:.4f} by chance"
