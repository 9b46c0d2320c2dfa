"""The function of every stage: open the artifacts it needs, call the package that does the work, write one more.

A stage that is not complete yet returns a message that says what is missing. Nothing here knows how a model
works; every heavy import is inside the stage that needs it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moon.describing import described_at, described_by
from moonstore.files import write_json
from run import generations
from run.artifacts import KEYS, MANIFEST, Artifact, discard, open_artifact, read_json
from run.folder import JourneyError, Run, choices, stamp
from run.sizes import Size

if TYPE_CHECKING:
    from dataset.split import Split
    from dataset.tables import Dataset
    from encoder.recipes import Recipe


def dataset(run: Run) -> None:
    """Simulate the marketplace, or import what the run's data names: FORMAT:FOLDER, or a path."""
    from dataset.importers import import_dataset, import_path, is_format
    from dataset.marketplace.simulate import simulate
    from dataset.tables import held, noticed, write_dataset

    name, _, rest = run.data.partition(":")
    out = run.folder / "dataset"
    if name == "marketplace":
        tables, config = simulate(events=int(rest), seed=run.seed) if rest else simulate(seed=run.seed)
        made = write_dataset(out, tables, config)
    elif is_format(run.data):
        made = import_dataset(name, Path(rest).expanduser(), out)
    else:
        made = import_path(described_by(Path(run.data), run.folder), out)
    for line in (held(made.config), *noticed(made.config)):
        sys.stderr.write(f"  {line}\n")


def grown(run: Run) -> str | None:
    """The id of the run's dataset, if files were appended to it."""
    places = [run.folder / name / MANIFEST for name in ("dataset", "dataset.previous")]
    path = next((place for place in places if place.exists()), None)
    manifest = None if path is None else read_json(path, "Run 'moon dataset' to recreate it.", KEYS)
    return manifest["id"] if manifest and manifest["config"].get("appended") else None


def nothing_is_dropped(run: Run) -> None:
    """Refuse to import a dataset anew that holds appended files: it would lose them."""
    if grown(run) is not None:
        files = [one["source"] for one in open_dataset(run).artifact.config["appended"]]
        raise JourneyError(
            f"{run.folder / 'dataset'}: expected a dataset of {run.data} alone to import anew, found {len(files)} "
            f"appended sources in it, first {files[:3]}. Add more with 'moon dataset --append', or choose another "
            f"folder with --run."
        )


def split(run: Run) -> None:
    """Split the log by the run's protocol, and say which it is and why.

    Of a dataset that has grown, items that an encoder may have learned from stay no test.
    """
    import numpy as np

    from dataset.append import items_since
    from dataset.split import Split, split_dataset

    dataset, out, pool = open_dataset(run), run.folder / "split", None
    if grown(run) is not None and out.exists():
        before = Split.open(open_artifact(out, "split"))
        since = items_since(dataset, before.artifact.parents["dataset"])
        pool = None if since is None else np.union1d(before.pool, since)
    repeats = None if run.repeats is None else run.repeats == "yes"
    made = split_dataset(dataset, out, run.split, run.seed, pool, repeats)
    sys.stderr.write("".join(f"  {line}\n" for line in Split.open(made).said))


def is_described_anew(run: Run) -> bool:
    """Whether the description of the run's data, or the dataset that it names, has changed since the import."""
    from dataset.importers import has_changed, is_format

    path, done = Path(run.data), run.folder / "dataset"
    if run.data.startswith("marketplace") or is_format(run.data) or not path.exists() or not done.exists():
        return False
    return has_changed(described_at(path, run.folder) or path, open_artifact(done, "dataset"))


def nothing_is_lost(run: Run) -> None:
    """Refuse to recreate a store that holds events or items that the data lacks."""
    from feature_repo.create import refuse_to_lose

    refuse_to_lose(run.folder / "store", open_dataset(run).items, open_split(run).months)


