"""The work of every stage: open the artifacts it needs, call the package that does it, leave one more.

Nothing here knows how a model works; every heavy import is inside the stage that needs it.
"""

from __future__ import annotations

import platform
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from run import generations
from run.artifacts import Artifact, open_artifact

if TYPE_CHECKING:
    from dataset.split import Split
    from dataset.tables import Dataset
    from run.folder import Run


def dataset(run: Run) -> None:
    """Simulate the marketplace, or import the folder named by the run's data."""
    from dataset.importers import import_dataset
    from dataset.marketplace.simulate import simulate
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


def nothing_is_lost(run: Run) -> None:
    """Refuse to make the store anew where it holds events or items that the data lacks."""
    from feature_repo.create import refuse_to_lose

    refuse_to_lose(run.folder / "store", _dataset(run).items, _split(run).log)


def store(run: Run) -> None:
    """Write the feature sources, apply the repository, and make this run the active one of ``feature_repo/``."""
    from feature_repo.create import create_store
    from feature_repo.store import activate

    create_store(run.folder / "store", _dataset(run), _split(run), profile=run.profile)
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
    from evaluation.science.encoders.compare import COLUMNS, ablations, compare, negatives, papers
    from evaluation.science.encoders.report import render_encoder_report

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
    """Embed the catalogue and the queries, stamped with the end of what the encoder learned from.

    What the encoder has embedded before is not encoded again, unless its content changed.
    """
    from encoder.embed import embed as embed_catalogue
    from encoder.embed import merge_shards
    from feature_repo.embeddings import publish_embedding

    out, dataset, encoder = run.folder / "embedding", _dataset(run), _encoder(run)
    previous, as_of = _previous(run, encoder), _split(run).fit_until
    shards = sorted((run.folder / "shards").glob("*"))
    if shards:
        parts = [open_artifact(path, "embedding-shard", "moon embed --shard") for path in shards]
        parents = {"dataset": dataset.artifact, "encoder": encoder}
        artifact = merge_shards(parts, parents | ({} if previous is None else {"previous": previous}), out)
        shutil.rmtree(run.folder / "shards")
    elif previous is not None and previous.path == out and _is_of(previous, dataset, as_of):
        artifact = previous
        sys.stderr.write("  every vector is there already\n")
    else:
        artifact = embed_catalogue(encoder, dataset, as_of=as_of, out=out, previous=previous)
    if artifact is not previous:
        _say_embedded(dataset, artifact)
    publish_embedding(run.folder / "store", artifact)


def embed_shard(run: Run, shard: str) -> int:
    """Embed one shard of the catalogue; returns how many shards are still missing."""
    from encoder.embed import embed as embed_catalogue
    from run.shards import parse_shard

    number, count = parse_shard(shard)
    folder, encoder = run.folder / "shards", _encoder(run)
    embed_catalogue(
        encoder,
        _dataset(run),
        as_of=_split(run).fit_until,
        out=folder / f"{number}-of-{count}",
        shard=(number, count),
        previous=_previous(run, encoder),
    )
    return sum(not (folder / f"{one}-of-{count}").exists() for one in range(1, count + 1))


def frame(run: Run, shard: str | None, by: str) -> str:
    """Write the run's logged requests as a training frame, or one shard of it; the last shard joins them."""
    from feature_repo.frames.logged import LOGGED, logged_source
    from feature_repo.frames.shards import write_frame, write_or_join
    from run.shards import parse_shard

    source, out = logged_source(run.folder, _split(run), run.size), run.folder / LOGGED
    if shard is None:
        return f"frame: {write_frame(source, out).path}"
    missing = write_or_join(source, out, parse_shard(shard), by)
    if missing:
        return f"still missing: {', '.join(missing)}"
    return f"frame: {out}"


def materialize(run: Run) -> None:
    """Load everything known at the end of the log into the online store."""
    from feature_repo.store import known_until
    from feature_repo.store import materialize as load_online
    from moon.releases import tell

    tell(run.folder, load_online(run.folder / "store", known_until(run.folder / "store")))


def ingest(run: Run, source: str, consumer: str | None, clock: str) -> str:
    """Take in events of a stream until interrupted, or of a file."""
    from feature_repo.ingest.clock import shop_clock
    from feature_repo.ingest.ingestor import Ingested, Ingestor
    from feature_repo.ingest.stream import DEAD, EventFile, RedisStream, consume
    from feature_repo.sources import DATA
    from moonstore.engine import DEAD_LETTER
    from run.progress import track

    store_dir = run.folder / "store"
    ingestor = Ingestor(store_dir, shop_clock(store_dir, clock))
    reader: RedisStream | EventFile
    if source.startswith("redis://"):
        reader = RedisStream(source, consumer or platform.node())
    else:
        reader = EventFile(Path(source))
    total = Ingested(0, 0, 0)
    for found in track(consume(reader, ingestor, store_dir), "ingest", unit="deliveries"):
        total = total.plus(found)
    aside = f"; {total.refused} set aside in {store_dir / DATA / DEAD_LETTER / DEAD}" if total.refused else ""
    return f"accepted: {total.accepted}, duplicates: {total.duplicates}{aside}"


