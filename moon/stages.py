"""The work of every stage: open the artifacts it needs, call the package that does it, leave one more.

Nothing here knows how a model works; every heavy import is inside the stage that needs it.
"""

from __future__ import annotations

import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from moon.artifacts import Artifact, open_artifact

if TYPE_CHECKING:
    from dataset.split import Split
    from dataset.tables import Dataset
    from moon.journey import Run


def dataset(run: Run) -> None:
    """Simulate the marketplace, or import the folder named by the run's data."""
    from dataset.importers import import_dataset
    from dataset.marketplace import simulate
    from dataset.tables import write_dataset

    name, _, rest = run.data.partition(":")
    out = run.folder / "dataset"
    if name == "marketplace":
        tables, config = simulate(events=int(rest), seed=run.seed) if rest else simulate(seed=run.seed)
        write_dataset(out, tables, config)
    else:
        import_dataset(name, Path(rest).expanduser(), out)


def split(run: Run) -> None:
    """Cut the log in time."""
    from dataset.split import split_dataset

    split_dataset(_dataset(run), run.folder / "split", seed=run.seed)


def store(run: Run) -> None:
    """Write the feature sources, apply the repository, and make this run the active one of ``feature_repo/``."""
    from feature_repo.store import activate, create_store

    create_store(
        run.folder / "store", _dataset(run), _split(run), profile=run.profile, width=run.size.item_width
    )
    activate(run.folder / "store")


def encoder(run: Run, recipe: str | None = None, backbone: Path | None = None, lora: int = 0) -> None:
    """Train the encoder by a recipe, from random weights or from a checkpoint folder."""
    from encoder.recipes import ours
    from encoder.recipes import recipe as named
    from encoder.train import train_encoder

    train_encoder(
        _dataset(run),
        _split(run),
        run.size,
        run.folder / "encoder",
        seed=run.seed,
        recipe=ours() if recipe is None else named(recipe),
        checkpoint=backbone,
        lora=lora,
    )


def compare_encoders(run: Run, seconds: float, ablated: bool, recipe: str | None = None) -> str:
    """Every recipe, or one, at equal compute, over three seeds."""
    from encoder.recipes import recipe as named
    from evaluation.compare_encoders import COLUMNS, ablations, compare, negatives, papers
    from evaluation.encoder_report import render_encoder_report

    out = run.folder / "encoders"
    table = compare(
        run.folder / "dataset",
        out,
        run.size,
        (papers() if recipe is None else {recipe: named(recipe)}) | (ablations() if ablated else {}),
        sweep=negatives() if ablated else {},
        cpu_seconds=seconds,
        reasoning=ablated,
    )
    page = render_encoder_report(out, _dataset(run), COLUMNS)
    return f"{table.markdown(COLUMNS)}\ntable:  {out / 'table.md'}\nreport: {page}"


def embed(run: Run) -> None:
    """Embed the catalogue and the queries, stamped with the end of what the encoder learned from."""
    from encoder.embed import embed as embed_catalogue
    from encoder.embed import merge_shards
    from feature_repo.store import publish_embedding

    out, dataset, encoder = run.folder / "embedding", _dataset(run), _encoder(run)
    shards = sorted((run.folder / "shards").glob("*"))
    if shards:
        parts = [open_artifact(path, "embedding-shard", "moon embed --shard") for path in shards]
        artifact = merge_shards(parts, {"dataset": dataset.artifact, "encoder": encoder}, out)
        shutil.rmtree(run.folder / "shards")
    else:
        artifact = embed_catalogue(encoder, dataset, as_of=_split(run).fit_until, out=out)
    publish_embedding(run.folder / "store", artifact)


def embed_shard(run: Run, shard: str) -> int:
    """Embed one shard of the catalogue; returns how many shards are still missing."""
    from encoder.embed import embed as embed_catalogue
    from moon.shards import parse_shard

    number, count = parse_shard(shard)
    folder = run.folder / "shards"
    embed_catalogue(
        _encoder(run),
        _dataset(run),
        as_of=_split(run).fit_until,
        out=folder / f"{number}-of-{count}",
        shard=(number, count),
    )
    return sum(not (folder / f"{one}-of-{count}").exists() for one in range(1, count + 1))


