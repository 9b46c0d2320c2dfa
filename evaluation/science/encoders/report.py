"""The page of an encoder comparison: results, their significance over seeds, and illustrations.

Reads the folder that ``evaluation.science.encoders.compare`` wrote and trains nothing. Sections without files are
left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from dataset.tables import Dataset
from evaluation.plots import PALETTE
from evaluation.report import Plot, render_page
from evaluation.science.encoders.curves import negative_curves, training_curves, width_curves
from evaluation.science.encoders.exam import Exam
from evaluation.science.encoders.held_out import BenchmarkSplit
from evaluation.science.encoders.pictures import Pictures, take_pictures
from evaluation.science.encoders.significance import Judged, judge
from evaluation.science.encoders.table import Cell, EncoderTable
from run.artifacts import Artifact, open_artifact

Rows = Mapping[str, Mapping[str, Cell]]

SHAPE = {"encoder/anisotropy": "mean cosine", "encoder/effective_rank": "effective rank"}
WITHOUT, SWEEP = " without ", "sweep"  # part of the names of ablations; prefix of the names of sweeps
BASELINE = "dual"  # the recipe with which the others are compared
DRAWN = 3  # number of measures for which curves are drawn
REASONING = {
    "reasoning/image/greedy/attributes": "attributes, greedy",
    "reasoning/image/sampled/attributes": "attributes, sampled",
    "reasoning/image/greedy/exact": "whole chain, greedy",
    "reasoning/image/sampled/format": "format reward",
    "reasoning/image/sampled/length": "length reward",
    "reasoning/image/sampled/retrieval": "retrieval reward",
    "reasoning/image-words/none chain/recall@10": "image→text @10, no chain",
    "reasoning/image-words/own chain/recall@10": "image→text @10, own chain",
    "reasoning/words-image/own chain/recall@10": "text→image @10, own chain",
    "reasoning/image-words/true chain/recall@10": "image→text @10, true chain",
}
CONTROL = "supervised"  # the arm with which the others are compared
LIMITS = (
    "One split of one catalogue: margins are over training seeds, not over the choice of held-out items.",
    "Equal compute is not equal convergence: a recipe with expensive steps makes fewer of them.",
    "Attention shows what the last layer averages, not what determined the vector.",
    "The maps preserve neighbours; distances between clusters and their sizes mean nothing.",
)
GREY = "#8b8f98"  # the palette's grey, not used for categories
MADE_BY = "moon encoder compare"


@dataclass(frozen=True)
class Effort:
    """Training cost of a recipe, mean over seeds."""

    cpu_seconds: float
    steps: float
    batch: int
    seeds: int

    @classmethod
    def of(cls, artifacts: Sequence[Artifact]) -> Effort:
        """From the manifests of the encoders."""
        configs = [artifact.config for artifact in artifacts]
        return cls(
            cpu_seconds=mean(config["trained_cpu_seconds"] for config in configs),
            steps=mean(sum(config["steps"].values()) for config in configs),
            batch=configs[0]["batch"],
            seeds=len(configs),
        )


@dataclass(frozen=True)
class EncoderPage:
    """Everything the page shows, as plain data. Empty sections are left out.

    Attributes:
        title, summary: heading, and what was compared.
        columns: measurement -> heading of the results; more is better in each.
        rows: encoder -> results.
        baseline: name of the row with which the recipes are compared.
        against: comparison of each recipe with the baseline.
        ablations: for each idea, comparison of the recipe with and without it.
        efforts: training cost of each recipe.
        plots: curves.
        pictures: attention, maps and nearest neighbours; None without a trained encoder.
        reasoning, arms: the arms of MOON3.0's reasoning, and the comparison of each with the control.
        artifacts: role -> id.
    """

    title: str
    summary: str
    columns: Mapping[str, str]
    rows: Rows
    baseline: str
    against: Sequence[Judged] = ()
    ablations: Sequence[Judged] = ()
    efforts: Mapping[str, Effort] = field(default_factory=dict)
    plots: Sequence[Plot] = ()
    pictures: Pictures | None = None
    reasoning: Rows = field(default_factory=dict)
    arms: Sequence[Judged] = ()
    artifacts: Mapping[str, str] = field(default_factory=dict)

    def best(self, name: str) -> float:
        """The highest mean of a column of the results."""
        return max(cells[name].mean for cells in self.rows.values() if name in cells)

    @property
    def shapes(self) -> Rows:
        """The rows with anisotropy and effective rank."""
        return {name: cells for name, cells in self.rows.items() if cells.keys() >= SHAPE.keys()}

    @property
    def comparisons(self) -> int:
        """Number of differences on the page that were tested for significance."""
        everything = [*self.against, *self.ablations, *self.arms]
        return sum(d.margin is not None for one in everything for d in one.differences.values())


def render_encoder_report(
    folder: Path,
    dataset: Dataset,
    columns: Mapping[str, str],
    shipped: str = "ours",
) -> Path:
    """Write ``report.html`` of a comparison, a single self-contained file, and return its path.

    Args:
        folder: of the comparison, with ``table.json`` and ``split``; encoders, measurements and
            ``reasoning/<arm>.<seed>.json`` are optional.
        dataset: the dataset of the comparison.
        columns: measurement -> heading, as in the comparison's table.
        shipped: the recipe whose attention is shown; drawn first.

    Raises:
        ValueError: ``table.json`` or a file of measurements is missing or malformed.
        ArtifactError: the split or an encoder is missing or damaged.
    """
    every = read_rows(folder / "table.json")
    rows = {
        name: cells for name, cells in every.items() if WITHOUT not in name and not name.startswith(SWEEP)
    }
    bench = BenchmarkSplit.open(open_artifact(folder / "split", "split", MADE_BY), dataset)
    encoders = _encoders(folder / "encoders")
    order = [name for name in dict.fromkeys((shipped, BASELINE, *rows)) if name in rows and name in encoders]
    trained = {name: encoders[name][0] for name in order}
    efforts = {name: Effort.of(encoders[name]) for name in order}
    measured = {name for cells in rows.values() for name in cells}
    better = {name: label for name, label in columns.items() if name in measured and name not in SHAPE}
    drawn = dict([pair for pair in better.items() if "recall" in pair[0]][:DRAWN])
    arms = read_arms(folder / "reasoning")
    page = EncoderPage(
        title=f"MOON encoders on {dataset.artifact.config['name']}",
        summary=_summary(dataset, bench, efforts, trained),
        columns=better,
        rows=rows,
        baseline=BASELINE,
        against=[judge(n, rows[n], rows[BASELINE], better) for n in order if n != BASELINE]
        if BASELINE in rows
        else (),
        ablations=list(_ablations(every, better)),
        efforts=efforts,
        plots=[
            *width_curves({name: rows[name] for name in order}, drawn, trained),
            *negative_curves(folder / "measurements", drawn),
            *training_curves(trained),
        ],
        pictures=take_pictures(Exam.of(dataset, bench), trained, shipped, BASELINE) if trained else None,
        reasoning=arms,
        arms=[judge(n, arms[n], arms[CONTROL], REASONING) for n in arms if n != CONTROL]
        if CONTROL in arms
        else (),
        artifacts={"dataset": dataset.artifact.id, "split": bench.split.artifact.id}
        | {f"{name}, seed {artifact.config['seed']}": artifact.id for name, artifact in trained.items()},
    )
    return draw_page(folder / "report.html", page)


def draw_page(out: Path, page: EncoderPage) -> Path:
    """Write the page to ``out`` and return the path; text is escaped, pictures are data URIs, plots inline SVG."""
    return render_page(
        out,
        "encoder_template.html",
        page=page,
        shape=SHAPE,
        reasoning=REASONING,
        control=CONTROL,
        colours=[colour for colour in PALETTE if colour != GREY],
        limits=LIMITS,
    )


def read_rows(path: Path) -> dict[str, dict[str, Cell]]:
    """The cells that ``EncoderTable.to_json`` wrote: row -> measurement -> cell.

    Raises:
        ValueError: the file is missing or malformed.
    """
    try:
        content = json.loads(path.read_text())
        return {row: {name: Cell(**cell) for name, cell in cells.items()} for row, cells in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected a comparison's table: {error}. Run '{MADE_BY}'.") from None


def read_arms(folder: Path) -> dict[str, dict[str, Cell]]:
    """Mean and deviation of what each arm of reasoning measured; empty without files.

    Raises:
        ValueError: a file does not contain measurements, or the seeds of an arm have different measurements.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.json")):
        files.setdefault(path.name.split(".")[0].replace("_", " "), []).append(path)
    table = EncoderTable.read(files)
    return {
        arm: {name: cell for name in REASONING if (cell := table.cell(arm, name)) is not None}
        for arm in files
    }


