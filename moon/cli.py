"""The command line: one verb per stage of the data's journey, and ``moon demo`` for all of them.

a folder -> ``init`` (``moon.toml`` says what is what) -> raw catalogue + logs -> ``dataset``
-> tables under contract -> ``split`` -> ``store`` (feast apply)
-> ``encoder`` (pretraining, post-training) -> ``embed`` -> ``item_embedding`` views -> ``materialize``
-> ``retrieval`` (two-tower, co-occurrence, index) -> ``ranker`` (impressions -> point-in-time frame -> CTR
model) -> ``evaluate`` -> ``publish`` (a generation that is active) -> ``serve``.

While the service runs, ``ingest`` accepts events, ``fold`` adds them to the offline log, and ``embeddings``
switches to another generation.

Heavy imports live inside the commands, so that ``moon --help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from moon.bench import bench
from moon.deadletter import deadletter
from moon.embeddings import generations
from moon.failures import told
from moon.keys import app as keys
from moon.options import (
    RECIPES,
    CalibrateOption,
    ClockOption,
    CompareOption,
    DailyOption,
    DataOption,
    ExploreOption,
    ForgetOption,
    HistoryOption,
    KeysOption,
    PositionTowerOption,
    ProfileOption,
    RankByOption,
    RankerOption,
    RanksOption,
    RepeatsOption,
    RequestsOption,
    RunOption,
    SeedOption,
    SettingsOption,
    SizeOption,
    SplitOption,
    StreamOption,
    TuneOption,
    WaitOption,
    WithoutOption,
    refuse_beside,
    require_together,
)

INTERRUPTED = 130  # exit code of a program that ctrl-C ended
app = typer.Typer(
    help="Moon: a feature-store-centric multimodal recommender.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(deadletter, name="deadletter")


@app.command()
def demo(
    data: DataOption = "marketplace",
    run: RunOption = None,
    size: SizeOption = None,
    seed: SeedOption = 0,
    profile: ProfileOption = "embedded",
    split: SplitOption = None,
    repeats: RepeatsOption = None,
) -> None:
    """Run the whole journey on DATA, resuming where it was interrupted, and print the results."""
    from moon import journey, summary

    settings = journey.start(data, run, size, seed, profile, split, repeats)
    journey.travel(settings)
    typer.echo(summary.text(settings.folder))


def _do(verb: str, run: Path | None, **options: Any) -> None:
    """Run one command on a run and print its message, if any."""
    from moon import journey

    if said := journey.do(journey.load(run), verb, **options):
        typer.echo(said)


def _tell_days(run: Path | None) -> None:
    """Print what was measured day after day, if anything was."""
    from moon import journey, summary

    if said := summary.days(journey.load(run).folder):
        typer.echo(said)


@app.command()
def dataset(
    context: typer.Context,
    data: DataOption = "marketplace",
    run: RunOption = None,
    size: SizeOption = None,
    seed: SeedOption = 0,
    profile: ProfileOption = "embedded",
    append: Annotated[
        list[Path] | None,
        typer.Option(
            "--append", help="Folder of new files for the run that is there, in its format; may be repeated."
        ),
    ] = None,
) -> None:
    """Simulate the marketplace or import real data into canonical tables, or add new files to a run's."""
    from moon import journey

    if append:
        refuse_beside(context, "--append", "data", "size", "seed", "profile")
        _do("dataset --append", run, folders=append)
        return
    journey.do(journey.start(data=data, folder=run, size_name=size, seed=seed, profile=profile), "dataset")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of your tables and pictures.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: moon.toml in the folder.")
    ] = None,
) -> None:
    """Look at a folder of data and write moon.toml: which file is what, which column is what, and why."""
    from moon.describing import init as describe

    typer.echo(describe(folder.expanduser(), out))


@app.command()
def split(
    run: RunOption = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="time, last (leave one out), users or given; default: by the data."),
    ] = None,
    repeats: RepeatsOption = None,
) -> None:
    """Split the log: history to learn from, training data of the ranker, test data."""
    from moon import journey

    journey.do(journey.resplit(journey.load(run), by, repeats), "split")


@app.command()
def store(run: RunOption = None) -> None:
    """Write the feature sources and apply the Feast repository."""
    _do("store", run)


