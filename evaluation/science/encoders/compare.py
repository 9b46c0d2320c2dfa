"""Compare recipes at equal compute: trained on one benchmark split and measured alike, with several seeds each.

Every (recipe, seed) is a job that writes a file of measurements; a job whose file exists is skipped, so that an
interrupted comparison can be resumed. One job runs per CPU core, with one thread.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import torch

from dataset.tables import Dataset
from encoder.assemble import Parts
from encoder.content import item_content
from encoder.encode import Encoder
from encoder.examples.corpus import read_corpus
from encoder.pictures.cache import decoded
from encoder.recipes import Recipe, dual, moon, moon2, moon3, moon_embedding, ours
from encoder.stages.contrast import OWN, Contrast
from encoder.train import new_learner, train_encoder
from evaluation.measurements import write_measurements
from evaluation.metrics import Measurement
from evaluation.science.encoders.exam import Exam, run_benchmark
from evaluation.science.encoders.held_out import POOL_ITEMS, BenchmarkSplit, hold_out, whole_items
from evaluation.science.encoders.model_free import model_free
from evaluation.science.encoders.reasoning import ARMS, reasoning_arms, train_stage
from evaluation.science.encoders.table import EncoderTable
from moonstore.disk import make_folder
from moonstore.files import write_json, write_text
from run.artifacts import ArtifactError, open_artifact
from run.sizes import Size, size

COLUMNS = {
    "encoder/image_to_text/own/recall@10": "image→text @10",
    "encoder/text_to_image/own/recall@10": "text→image @10",
    "encoder/image_to_image/variants/recall@10": "image→variant @10",
    "encoder/title_to_item/own/recall@10": "title→item @10",
    "encoder/item_to_item/variants/recall@10": "item→variant @10",
    "encoder/item_to_item/bought_together/recall@10": "item→bought together @10",
    "encoder/query_to_item/image/recall@1": "photo→item @1",
    "encoder/query_to_item/image/recall@10": "photo→item @10",
    "encoder/category_3/probe/accuracy": "category",
    "encoder/attributes/probe/accuracy": "attributes",
    "encoder/facets/accuracy": "facets of whole items",
    "encoder/anisotropy": "mean cosine",
    "encoder/effective_rank": "effective rank",
}
PLAIN = (  # of ``model_free``
    "random", "colour_histogram", "colour_thumbnail", "tf_idf", "colour_tf_idf", "tf_idf_svd", "colour_tf_idf_svd",
)  # fmt: skip
MADE_BY = "moon encoder compare"
SUPERVISED = 3  # times the budget before reinforcement: rewards need a model that can generate chains


class ComparisonError(ValueError):
    """The folder holds a comparison with other settings, or nothing can be measured; the message says which."""


def papers() -> dict[str, Recipe]:
    """The baseline, the four papers, and our default recipe."""
    return {recipe.name: recipe for recipe in (dual(), moon_embedding(), moon(), moon2(), moon3(), ours())}


def ablations() -> dict[str, Recipe]:
    """Ablations of each paper: one idea left out at a time."""
    found = [
        _without("moon", "region", moon(), region=False),
        _without("moon", "guided experts", moon(), experts="none"),
        _changed("moon", "more negatives", moon(), hard=False, queue=0),
        _without("moon2", "experts", moon2(), experts="none"),
        _changed("moon2", "alignment within products", moon2(), intra=False),
        _changed("moon2", "co-augmentation", moon2(), augmented=False),
        _changed("moon2", "filtering", moon2(), filtered=False),
        _without("moon3", "fusion", moon3(), fusion=False),
        _without("moon3", "FIRE", moon3(), fire=False),
        replace(
            moon3(), name="moon3 without RL", stages=(replace(cast(Any, moon3().stages[0]), fraction=1.0),)
        ),
        _changed("moon_embedding", "questions", moon_embedding(), stage="pretrain", fraction=0.0),
        _changed("moon_embedding", "circle loss", moon_embedding(), stage="round2", loss="info_nce"),
        _changed("moon_embedding", "cleaning", moon_embedding(), stage="round2", cleaned=False),
    ]
    return {recipe.name: recipe for recipe in found}


def negatives() -> dict[str, Recipe]:
    """One recipe with increasing numbers of queued negatives, for a curve."""
    return {
        f"sweep_queue_{slots}": Recipe(
            f"sweep_queue_{slots}", Parts(), (Contrast(fraction=1.0, kinds=(OWN,), queue=slots),)
        )
        for slots in (0, 512, 4096, 16384)
    }


def _without(paper: str, what: str, recipe: Recipe, **parts: Any) -> Recipe:
    return replace(recipe, name=f"{paper} without {what}", parts=replace(recipe.parts, **parts))


def _changed(paper: str, what: str, recipe: Recipe, stage: str = "", **fields: Any) -> Recipe:
    """The recipe with fields of one stage, or of all, replaced; a stage with fraction 0 is left out."""
    changed: list[Any] = [
        replace(cast(Any, s), **fields) if stage in ("", s.name) else s for s in recipe.stages
    ]
    return replace(recipe, name=f"{paper} without {what}", stages=tuple(s for s in changed if s.fraction > 0))


@dataclass(frozen=True)
class Job:
    """One encoder to train and examine.

    Attributes:
        dataset, split, out: paths of the dataset, of the benchmark split, and of the comparison.
        recipe: recipe to train.
        size_name: name of the size.
        seed: training seed; the split is the same for all.
        cpu_seconds: CPU time of training.
    """

    dataset: Path
    split: Path
    out: Path
    recipe: Recipe
    size_name: str
    seed: int
    cpu_seconds: float

    @property
    def file(self) -> Path:
        """Path of its measurements."""
        return _file(self.out, self.recipe.name, self.seed)


def compare(
    data: Path,
    out: Path,
    dial: Size,
    recipes: dict[str, Recipe],
    sweep: dict[str, Recipe],
    seeds: tuple[int, ...] = (0, 1, 2),
    cpu_seconds: float = 60.0,
    reasoning: bool = True,
) -> EncoderTable:
    """Train and examine every recipe with every seed, and the model-free rows; write ``table.md`` and ``table.json``.

    Args:
        data: path of a dataset artifact.
        out: folder of the comparison.
        dial: size of all models.
        recipes: name -> recipe; the rows of the table.
        sweep: further recipes, measured for a curve and not in the table.
        seeds: training seeds.
        cpu_seconds: training time of each, see ``encoder.train.train_encoder``.
        reasoning: also measure what reinforcement adds to MOON3.0, see ``evaluation.science.encoders.reasoning``.

    Raises:
        ComparisonError: the folder holds a comparison with other settings, or nothing can be measured on the data.
    """
    dataset = Dataset.open(open_artifact(data, "dataset"))
    make_folder(out)
    _same_terms(
        out / "terms.json", {"dataset": dataset.artifact.id, "size": dial.name, "seconds": cpu_seconds}
    )
    _split(dataset, out / "split")
    decoded(dataset, dial.image_px)  # once for all
    jobs = [
        Job(data, out / "split", out, recipe, dial.name, seed, cpu_seconds)
        for seed in seeds
        for recipe in [*recipes.values(), *sweep.values()]
    ]
    todo = [job for job in jobs if not job.file.exists()]
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(work, job) for job in todo]
        running += [
            pool.submit(work_reasoning, replace(job, recipe=moon3()))
            for job in {one.seed: one for one in jobs}.values()
            if reasoning and not all(_arm(out, arm, job.seed).exists() for arm in ARMS)
        ]
        running += [pool.submit(work_plain, data, out, n) for n in PLAIN if not _file(out, n, 0).exists()]
        for number, one in enumerate(as_completed(running), start=1):
            sys.stderr.write(f"[{number}/{len(running)}] {one.result()}\n")
            sys.stderr.flush()
    table = EncoderTable.read(
        {name: [_file(out, name, 0)] for name in PLAIN}
        | {name: [_file(out, name, seed) for seed in seeds] for name in recipes}
    )
    write_text(out / "table.md", table.markdown(COLUMNS))
    write_text(out / "table.json", table.to_json())
    return table


def work(job: Job) -> str:
    """Train and examine one encoder in this process; returns a line about it."""
    torch.set_num_threads(1)
    dataset = Dataset.open(open_artifact(job.dataset, "dataset"))
    bench = BenchmarkSplit.open(open_artifact(job.split, "split", MADE_BY), dataset)
    folder = job.out / "encoders" / f"{_slug(job.recipe.name)}.{job.seed}"
    dial = size(job.size_name)
    artifact = train_encoder(
        dataset, bench.split, dial, folder, seed=job.seed, recipe=job.recipe, cpu_seconds=job.cpu_seconds
    )
    encoder = Encoder.open(artifact, dataset)
    widths = dial.matryoshka[1:] if job.recipe.name in papers() else ()
    found = run_benchmark(encoder.encode, Exam.of(dataset, bench), widths)
    spent, steps = artifact.config["trained_cpu_seconds"], sum(artifact.config["steps"].values())
    found.append(Measurement("encoder/trained_cpu_seconds", spent, 1, "training"))
    found.append(Measurement("encoder/steps", steps, 1, "training"))
    write_measurements(job.file, found)
    values = {one.name: one.value for one in found}
    measured = [f"{label} {values[name]:.3f}" for name, label in COLUMNS.items() if name in values]
    shown = ", ".join(measured[:3])
    return f"{job.recipe.name}, seed {job.seed}: {steps} steps in {spent:.0f} CPU-s, {shown}"


def work_reasoning(job: Job) -> str:
    """What reinforcement adds to ``job.recipe``'s supervised stage, in this process; returns a line about it."""
    torch.set_num_threads(1)
    dataset = Dataset.open(open_artifact(job.dataset, "dataset"))
    bench = BenchmarkSplit.open(open_artifact(job.split, "split", MADE_BY), dataset)
    dial, parts = size(job.size_name), job.recipe.parts
    learner = new_learner(dataset, bench.split, dial, job.recipe, job.seed)
    train_stage(learner, job.recipe.stages[0], SUPERVISED * job.cpu_seconds)
    held = read_corpus(
        dataset, learner.tokenizer, dial.text_tokens, learner.model.px, bench.pool_items, parts.region
    )
    found: dict[str, list[Measurement]] = {}
    for arm, measured in reasoning_arms(learner, held, job.cpu_seconds):
        found.setdefault(arm, []).append(measured)
    for arm, measurements in found.items():
        write_measurements(_arm(job.out, arm, job.seed), measurements)
    return f"reasoning, seed {job.seed}: {', '.join(found)}"