def _encoders(folder: Path) -> dict[str, list[Artifact]]:
    """The finished encoders of each recipe, by seed."""
    found: dict[str, list[Artifact]] = {}
    for path in sorted(folder.glob("*.*")):
        if path.suffix[1:].isdigit():
            artifact = open_artifact(path, "encoder", MADE_BY)
            found.setdefault(artifact.config["recipe"], []).append(artifact)
    return {name: sorted(some, key=lambda one: int(one.config["seed"])) for name, some in found.items()}


def _ablations(rows: Rows, columns: Mapping[str, str]) -> Iterator[Judged]:
    for name, cells in rows.items():
        whole = name.split(WITHOUT)[0]
        if WITHOUT in name and whole in rows:
            yield judge(name.replace(WITHOUT, ": "), rows[whole], cells, columns)


def _summary(
    dataset: Dataset, bench: BenchmarkSplit, efforts: Mapping[str, Effort], trained: Mapping[str, Artifact]
) -> str:
    """What was compared, in a sentence or two."""
    name, known, held = dataset.artifact.config["name"], len(bench.train_items), len(bench.pool_items)
    exam = f"{held:,} held-out items" if held else "held-out searches"
    if not efforts:
        return f"Model-free baselines, tested on {exam} of {name}."
    sizes = {artifact.config["size"]["name"] for artifact in trained.values()}
    spent = [effort.cpu_seconds for effort in efforts.values()]
    seeds = [effort.seeds for effort in efforts.values()]
    counted = f"{min(seeds)} to {max(seeds)} seeds" if min(seeds) < max(seeds) else _plural(seeds[0], "seed")
    return (
        f"{_plural(len(efforts), 'recipe')} of size {' and '.join(sorted(sizes))}, trained on {known:,} items "
        f"of {name} for {mean(spent):.0f} CPU-seconds each (from {min(spent):.0f} to {max(spent):.0f}), with "
        f"{counted}, and tested on {exam}."
    )


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count != 1 else ''}"
