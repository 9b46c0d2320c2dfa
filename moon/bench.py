"""``moon bench``: what this machine takes, beside plain ways and the floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from moon.options import RunOption

if TYPE_CHECKING:
    from evaluation.bench.lines import Line

JsonOption = Annotated[bool, typer.Option("--json", help="Print a list of lines as JSON.")]

bench = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


@bench.command("encoder")
def bench_encoder(json: JsonOption = False) -> None:
    """Measure training and embedding speed beside a plain transformers loop."""
    from evaluation.bench.encoder import bench_encoder

    lines = bench_encoder()
    _print(lines, json)


@bench.command("store")
def bench_store(json: JsonOption = False) -> None:
    """Measure the feature store beside stock Feast and beside the floor of this machine; write runs/store.html."""
    from evaluation.bench import store as bench_store
    from evaluation.bench.report import render_store_report
    from run.folder import RUNS

    if said := bench_store.left_out():
        typer.echo(said, err=True)
    lines = list(bench_store.bench_store())
    _print(lines, json)
    typer.echo(f"report: {render_store_report(RUNS / 'store.html', lines)}", err=True)


@bench.command("ranker")
def bench_ranker(json: JsonOption = False) -> None:
    """Measure the ranker beside other libraries' DIN and beside padded samples, at growing histories."""
    from evaluation.bench import ranker as bench_ranker

    if said := bench_ranker.left_out():
        typer.echo(said, err=True)
    lines = list(bench_ranker.bench_ranker())
    _print(lines, json)


@bench.command("serving")
def bench_serving(run: RunOption = None, json: JsonOption = False) -> None:
    """Measure the service of a run: latency, how soon a new item is recommended, and who waits under load."""
    from evaluation.bench.load import bench_load
    from evaluation.bench.serving import bench_serving
    from moon import journey

    folder = journey.load(run).folder
    lines = [*bench_serving(folder), *bench_load(folder)]
    _print(lines, json)


@bench.command("import")
def bench_import(
    events: Annotated[
        int, typer.Option(help="How many purchases; an item for every 30 of them.")
    ] = 3_000_000,
    last_day: Annotated[
        bool, typer.Option("--last-day", help="Instead, append the last day, beside all from scratch.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure seconds and memory of importing and splitting a large log like H&M's, written for it and removed."""
    from evaluation.bench.imports import bench_import
    from evaluation.bench.last_day import bench_last_day

    lines = (bench_last_day if last_day else bench_import)(events)
    _print(lines, json)


def _print(lines: Sequence[Line], json: bool) -> None:
    from evaluation.bench.lines import to_json, to_text

    typer.echo(to_json(lines) if json else to_text(lines))