def _same_terms(path: Path, terms: dict[str, Any]) -> None:
    """Refuse to resume a comparison with other settings, so that all rows of a table are comparable."""
    if path.exists() and (known := json.loads(path.read_text())) != terms:
        raise ComparisonError(
            f"{path.parent} holds a comparison with {known}, asked for {terms}. Remove it, or use the same settings."
        )
    write_json(path, terms)


def work_plain(data: Path, out: Path, name: str) -> str:
    """Measure a model-free baseline in this process; returns a line about it."""
    dataset = Dataset.open(open_artifact(data, "dataset"))
    bench = BenchmarkSplit.open(open_artifact(out / "split", "split", MADE_BY), dataset)
    known = dataset.items.filter(pc.is_in(dataset.items["item_id"], pa.array(bench.train_items)))
    width = size(json.loads((out / "terms.json").read_text())["size"]).item_width
    contents = [item_content(row, dataset.image_bytes(row["image_id"])) for row in known.to_pylist()]
    encode = model_free(contents, width)[name]()
    write_measurements(_file(out, name, 0), run_benchmark(encode, Exam.of(dataset, bench)))
    return name


def _split(dataset: Dataset, path: Path) -> None:
    """Write the benchmark split unless it exists; a split of another dataset is replaced."""
    try:
        if open_artifact(path, "split", MADE_BY).parents["dataset"] == dataset.artifact.id:
            return
    except ArtifactError:
        pass
    shutil.rmtree(path, ignore_errors=True)
    most = len(whole_items(dataset.items)) // 5  # leave most of a small catalogue for training
    held = hold_out(dataset, path, items=min(POOL_ITEMS, most))
    tested = pc.sum(pc.equal(dataset.judgements["part"], "test"), min_count=0).as_py()
    if len(held.pool_items) < 2 and not tested:
        shutil.rmtree(path)
        raise ComparisonError(
            f"not measured: expected at least 10 items with a picture and a title, of which a fifth is held out, or "
            f"queries judged in part 'test'; found {len(whole_items(dataset.items))} such items of "
            f"{len(dataset.items)}, and no such queries. So there is nothing to compare encoders by."
        )


def _file(out: Path, name: str, seed: int) -> Path:
    return out / "measurements" / f"{_slug(name)}.{seed}.json"


def _arm(out: Path, arm: str, seed: int) -> Path:
    return out / "reasoning" / f"{_slug(arm)}.{seed}.json"


def _slug(name: str) -> str:
    return name.replace(" ", "_")