encoders = typer.Typer(help="Train the MOON encoder, or compare its recipes.", no_args_is_help=True)
app.add_typer(encoders, name="encoder")
app.add_typer(generations, name="embeddings")
app.add_typer(keys, name="keys")
app.add_typer(bench, name="bench")


features = typer.Typer(help="Examine the feature store of a run.", no_args_is_help=True)
app.add_typer(features, name="features")


@features.command("list")
def features_list(run: RunOption = None) -> None:
    """Every feature of every view, its type, and which services read it; those of your own columns among them."""
    from feature_repo.listing import listed
    from moon import journey

    typer.echo(listed(journey.load(run).folder / "store"))


@features.command("check")
def features_check(run: RunOption = None) -> None:
    """Coverage, parity, freshness, nulls and drift of every view; exit code 1 if one exceeds its limit."""
    from feature_repo.check import check_store, to_text
    from moon import journey

    findings = check_store(journey.load(run).folder / "store")
    typer.echo(to_text(findings))
    if any(one.problems for one in findings):
        raise typer.Exit(1)


@encoders.command("train")
def encoder_train(
    run: RunOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"{RECIPES}; default: ours, or pretrained where installed, for real pictures."),
    ] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="A local Hugging Face folder to start from, e.g. of Qwen3-VL.")
    ] = None,
    lora: Annotated[int, typer.Option(help="Rank of adapters to train instead of all weights; 0: all.")] = 0,
) -> None:
    """Train the encoder of a run by a recipe, from random weights or from a checkpoint."""
    _do("encoder", run, recipe=recipe, backbone=backbone, lora=lora)


@encoders.command("compare")
def encoder_compare(
    run: RunOption = None,
    seconds: Annotated[float, typer.Option(help="CPU seconds of training for each encoder.")] = 60.0,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Leave each idea out, and reinforce, as well.")
    ] = False,
    recipe: Annotated[str | None, typer.Option(help=f"Only this recipe: {RECIPES}.")] = None,
) -> None:
    """Train every recipe with three seeds at equal compute on held-out products; write a table and a report."""
    _do("encoder compare", run, seconds=seconds, ablated=ablations, recipe=recipe)


@app.command()
def embed(
    run: RunOption = None,
    shard: Annotated[
        str | None, typer.Option(help="Only part I of N, as 1/4; the last one joins them.")
    ] = None,
) -> None:
    """Embed every item and query, and publish the vectors to the feature store."""
    _do("embed", run, shard=shard)


@app.command()
def frame(
    run: RunOption = None,
    shard: Annotated[
        str | None, typer.Option(help="Only part I of N, as 1/4; the last one joins them.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", help="With --shard: what a part is, users or a stretch of time; default: users."
        ),
    ] = None,
) -> None:
    """Write the logged requests with their point-in-time features, as a frame that any trainer can open."""
    if by is not None and shard is None:
        raise typer.BadParameter("expected with --shard", param_hint="--by")
    _do("frame", run, shard=shard, by=by or "users")


@app.command()
def materialize(run: RunOption = None) -> None:
    """Load the latest features into the online store."""
    _do("materialize", run)


@app.command()
def ingest(
    source: Annotated[
        str, typer.Argument(help="redis://HOST:PORT/DB/STREAM, or a file with an event as JSON on each line.")
    ],
    run: RunOption = None,
    consumer: Annotated[
        str | None, typer.Option(help="Name in the stream's consumer group; default: of this machine.")
    ] = None,
    clock: ClockOption = "log",
) -> None:
    """Add events to users' online histories and the journal: from a stream until interrupted, or from a file."""
    if consumer is not None and not source.startswith("redis://"):
        raise typer.BadParameter("expected with a stream, redis://...", param_hint="--consumer")
    _do("ingest", run, source=source, consumer=consumer, clock=clock)


@app.command()
def fold(run: RunOption = None) -> None:
    """Add ingested events and items to the offline log, from which training frames are made."""
    _do("fold", run)


@app.command()
def retrieval(run: RunOption = None) -> None:
    """Train the two-tower model, count co-occurrences, build the index."""
    _do("retrieval", run)


