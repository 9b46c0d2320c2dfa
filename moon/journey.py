"""The data's journey: the stages in order, where each left off, and how to go on."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from run import generations
from run.artifacts import write_json
from run.folder import LAST, RUNS, JourneyError, Run, choices, load, stamp
from run.sizes import REAL, SIMULATED, size

COMMANDS = {"encoder": "moon encoder train", "publish": "moon embeddings publish --activate"}


@dataclass(frozen=True)
class Stage:
    """One arrow of the journey."""

    verb: str
    says: str
    work: Callable[..., None]
    # Raises, before anything is touched, where the stage may not be repeated.
    refuse: Callable[[Run], None] | None = None

    @property
    def command(self) -> str:
        """What to type to run it alone."""
        return COMMANDS.get(self.verb, f"moon {self.verb}")


def stages() -> tuple[Stage, ...]:
    """The stages in order; the verbs are the commands of ``moon``."""
    from moon import stages as work

    return (
        Stage("dataset", "raw catalogue and logs -> canonical tables", work.dataset),
        Stage("split", "events -> what is learned from, what trains the ranker, what tests it", work.split),
        Stage(
            "store", "tables -> Feast sources and registry (feast apply)", work.store, work.nothing_is_lost
        ),
        Stage(
            "encoder", "catalogue and behaviour -> MOON encoder (pretraining, post-training)", work.encoder
        ),
        Stage("embed", "items and queries -> versioned vectors in the store", work.embed),
        Stage("materialize", "offline features -> online store (feast materialize)", work.materialize),
        Stage("retrieval", "history -> candidates: co-occurrence, two-tower, index", work.retrieval),
        Stage("ranker", "point-in-time frames -> CTR model and its controls", work.ranker),
        Stage("evaluate", "artifacts -> metrics.json and report.html", work.evaluate),
        Stage("publish", "encoder, vectors, index, ranker -> a generation that serves", work.publish),
    )


def start(data: str, folder: Path | None, size_name: str | None, seed: int, profile: str) -> Run:
    """Create or reopen the run of ``data``.

    Raises:
        JourneyError: the folder already holds something made with other choices, or the data cannot be meant.
        SizeError: unknown size.
    """
    name, _, rest = data.partition(":")
    if name == "marketplace" and rest and not rest.isdigit():
        raise JourneyError(
            f"data {data!r}: expected marketplace or marketplace:EVENTS, e.g. marketplace:120000"
        )
    if profile not in ("embedded", "redis"):
        raise JourneyError(f"unknown profile {profile!r}: expected embedded or redis")
    chosen = size(size_name or (SIMULATED if name == "marketplace" else REAL))
    run = Run(folder or RUNS / name, data, chosen.name, seed, profile)
    record = run.folder / "run.json"
    if record.exists():
        known = load(run.folder)
        if known != run and replace(known, profile=profile) == run:
            return switch(known, profile)
        if known != run and (run.folder / "stages").exists():
            raise JourneyError(
                f"{run.folder} holds the run {choices(known)}, asked for {choices(run)}. "
                f"Choose another folder with --run, or remove this one."
            )
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(record, choices(run))
    RUNS.mkdir(exist_ok=True)
    write_json(LAST, {"folder": str(run.folder)})
    return run


def switch(run: Run, profile: str) -> Run:
    """The same run with another online store: a finished one is loaded into it."""
    from moon import stages as work

    if stamp(run, "materialize").exists() or generations.current(run.folder) is not None:
        _say(f"load {run.folder} into the {profile} store")
        work.switch_store(run, profile)
    switched = replace(run, profile=profile)
    write_json(run.folder / "run.json", choices(switched))
    return switched


def travel(run: Run) -> None:
    """Run every stage that is not done yet, in order; a finished one is not repeated."""
    todo = stages()
    for number, stage in enumerate(todo, start=1):
        _say(f"[{number}/{len(todo)}] {stage.verb}: {stage.says}")
        if _done(run, stage.verb):
            _say("  already done")
        else:
            _work(run, stage)


def redo(run: Run, verb: str, **options: Any) -> None:
    """Run one stage now, with options of its own; what comes after it must be run again.

    Raises:
        JourneyError: an earlier stage is missing.
    """
    for stage in stages():
        if stage.verb == verb:
            if stage.refuse is not None:
                stage.refuse(run)
            for later in stages()[stages().index(stage) :]:
                stamp(run, later.verb).unlink(missing_ok=True)
            _work(run, stage, **options)
            return
        if not _done(run, stage.verb):
            raise JourneyError(
                f"{run.folder}: '{verb}' needs '{stage.verb}' first. "
                f"Run '{stage.command}', or 'moon demo --data {run.data}' for everything."
            )


def seeds(run: Run) -> dict[str, dict[str, float | int]]:
    """Measure the ranker and its controls over several seeds; see ``evaluation.seeds``."""
    from moon import stages as work

    _require(run, until="publish")
    return work.seeds(run)


def embed(run: Run, shard: str | None) -> None:
    """Embed the catalogue, or one shard of it; when none is missing, join and publish them.

    The dataset may have changed since the encoder was trained: its vectors of what has not are kept.

    Raises:
        JourneyError: an earlier stage is missing.
    """
    from moon import stages as work

    _require(run, until="encoder")
    if not _done(run, "encoder"):
        _say(f"  with encoder {work.keep_encoder(run)} as it is; 'moon encoder train' makes a new one")
        _stamp_done(run, "encoder", 0.0)
    if shard is not None:
        missing = work.embed_shard(run, shard)
        if missing:
            _say(f"{missing} shards are missing: run 'moon embed --shard' for each")
            return
    redo(run, "embed")


def ingest(run: Run, source: str, consumer: str | None, clock: str) -> str:
    """Take in events of a stream until interrupted, or of a file; what became of them."""
    from moon import stages as work

    _require(run, until="encoder")
    return work.ingest(run, source, consumer, clock)


def fold(run: Run) -> str:
    """Make what came in part of the offline log; what to run next."""
    from moon import stages as work

    _require(run, until="encoder")
    events, items = work.fold(run)
    joined = f"{events} events and {items} items joined the offline log"
    return f"{joined}. Run 'moon materialize' to count them."


def frame(run: Run, shard: str | None, by: str) -> str:
    """Write the run's logged requests as a training frame, or one shard of it; when none is missing, join them.

    Raises:
        JourneyError: the store is not there yet.
    """
    from moon import stages as work

    _require(run, until="encoder")
    return work.frame(run, shard, by)


def compare_encoders(run: Run, seconds: float, ablated: bool, recipe: str | None = None) -> str:
    """Train and examine every recipe, or one, on the run's dataset; see ``evaluation.science.encoders.compare``.

    Raises:
        JourneyError: the dataset is not there yet.
    """
    from moon import stages as work

    if not _done(run, "dataset"):
        raise JourneyError(f"{run.folder}: 'encoder compare' needs 'dataset' first. Run 'moon dataset'.")
    return work.compare_encoders(run, seconds, ablated, recipe)


def serve(run: Run, host: str, port: int, profile: str | None, clock: str) -> None:
    """Serve the active generation over HTTP until interrupted, whatever else is being made in the run folder.

    Raises:
        GenerationError: none is active.
    """
    from moon import stages as work

    active = generations.find(run.folder, generations.serving(run.folder).generation)
    if newer := generations.newer(run.folder, active):
        _say(
            f"serving generation {active.number}; {run.folder} holds another {', '.join(newer)}: run "
            f"'moon embeddings publish --activate' to serve it"
        )
    if profile is not None and profile != run.profile:
        run = switch(run, profile)
    work.serve(run, host, port, clock)


def _require(run: Run, until: str | None = None) -> None:
    """Every stage, or every one before ``until``, is done."""
    for stage in stages():
        if stage.verb == until:
            return
        if not _done(run, stage.verb):
            raise JourneyError(
                f"{run.folder}: '{stage.verb}' is not done. Run 'moon demo --data {run.data}' first."
            )


def _work(run: Run, stage: Stage, **options: Any) -> None:
    began = time.monotonic()
    stage.work(run, **options)
    seconds = time.monotonic() - began
    _stamp_done(run, stage.verb, seconds)
    _say(f"  done in {seconds:.0f} s")


def _stamp_done(run: Run, verb: str, seconds: float) -> None:
    stamp(run, verb).parent.mkdir(exist_ok=True)
    write_json(stamp(run, verb), {"key": _key(run, verb), "seconds": round(seconds, 2)})


def _done(run: Run, verb: str) -> bool:
    path = stamp(run, verb)
    return path.exists() and json.loads(path.read_text())["key"] == _key(run, verb)


def _key(run: Run, verb: str) -> str:
    decided = [run.data, run.size_name, run.seed, verb]  # the online store can be switched at any time
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:16]


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