def store(run: Run) -> None:
    """Write the feature sources, apply the repository, and make this run the active one of ``feature_repo/``."""
    from dataset.extra import LeftOver, gone_before
    from feature_repo.create import create_store
    from feature_repo.ingest.item_states import withdraw
    from feature_repo.store import activate

    dataset, split = open_dataset(run), open_split(run)
    create_store(
        run.folder / "store",
        dataset,
        split,
        profile=run.profile, id_kinds=dataset.id_kinds, left_over=LeftOver.of(dataset.artifact),
    )  # fmt: skip
    withdraw(run.folder / "store", gone_before(dataset.artifact, split.end), split.end)
    activate(run.folder / "store")


def default_recipe(size: Size, dataset: Dataset) -> Recipe:
    """The recipe that measured best (docs/results.md#the-encoders).

    ``pretrained`` on real catalogues of the size for two cores, where its weights are installed; else ``ours``. Its
    towers have learned from photographs, and the simulated shop draws its pictures.
    """
    from encoder.recipes import ours, pretrained
    from encoder.towers.towers import are_installed

    return pretrained() if size.is_of_real_data and dataset.truth is None and are_installed() else ours()


def encoder(run: Run, recipe: str | None = None, backbone: Path | None = None, lora: int = 0) -> None:
    """Train the encoder by a recipe, from random weights or a checkpoint; a step or two where vectors are given."""
    from dataset.extra import given_vectors
    from encoder.recipes import ours
    from encoder.recipes import recipe as named
    from encoder.train import train_encoder

    dataset, size, budget = open_dataset(run), run.size, 1.0
    if (given := given_vectors(dataset.artifact)) is not None:
        sys.stderr.write(f"  {len(given[0]):,} items have vectors of their own: the encoder is untrained\n")
        size, budget = replace(size, item_width=given[1].shape[1]), 0.0
    if recipe is not None:
        chosen = named(recipe)
    else:
        chosen = ours() if backbone is not None or budget == 0.0 else default_recipe(size, dataset)
    if budget == 0.0:  # as wide as the given vectors
        chosen = replace(chosen, parts=replace(chosen.parts, discriminants=False))
    train_encoder(
        dataset,
        open_split(run),
        size,
        run.folder / "encoder",
        seed=run.seed,
        recipe=chosen,
        checkpoint=backbone,
        budget=budget,
        lora=lora,
    )


def embed(run: Run, shard: str | None = None) -> str | None:
    """Embed the catalogue and the queries, stamped with the end of what the encoder learned from.

    Items and queries that this encoder has embedded before are encoded again only if their content changed.

    Args:
        run: whose dataset and encoder.
        shard: ``1/4``: embed only this part; when none is missing, join and publish them. None: all.

    Returns:
        a message with the number of missing shards, while the embedding is incomplete.
    """
    from encoder.chunks import TABLES, refused_rows
    from encoder.embed import embed as embed_catalogue
    from encoder.embed import merge_shards
    from feature_repo.embeddings import publish_embedding

    out, dataset, encoder = run.folder / "embedding", open_dataset(run), open_encoder(run)
    previous, as_of = _previous(run, encoder), open_split(run).known_from
    is_done = (
        previous is not None
        and previous.path == out
        and _is_of(previous, dataset, as_of)
        and not any(refused_rows(previous.config, name) for name in TABLES)
    )
    done = (
        previous if is_done else None
    )  # by the last shard, perhaps, which was killed before it removed them all
    if shard is not None and done is None and (missing := embed_shard(run, shard)):
        return f"{missing} shards are missing: run 'moon embed --shard' for each"
    shards = sorted(path for path in (run.folder / "shards").glob("*-of-*") if not path.suffix)  # whole ones
    if done is not None:
        artifact = done
        sys.stderr.write("  every vector is there already\n")
    elif shards:
        parts = [open_artifact(path, "embedding-shard", "moon embed --shard") for path in shards]
        parents = {"dataset": dataset.artifact, "encoder": encoder}
        artifact = merge_shards(parts, parents | ({} if previous is None else {"previous": previous}), out)
    else:
        artifact = embed_catalogue(encoder, dataset, as_of=as_of, out=out, previous=previous)
    discard(run.folder / "shards")
    if artifact is not previous:
        _say_embedded(dataset, artifact)
    set_refused_aside(run.folder / "store", dataset, artifact)
    publish_embedding(run.folder / "store", artifact)
    return None