@app.command()
def ranker(
    run: RunOption = None,
    recipe: RankerOption = None,
    without: WithoutOption = None,
    compare: CompareOption = None,
    requests: RequestsOption = None,
    ranks: RanksOption = None,
    stream: StreamOption = False,
    daily: DailyOption = False,
    wait: WaitOption = 0.0,
    forget: ForgetOption = None,
    tune: TuneOption = None,
    settings: SettingsOption = None,
    calibrate: CalibrateOption = None,
    rank_by: RankByOption = None,
    position_tower: PositionTowerOption = False,
    history: HistoryOption = None,
) -> None:
    """Train the ranker from point-in-time frames, with its controls: plain content, ids only, shuffled vectors."""
    modes = {"--daily": daily, "--compare": compare, "--tune": tune, "--without": without}
    trained = {
        "--ranks": ranks, "--settings": settings, "--calibrate": calibrate, "--rank-by": rank_by, "--stream": stream,
        "--position-tower": position_tower,
    }  # fmt: skip
    require_together(modes, trained, {"--wait": wait, "--forget": forget}, {"--requests": requests})
    if daily:
        _do("daily", run, recipe=recipe, history=history, wait=wait, requests=requests, forget=forget)
        _tell_days(run)
    elif compare is not None:
        _do(
            "ranker --compare",
            run,
            seeds=compare,
            recipe=recipe,
            trials=tune,
            requests=requests,
            history=history,
        )
    elif tune is not None:
        _do("ranker --tune", run, trials=tune, recipe=recipe, history=history)
    elif without:
        _do("ranker --without", run, without=without, recipe=recipe, history=history)
    else:
        training: dict[str, Any] = {} if rank_by is None else {"rank_by": rank_by}
        training |= {"position_tower": True} if position_tower else {}
        training |= {"ranks": ranks, "calibrate": calibrate, "history": history}
        _do("ranker", run, recipe=recipe, settings=settings, stream=stream, **training)


@app.command()
def evaluate(run: RunOption = None) -> None:
    """Measure encoder, retrieval and ranking against named baselines; write metrics.json and report.html."""
    _do("evaluate", run)


@app.command()
def seeds(run: RunOption = None) -> None:
    """Train the ranker and its controls with three seeds; print mean and deviation of their metrics."""
    _do("seeds", run)


@app.command()
def serve(
    run: RunOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    profile: Annotated[str | None, typer.Option("--profile", help="embedded or redis.")] = None,
    clock: ClockOption = "log",
    workers: Annotated[int, typer.Option(help="Processes that share the port; each uses one core.")] = 1,
    drain: Annotated[
        float, typer.Option(help="Seconds that requests are still accepted after SIGTERM.")
    ] = 5.0,
    explore: ExploreOption = 0.0,
    keys: KeysOption = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which clients reach it, besides its address; may be repeated."),
    ] = None,
) -> None:
    """Answer /recommend, /search and /similar over HTTP from a finished run."""
    options = {"host": host, "port": port, "clock": clock, "workers": workers, "drain_s": drain}
    _do("serve", run, profile=profile, keys=keys, hosts=tuple(allow_host or ()), explore=explore, **options)


def main() -> None:
    """Entry point: errors of Moon's own packages are printed as one message, not as a traceback."""
    _quiet()
    code = 0
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        said = told(error)
        if said is None:
            raise
        typer.echo(said, err=True)
        code = 1
    if code == INTERRUPTED:  # Typer turns an interrupt inside a command into this code
        typer.echo("interrupted: run the same command again to go on", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # DuckDB's bindings list every object alive at a normal exit; artifacts are on disk by now


def _quiet() -> None:
    """Hide deprecation warnings and log lines of libraries from the user."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin starve their neighbours
    # NumPy solves thousands of small systems, for which its threads only wait: docs/log/engineering.md#small-systems
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
        if not issubclass(
            category, DeprecationWarning | FutureWarning
        ):  # Feast resets the filters when imported
            shown(message, category, *place, **rest)

    warnings.showwarning = show
    for name in ("feast", "torch.fx._symbolic_trace", "torchrec"):
        logging.getLogger(name).setLevel(logging.ERROR)