def fold(run: Run) -> tuple[int, int]:
    """Make what came in part of the offline sources: how many events and items that was."""
    from feature_repo.ingest.fold import fold as fold_journal
    from feature_repo.ingest.new_items import fold_items
    from feature_repo.store import open_store
    from feature_repo.views import EmbeddingRecord

    store_dir = run.folder / "store"
    embeddings = EmbeddingRecord.load(store_dir).embeddings
    return fold_journal(store_dir), fold_items(open_store(store_dir), embeddings)


def retrieval(run: Run) -> None:
    """Count co-occurrences, train the two-tower model, build the indexes."""
    from retrieval.build import build_retrieval

    build_retrieval(run.folder, _dataset(run), _split(run), run.size, seed=run.seed)


def ranker(run: Run, recipe: str | None = None) -> None:
    """Train the ranker by a recipe and its two controls on the same frames, and the relevance head."""
    from ranker.controls import shuffled
    from ranker.recipes import cube
    from ranker.recipes import recipe as named
    from ranker.relevance import judged_pairs, train_relevance
    from ranker.train import train_ctr
    from retrieval.examples import ranker_frames
    from retrieval.retriever import Retriever, open_retrieval

    chosen = cube() if recipe is None else named(recipe)
    cut = _split(run)
    retriever = Retriever.open(open_retrieval(run.folder, cooccurrence="cooccurrence_fit"))
    embedding, vectors = retriever.artifacts["embedding"], retriever.vectors
    train, valid, loss = ranker_frames(run.folder, cut, run.size, run.seed, retriever)
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
            recipe=chosen,
        )
    query, item, relevance = judged_pairs(_dataset(run), vectors, "train", run.seed)
    if len(relevance):
        out = run.folder / "relevance"
        train_relevance(query, item, relevance, out, parents={"embedding": embedding}, seed=run.seed)


def evaluate(run: Run) -> None:
    """Measure everything and write the report."""
    from evaluation.run import evaluate_run
    from run.folder import timings

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


def serve(run: Run, host: str, port: int, clock: str) -> None:
    """Answer requests over HTTP."""
    from serving.app import serve as serve_http
    from serving.settings import Settings

    serve_http(Settings(run=run.folder, host=host, port=port, profile=run.profile, clock=clock))


def publish(run: Run) -> None:
    """Keep what was trained as a generation, and let it serve."""
    from moon import releases as embeddings

    embeddings.activate(run.folder, embeddings.publish(run.folder).number)


def keep_encoder(run: Run) -> str:
    """Id of the encoder that is there, which learned from an earlier dataset."""
    return _encoder(run).id


def _previous(run: Run, encoder: Artifact) -> Artifact | None:
    """An embedding by the same encoder: the run's, or that of the generation that serves."""
    now = generations.current(run.folder)
    folders = [run.folder, *([] if now is None else [generations.folder_of(run.folder, now.generation)])]
    for folder in folders:
        if (folder / "embedding").exists():
            found = open_artifact(folder / "embedding", "embedding")
            if found.parents["encoder"] == encoder.id:
                return found
    return None


def _is_of(embedding: Artifact, dataset: Dataset, as_of: datetime) -> bool:
    return (
        embedding.parents["dataset"] == dataset.artifact.id
        and datetime.fromisoformat(embedding.config["as_of"]) == as_of
    )


def _say_embedded(dataset: Dataset, embedding: Artifact) -> None:
    words = []
    for name, table in (("items", dataset.items), ("queries", dataset.queries)):
        kept = embedding.config[f"{name}_unchanged"]
        encoded = len(table) - embedding.config[f"{name}_without_content"] - kept
        words.append(f"{encoded:,} {name} embedded, {kept:,} kept")
    sys.stderr.write(f"  {'; '.join(words)}\n")


def _encoder(run: Run) -> Artifact:
    return open_artifact(run.folder / "encoder", "encoder")


def _dataset(run: Run) -> Dataset:
    from dataset.tables import Dataset

    return Dataset.open(open_artifact(run.folder / "dataset", "dataset"))


def _split(run: Run) -> Split:
    from dataset.split import Split

    return Split.open(open_artifact(run.folder / "split", "split"))