def frame(run: Run, shard: str | None, by: str) -> str:
    """Write the run's logged requests as a training frame, or one shard of it; the last shard joins them."""
    from feature_repo.frame_shards import write_frame, write_or_join
    from moon.shards import parse_shard
    from retrieval.ranking import LOGGED, logged_source

    source, out = logged_source(run.folder, _split(run), run.size), run.folder / LOGGED
    if shard is None:
        return f"frame: {write_frame(source, out).path}"
    missing = write_or_join(source, out, parse_shard(shard), by)
    if missing:
        return f"still missing: {', '.join(missing)}"
    return f"frame: {out}"


def materialize(run: Run) -> None:
    """Load everything known at the end of the log into the online store."""
    import pyarrow.compute as pc

    from feature_repo.store import materialize as load_online

    last = pc.max(_split(run).log["available_time"]).as_py()
    reports = load_online(run.folder / "store", until=last + timedelta(seconds=1))
    for report in reports.values():
        if report.refused:
            why = ", ".join(f"{reason}: {count}" for reason, count in report.refused.items())
            sys.stderr.write(
                f"  {report.view}: set aside {why}; see {run.folder / 'store' / report.dead_letter}\n"
            )


def retrieval(run: Run) -> None:
    """Count co-occurrences, train the two-tower model, build the indexes."""
    from retrieval.build import build_retrieval

    build_retrieval(run.folder, _dataset(run), _split(run), run.size, seed=run.seed)


def ranker(run: Run) -> None:
    """Train the ranker and its two controls on the same frames, and the relevance head."""
    from feature_repo.vectors import Vectors
    from ranker.controls import shuffled
    from ranker.relevance import train_relevance
    from ranker.train import train_ctr
    from retrieval.ranking import judged_pairs, ranker_frames

    cut = _split(run)
    embedding = open_artifact(run.folder / "embedding", "embedding", "moon embed")
    vectors = Vectors.open(embedding)
    train, valid, loss = ranker_frames(run.folder, cut, run.size, run.seed)
    content = {"full": vectors, "id_only": None, "shuffled": shuffled(vectors, run.seed)}
    for control, table in content.items():
        train_ctr(
            train,
            valid,
            table,
            run.size,
            run.folder / f"ranker_{control}",
            parents={"split": cut.artifact} | ({"embedding": embedding} if table is not None else {}),
            seed=run.seed,
            loss=loss,
        )
    query, item, relevance = judged_pairs(_dataset(run), vectors, "train", run.seed)
    if len(relevance):
        out = run.folder / "relevance"
        train_relevance(query, item, relevance, out, parents={"embedding": embedding}, seed=run.seed)


def evaluate(run: Run) -> None:
    """Measure everything and write the report."""
    from evaluation.run import evaluate_run
    from moon.journey import timings

    evaluate_run(run.folder, _dataset(run), _split(run), run.size, seed=run.seed, timings_s=timings(run))


def seeds(run: Run) -> dict[str, dict[str, float | int]]:
    """Measure the ranker and its controls over several seeds."""
    from evaluation.seeds import measure_seeds

    return measure_seeds(run.folder, _dataset(run), _split(run), run.size)


def switch_store(run: Run, profile: str) -> None:
    """Point the run's store at another online store and load it."""
    from feature_repo.store import use_profile

    use_profile(run.folder / "store", profile)
    materialize(run)


def serve(run: Run, host: str, port: int) -> None:
    """Answer requests over HTTP."""
    from serving.app import serve as serve_http
    from serving.settings import Settings

    serve_http(Settings(run=run.folder, host=host, port=port, profile=run.profile))


def _encoder(run: Run) -> Artifact:
    return open_artifact(run.folder / "encoder", "encoder", "moon encoder train")


def _dataset(run: Run) -> Dataset:
    from dataset.tables import Dataset

    return Dataset.open(run.folder / "dataset")


def _split(run: Run) -> Split:
    from dataset.split import Split

    return Split.open(run.folder / "split")