def set_refused_aside(store_dir: Path, dataset: Dataset, embedding: Artifact) -> None:
    """Make the dead letter hold the items and queries that this embedding refused, and no earlier ones."""
    from encoder.chunks import TABLES, refused_rows
    from feature_repo import dead_letters

    refused: set[str] = set()
    for name, key in TABLES.items():
        reasons = refused_rows(embedding.config, name)
        rows = {row[key]: row for row in getattr(dataset, name).to_pylist()} if reasons else {}
        for one, reason in reasons.items():
            record = {key: one, **{part: rows[one].get(part) for part in ("title", "text", "image_id")}}
            letter = dead_letters.put(
                store_dir, dead_letters.EMBEDDINGS, "embed", reason, record, f"{name}-{one}"
            )
            refused.add(letter.id)
    for letter in dead_letters.letters(store_dir, dead_letters.EMBEDDINGS):
        if letter.id not in refused:
            dead_letters.remove(store_dir, letter.id)


def embed_shard(run: Run, shard: str) -> int:
    """Embed one shard of the catalogue; returns how many shards are still missing."""
    from encoder.embed import embed as embed_catalogue
    from run.shards import parse_shard

    number, count = parse_shard(shard)
    folder, encoder = run.folder / "shards", open_encoder(run)
    embed_catalogue(
        encoder,
        open_dataset(run),
        as_of=open_split(run).known_from,
        out=folder / f"{number}-of-{count}",
        shard=(number, count),
        previous=_previous(run, encoder),
    )
    return sum(not (folder / f"{one}-of-{count}").exists() for one in range(1, count + 1))


def materialize(run: Run) -> None:
    """Load everything known at the end of the log into the online store."""
    from feature_repo.store import known_until
    from feature_repo.store import materialize as load_online
    from moon.releases import tell

    tell(run.folder, load_online(run.folder / "store", known_until(run.folder / "store")))


def retrieval(run: Run) -> None:
    """Count co-occurrences, train the two-tower model, build the indexes. Changed definitions are registered."""
    from feature_repo.store import apply_definitions
    from retrieval.build import build_retrieval

    apply_definitions(run.folder / "store")
    build_retrieval(run.folder, open_dataset(run), open_split(run), run.size, seed=run.seed)


def ranker(
    run: Run,
    recipe: str | None = None,
    settings: Path | None = None,
    stream: bool = False,
    history: int | None = None,
    ranks: int | None = None,
    **training: Any,
) -> None:
    """Train the ranker by a recipe and its controls on the same requests, the relevance head, and build the search.

    Each is left out where nothing teaches it. Changed definitions are registered. ``training``: see ``Training``.
    Where impressions were logged and neither a recipe nor settings are named, the validation users choose between
    ``cube`` and ``attention``, the same without vectors (docs/log/ranker.md#content-must-not-harm).
    """
    from feature_repo.embeddings import as_stored
    from feature_repo.frames.context import context_unknown
    from feature_repo.store import apply_definitions
    from moon.searching import build, relevance_head
    from ranker.controls import rankers
    from ranker.recipes import attention
    from ranker.recipes import recipe as named
    from ranker.settings import Settings
    from ranker.train import Training, train_ctr
    from retrieval.readings import Readings
    from retrieval.retriever import Retriever, open_retrieval

    chosen, tuned = named(recipe or "cube"), None if settings is None else Settings.read(settings)
    apply_definitions(run.folder / "store")
    cut, size = open_split(run), replace(run.size, ranker_history=history)
    retriever = Retriever.open(open_retrieval(run.folder, fitted=True))
    embedding, vectors = retriever.artifacts["embedding"], as_stored(retriever.vectors, run.folder / "store")
    if said := context_unknown(run.folder / "store", cut.shows):
        sys.stderr.write(f"  {said}\n")
    controls = {run.folder / f"ranker_{name}": reads for name, reads in rankers(vectors, run.seed).items()}
    if cut.ranks:
        steps = "rank_by" in training
        readings = Readings.open(run.folder, cut, size, run.seed, retriever, steps, stream)
        undecided = recipe is None and settings is None and readings.loss == "pointwise"
        blind = Training(recipe=chosen, settings=tuned, loss=readings.loss, seed=run.seed, **training)
        seeing = replace(blind, plainer=attention()) if undecided else blind
        for out, reads in controls.items():
            parents, how = {"split": cut.artifact}, blind
            if reads.vectors is not None:
                parents, how = parents | {"embedding": embedding}, seeing
            train, valid, asked = readings.by(reads)
            train_ctr(train, valid, reads.vectors, size, out, parents, how, ranks, asked=asked)
    else:
        sys.stderr.write("  no ranker: nothing in the log says what users took\n")
        for out in controls:
            discard(out)
    dataset = open_dataset(run)
    head = relevance_head(run, dataset, vectors, embedding, cut)
    build(run, dataset, open_encoder(run), replace(retriever, vectors=vectors), head, cut.end)


