"""Commands on a run that are not stages: writing a frame, ingesting events, measuring, serving.

Every function returns a message for the user. Every heavy import is inside the function that needs it.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moon.describing import described_by
from moon.stages import open_dataset, open_split, switch
from run import generations

if TYPE_CHECKING:
    from dataset.append import Appended
    from run.folder import Run


def append(run: Run, folders: Sequence[Path]) -> str:
    """Add the files of some folders to the run's dataset; the message says what is new and what to run next."""
    from dataset.adapters.source import NEXT
    from dataset.contracts import DataError
    from dataset.importers import append_described, append_files, is_format

    source = Path(run.data)
    described = described_by(source, run.folder) if not is_format(run.data) and source.exists() else None

    def add(folder: Path) -> Appended:
        try:
            if described is not None:
                return append_described(described, folder, open_dataset(run))
            return append_files(run.data.partition(":")[0], folder, open_dataset(run))
        except DataError as error:
            # A new import would leave the day out: the next command is another append.
            raise DataError(
                f"{folder}: not appended. {str(error).removesuffix(NEXT).rstrip()} "
                f"Then run 'moon dataset --run {run.folder} --append {folder}' again."
            ) from error

    done = [add(folder.expanduser()) for folder in folders]
    said = [f"{folder}: {one.told()}" for folder, one in zip(folders, done, strict=True)]
    if not all(one.is_nothing for one in done):
        said.append(
            f"Run 'moon demo --data {run.data} --run {run.folder}' to go on with them; the encoder stays."
        )
    return "\n".join(said)


def frame(run: Run, shard: str | None, by: str) -> str:
    """Write the run's logged requests as a training frame, or one shard of it; the last shard joins them."""
    from feature_repo.frames.logged import LOGGED, logged_source
    from feature_repo.frames.shards import write_frame, write_or_join
    from run.shards import parse_shard

    source, out = logged_source(run.folder, open_split(run), run.size), run.folder / LOGGED
    if shard is None:
        return f"frame: {write_frame(source, out).path}"
    missing = write_or_join(source, out, parse_shard(shard), by)
    if missing:
        return f"still missing: {', '.join(missing)}"
    return f"frame: {out}"


def ingest(run: Run, source: str, consumer: str | None, clock: str) -> str:
    """Ingest events from a stream until interrupted, or from a file."""
    from feature_repo.ingest.clock import shop_clock
    from feature_repo.ingest.ingestor import Ingested, Ingestor
    from feature_repo.ingest.stream import EventFile, RedisStream, consume
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
    refused = total.refused + len(total.conflicts)
    aside = f"; {refused} set aside, see 'moon deadletter list events'" if refused else ""
    return f"accepted: {total.accepted}, duplicates: {total.duplicates}{aside}"


def fold(run: Run) -> str:
    """Add ingested events and items to the offline sources; the message says what to run next."""
    from feature_repo import dead_letters
    from feature_repo.ingest.fold import fold as fold_journal
    from feature_repo.ingest.item_rows import fold_items
    from feature_repo.store import open_store
    from feature_repo.views import EmbeddingRecord

    store_dir = run.folder / "store"
    embeddings = EmbeddingRecord.load(store_dir).embeddings
    events, items = fold_journal(store_dir), fold_items(open_store(store_dir), embeddings)
    joined = f"{events} events and {items} items joined the offline log"
    refused = sum(dead_letters.counts(store_dir).values())
    aside = f" {refused} refused records: see 'moon deadletter list'." if refused else ""
    return f"{joined}. Run 'moon materialize' to count them.{aside}"


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
    page = render_encoder_report(out, open_dataset(run), COLUMNS)
    return f"{table.markdown(COLUMNS)}\ntable:  {out / 'table.md'}\nreport: {page}"


def seeds(run: Run) -> str:
    """Measure the ranker and its controls over several seeds."""
    from evaluation.seeds import measure_seeds
    from moon import summary

    return summary.seeds(measure_seeds(run.folder, open_dataset(run), open_split(run), run.size))


