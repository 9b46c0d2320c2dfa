"""The commands on a run, which stage each needs, and how an interrupted run is resumed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataset.importers import IMPORTERS, is_format
from dataset.protocols import BY
from moon import stages as work
from moon import verbs
from moon.failures import names_own_ids
from moonstore.disk import make_folder, writing
from moonstore.files import write_json
from run.artifacts import open_artifact, read_json
from run.folder import LAST, REPEATS, RUNS, STAMPED, STAMPED_AGAIN, JourneyError, Run, choices, load, stamp
from run.sizes import REAL, SIMULATED, size

COMMANDS = {
    "encoder": "moon encoder train",
    "daily": "moon ranker --daily",
    "publish": "moon embeddings publish --activate",
}


@dataclass(frozen=True)
class Verb:
    """A command on a run.

    Attributes:
        verb: its name.
        needs: the last stage that must be done first; None: no stage.
        work: the function that runs it; returns a message for the user, if any.
        learns: whether it is refused on data or features that have changed since they were imported or stored.
    """

    verb: str
    needs: str | None
    work: Callable[..., str | None]
    learns: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class Stage(Verb):
    """A command whose completion is recorded; repeating it invalidates all later stages that read what it makes.

    Attributes:
        says: its inputs and outputs, for progress messages.
        refuse: raises, before anything is touched, where the stage may not be repeated.
        is_read: whether later stages read what it makes.
        is_needed: whether later stages may not be run before it: a run of an earlier release may lack it.
    """

    says: str
    refuse: Callable[[Run], None] | None = None
    is_read: bool = True
    is_needed: bool = True

    @property
    def command(self) -> str:
        """What to type to run it alone."""
        return COMMANDS.get(self.verb, f"moon {self.verb}")


STAGES = (  # name, the stage it needs, its function, inputs -> outputs
    Stage(
        "dataset",
        None,
        work.dataset,
        "raw catalogue and logs -> canonical tables",
        work.nothing_is_dropped,
        learns=False,
    ),
    Stage("split", "dataset", work.split, "events -> history, ranker training, test"),
    Stage("store", "split", work.store, "tables -> Feast sources and registry", work.nothing_is_lost),
    Stage("encoder", "store", work.encoder, "catalogue, behaviour -> MOON encoder (pre- and post-training)"),
    # An encoder of an earlier dataset may be reused: only new and changed items are embedded again.
    Stage("embed", "store", work.embed, "items and queries -> versioned vectors in the store"),
    # Models are trained on offline features: loading them again leaves the models as they are.
    Stage(
        "materialize",
        "embed",
        work.materialize,
        "offline features -> online store",
        is_read=False,
        learns=False,
    ),
    Stage("retrieval", "materialize", work.retrieval, "history -> co-occurrence, two-tower, index"),
    Stage("ranker", "retrieval", work.ranker, "point-in-time frames -> CTR model and its controls"),
    Stage(
        "daily",
        "retrieval",
        work.daily,
        "day after day -> drift of the figures",
        is_read=False,
        is_needed=False,
    ),
    Stage("evaluate", "ranker", work.evaluate, "artifacts -> metrics.json and report.html"),
    Stage("publish", "evaluate", work.publish, "encoder, vectors, index, ranker -> a generation that serves"),
)
VERBS = (
    Verb("dataset --append", "dataset", verbs.append, learns=False),
    Verb("frame", "store", verbs.frame),
    Verb("ingest", "store", verbs.ingest, learns=False),  # events do not wait
    Verb("fold", "store", verbs.fold, learns=False),
    Verb("encoder compare", "dataset", verbs.compare_encoders),
    Verb("ranker --without", "ranker", verbs.worth),
    Verb("ranker --compare", "retrieval", verbs.compare_rankers),
    Verb("ranker --tune", "retrieval", verbs.tune_ranker),
    Verb("seeds", "evaluate", verbs.seeds),
    # The active generation, whatever is being made in the run folder.
    Verb("serve", None, verbs.serve, learns=False),
)


def start(
    data: str,
    folder: Path | None,
    size_name: str | None,
    seed: int,
    profile: str,
    split: str | None = None,
    repeats: str | None = None,
) -> Run:
    """Create or reopen the run of ``data``; to ask for something else undoes the stages from the split on.

    Size, split and repeats that are not given are those of the run, if it is there.

    Raises:
        JourneyError: the folder already holds a run with other settings, or ``data`` or ``profile`` is invalid.
        SizeError: unknown size.
    """
    name, _, rest = data.partition(":")
    if name != "marketplace" and not is_format(data):
        data, name = _place(data)
    if name == "marketplace" and rest and not rest.isdigit():
        raise JourneyError(
            f"data {data!r}: expected marketplace or marketplace:EVENTS, e.g. marketplace:120000"
        )
    if profile not in ("embedded", "redis"):
        raise JourneyError(f"unknown profile {profile!r}: expected embedded or redis")
    require_split(split, repeats)
    folder = folder or RUNS / name
    record = folder / "run.json"
    known = load(folder) if record.exists() else None
    usual = SIMULATED if name == "marketplace" else REAL
    own = usual if known is None or known.data != data else known.size_name
    run = Run(folder, data, size(size_name or own).name, seed, profile, split, repeats)
    if known is not None:
        run = replace(
            run,
            split=known.split if split is None else split,
            repeats=known.repeats if repeats is None else repeats,
        )
        known = replace(known, split=run.split, repeats=run.repeats)
        if known != run and replace(known, profile=profile) == run:
            return work.switch(known, profile)
        if known != run and (run.folder / "stages").exists():
            raise JourneyError(
                f"{run.folder} holds the run {choices(known)}, asked for {choices(run)}. "
                f"Choose another folder with --run, or remove this one."
            )
    make_folder(run.folder)
    make_folder(RUNS)
    write_json(record, choices(run))
    write_json(LAST, {"folder": str(run.folder)})
    return run


def _place(data: str) -> tuple[str, str]:
    """The absolute path that ``data`` is, and the name of its run.

    Raises:
        JourneyError: there is nothing of that name.
    """
    path = Path(data).expanduser()
    if path.exists():
        named = path.parent if path.is_file() else path
        return str(path.resolve()), named.resolve().name
    if ":" in data:
        return data, data.partition(":")[0]  # a format that nobody knows: the import says so
    raise JourneyError(
        f"data {data!r}: expected marketplace, FORMAT:FOLDER ({', '.join(IMPORTERS)}), or a folder that is there"
    )


def resplit(run: Run, by: str | None, repeats: str | None) -> Run:
    """The same run with another protocol of its split, and other likes asked for; None: as it has them.

    Raises:
        JourneyError: an unknown protocol, or neither yes nor no.
    """
    require_split(by, repeats)
    changed = replace(
        run, split=run.split if by is None else by, repeats=run.repeats if repeats is None else repeats
    )
    if changed == run:
        return run
    write_json(run.folder / "run.json", choices(changed))
    return changed


def require_split(by: str | None, repeats: str | None) -> None:
    """Refuse a protocol of the split that nobody knows, and repeats that are neither; None is chosen from the data.

    Raises:
        JourneyError: naming those that there are.
    """
    if by is not None and by not in BY:
        raise JourneyError(f"unknown protocol {by!r}: expected one of {', '.join(BY)}")
    if repeats is not None and repeats not in REPEATS:
        raise JourneyError(f"repeats {repeats!r}: expected {' or '.join(REPEATS)}")


@names_own_ids
def travel(run: Run) -> None:
    """Run every stage that is not done yet, in order; a finished one is not repeated.

    The import is repeated, and all that follows, when the description of the data has changed.
    """
    if _done(run, STAGES[0]) and work.is_described_anew(run):
        work.nothing_is_dropped(run)
        _say(f"{run.data} says something else than when it was imported: it is imported again")
        _undo(run, STAGES)
    for number, stage in enumerate(STAGES, start=1):
        _say(f"[{number}/{len(STAGES)}] {stage.verb}: {stage.says}")
        if _done(run, stage):
            _say("  already done")
        else:
            _require(run, stage)
            _work(run, stage)


@names_own_ids
def do(run: Run, verb: str, **options: Any) -> str | None:
    """Run one command now, with its own options; a stage invalidates the later ones that read what it makes.

    Returns:
        a message for the user, if any.

    Raises:
        JourneyError: a stage that it needs is missing.
    """
    asked = next(one for one in (*STAGES, *VERBS) if one.verb == verb)
    _require(run, asked)
    if not isinstance(asked, Stage):
        return asked.work(run, **options)
    if asked.refuse is not None:
        asked.refuse(run)
    place = STAGES.index(asked)
    for earlier in STAGES[:place]:
        if earlier.is_needed and not _done(run, earlier):
            _keep(run, earlier)
    _undo(run, STAGES[place:] if asked.is_read else (asked,))
    return _work(run, asked, **options)


def _undo(run: Run, stages: Sequence[Stage]) -> None:
    """Mark stages as not done."""
    with writing(run.folder):
        for undone in stages:
            stamp(run, undone.verb).unlink(missing_ok=True)


def _require(run: Run, asked: Verb) -> None:
    """Raise unless the stage that a command needs, and all before it, are done, of data and features of today."""
    for stage in () if asked.needs is None else STAGES:
        if stage.is_needed and not _done(run, stage):
            raise JourneyError(
                f"{run.folder}: '{asked.verb}' needs '{stage.verb}' first. "
                f"Run '{stage.command}', or 'moon demo --data {run.data}' for everything."
            )
        if stage.verb == asked.needs:
            break
    if asked.learns:
        _require_today(run, asked)


def _require_today(run: Run, asked: Verb) -> None:
    """Raise if a command would learn from another description's dataset, or another definition's store, than today's.

    The store itself is made anew by the command that is asked for.
    """
    if work.is_described_anew(run):
        raise JourneyError(
            f"{run.folder / 'dataset'}: expected what {run.data} says now, found what it said when it was imported. "
            f"Run 'moon demo --data {run.data} --run {run.folder}' to import it again, and for all that follows."
        )
    if asked.needs not in (None, "dataset", "split"):
        from feature_repo.store import require_as_defined

        require_as_defined(run.folder / "store")


def _keep(run: Run, stage: Stage) -> None:
    """Mark a stage as done whose artifact was made from earlier data, because the next stage can use it."""
    made = open_artifact(run.folder / stage.verb, stage.verb, stage.command)
    _say(f"  with {stage.verb} {made.id} as it is; '{stage.command}' makes a new one")
    _note(run, stage, 0.0)


def _work(run: Run, stage: Stage, **options: Any) -> str | None:
    began = time.monotonic()
    with writing(run.folder):
        missing = stage.work(run, **options)
    if missing is None:
        seconds = time.monotonic() - began
        _note(run, stage, seconds)
        _say(f"  done in {seconds:.0f} s")
    return missing


def _note(run: Run, stage: Stage, seconds: float) -> None:
    make_folder(stamp(run, stage.verb).parent)
    write_json(stamp(run, stage.verb), {"key": _key(run, stage.verb), "seconds": round(seconds, 2)})


def _done(run: Run, stage: Stage) -> bool:
    path = stamp(run, stage.verb)
    return path.exists() and read_json(path, STAMPED_AGAIN, STAMPED)["key"] == _key(run, stage.verb)


def _key(run: Run, verb: str) -> str:
    """What a stage was done for: another key undoes it.

    Files that were appended undo, from the moment they are in the dataset, every stage but the encoder: it is kept,
    as when a generation is published, and embeds what is new.
    """
    decided = [run.data, run.size_name, run.seed, verb]  # the online store can be switched at any time
    if run.split is not None and verb != "dataset":
        decided.append(run.split)
    if run.repeats is not None and verb != "dataset":
        decided.append(f"repeats {run.repeats}")
    if verb not in ("dataset", "encoder") and (grown := work.grown(run)) is not None:
        decided.append(grown)
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:16]


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