def daily(
    run: Run, recipe: str | None = None, history: int | None = None, wait: float = 0.0, **span: int | None
) -> None:
    """Train a ranker day after day, each day measured before it is learned from, where the log allows it.

    ``wait`` in hours, and ``span``: see ``evaluation.daily.Span``.
    """
    from datetime import timedelta

    from evaluation.daily import Span, daily
    from feature_repo.store import apply_definitions
    from ranker.recipes import recipe as named

    chosen, size = named(recipe or "cube"), replace(run.size, ranker_history=history)
    apply_definitions(run.folder / "store")
    asked = Span(wait=timedelta(hours=wait), **span)
    daily(run.folder, open_dataset(run), open_split(run), size, chosen, run.seed, asked)


def evaluate(run: Run) -> None:
    """Measure everything and write the report."""
    from evaluation.run import evaluate_run
    from run.folder import timings

    evaluate_run(
        run.folder, open_dataset(run), open_split(run), run.size, seed=run.seed, timings_s=timings(run)
    )


def switch(run: Run, profile: str) -> Run:
    """The same run with another online store; features of a materialized run are loaded into it."""
    from feature_repo.store import use_profile

    if stamp(run, "materialize").exists() or generations.current(run.folder) is not None:
        sys.stderr.write(f"load {run.folder} into the {profile} store\n")
        use_profile(run.folder / "store", profile)
        materialize(run)
    switched = replace(run, profile=profile)
    write_json(run.folder / "run.json", choices(switched))
    return switched


def publish(run: Run) -> None:
    """Seal the artifacts as a generation, and make it active."""
    from moon import releases as embeddings

    embeddings.activate(run.folder, embeddings.publish(run.folder).number)


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
    from encoder.chunks import refused_rows

    words = []
    for name, table in (("items", dataset.items), ("queries", dataset.queries)):
        kept = embedding.config[f"{name}_unchanged"]
        refused = len(refused_rows(embedding.config, name))
        encoded = len(table) - embedding.config[f"{name}_without_content"] - kept - refused
        aside = f", {refused:,} set aside, see 'moon deadletter list embeddings'" if refused else ""
        words.append(f"{encoded:,} {name} embedded, {kept:,} kept{aside}")
    sys.stderr.write(f"  {'; '.join(words)}\n")


def open_encoder(run: Run) -> Artifact:
    """The encoder that the run trained."""
    return open_artifact(run.folder / "encoder", "encoder")


def open_dataset(run: Run) -> Dataset:
    """The canonical tables of the run."""
    from dataset.tables import Dataset

    return Dataset.open(open_artifact(run.folder / "dataset", "dataset"))


def open_split(run: Run) -> Split:
    """How the run cuts its log in time."""
    from dataset.split import Split

    return Split.open(open_artifact(run.folder / "split", "split"))