def worth(run: Run, without: Sequence[str], recipe: str | None, history: int | None = None) -> str:
    """What each of these features adds to a ranker of a recipe, or of that of the run's own, over several seeds."""
    from evaluation.ablation import measure_worth
    from evaluation.seeds import config_of
    from feature_repo.store import apply_definitions
    from moon import summary
    from ranker.recipes import recipe as named

    own = config_of(run.folder)
    chosen = own.recipe if recipe is None else named(recipe)
    size = replace(run.size, ranker_history=history or own.inputs.history)
    apply_definitions(run.folder / "store")
    measured = measure_worth(run.folder, open_dataset(run), open_split(run), size, without, chosen)
    return summary.worth(measured)


def tune_ranker(run: Run, trials: int, recipe: str | None, history: int | None = None) -> str:
    """Begin or go on with the search for the settings of a recipe of the ranker."""
    from dataset.contracts import DataError
    from feature_repo.embeddings import as_stored
    from feature_repo.store import apply_definitions
    from ranker.recipes import recipe as named
    from ranker.tuning.rankers import BEST, TABLE, TUNING, tune_ctr
    from retrieval.examples import ranker_frames
    from retrieval.retriever import Retriever, open_retrieval

    chosen, split = named(recipe or "cube"), open_split(run)
    size = replace(run.size, ranker_history=history)
    if not split.ranks:
        raise DataError(f"{run.folder}: expected events that a ranker can learn from, found none")
    apply_definitions(run.folder / "store")
    retriever = Retriever.open(open_retrieval(run.folder, fitted=True))
    embedding, vectors = retriever.artifacts["embedding"], as_stored(retriever.vectors, run.folder / "store")
    frames = ranker_frames(run.folder, split, size, 0, retriever)
    parents = {"split": split.artifact, "embedding": embedding}
    out = run.folder / TUNING / chosen.name
    tune_ctr(out, trials, frames, vectors, size, parents, chosen, seed=run.seed)
    return (
        f"{(out / TABLE).read_text()}\ntable: {out / TABLE}\n"
        f"Run 'moon ranker --recipe {chosen.name} --settings {out / BEST}' to train the run's ranker with the best."
    )


def compare_rankers(
    run: Run,
    seeds: int,
    recipe: str | None,
    trials: int | None = None,
    requests: int | None = None,
    history: int | None = None,
) -> str:
    """Every recipe of the ranker, or one, at equal budget, over several seeds.

    Each may be tuned by so many trials, trained on so many requests at most, and read so long a history.
    """
    from evaluation.science.rankers.compare import COLUMNS, compare
    from ranker.recipes import RECIPES
    from ranker.recipes import recipe as named

    chosen = {name: named(name) for name in (RECIPES if recipe is None else (recipe,))}
    size = replace(run.size, ranker_history=history)
    table = compare(run.folder, open_dataset(run), open_split(run), size, chosen, seeds, trials, requests)
    return f"{table.markdown(COLUMNS, 'ranker')}\ntable: {run.folder / 'recipes' / 'table.md'}"


def serve(run: Run, profile: str | None, **options: Any) -> None:
    """Serve the active generation over HTTP until interrupted, even while the run folder holds newer artifacts.

    Args:
        run: the run.
        profile: online store; None: the one that the run was loaded into.
        options: of ``serving.settings.Settings``.

    Raises:
        GenerationError: none is active.
        OSError: the port is taken.
    """
    from serving.server import serve as serve_http
    from serving.settings import Settings

    active = generations.find(run.folder, generations.serving(run.folder).generation)
    if newer := generations.newer(run.folder, active):
        sys.stderr.write(
            f"serving generation {active.number}; {run.folder} holds another {', '.join(newer)}: run "
            f"'moon embeddings publish --activate' to serve it\n"
        )
    if profile is not None and profile != run.profile:
        run = switch(run, profile)
    serve_http(Settings(run=run.folder, profile=run.profile, **options))
