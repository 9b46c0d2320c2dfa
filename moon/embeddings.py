"""``moon embeddings``: the commands on generations; what they do is in ``moon.releases``."""

from __future__ import annotations

from typing import Annotated

import typer

from moon.options import RunOption

generations = typer.Typer(
    help="Publish a generation (encoder, vectors, models trained on them), switch, roll back, remove old ones.",
    no_args_is_help=True,
)


@generations.command("publish")
def embeddings_publish(
    run: RunOption = None,
    activate: Annotated[bool, typer.Option("--activate", help="Also make it the active one.")] = False,
) -> None:
    """Check the run's vectors, load them beside the old ones, and seal them with the models trained on them."""
    from moon import journey
    from moon import releases as embeddings

    folder = journey.load(run).folder
    number = embeddings.publish(folder).number
    if activate:
        embeddings.activate(folder, number)
    typer.echo(embeddings.table(folder))


@generations.command("activate")
def embeddings_activate(
    generation: Annotated[int, typer.Argument(help="Its number, see 'moon embeddings list'.")],
    run: RunOption = None,
) -> None:
    """Make a published generation active; a running service switches without a failed request."""
    from moon import journey
    from moon import releases as embeddings

    embeddings.activate(journey.load(run).folder, generation)
    typer.echo(f"generation {generation} serves")


@generations.command("rollback")
def embeddings_rollback(run: RunOption = None) -> None:
    """Return to the generation that was active before."""
    from moon import journey
    from moon import releases as embeddings

    typer.echo(f"generation {embeddings.rollback(journey.load(run).folder).number} serves")


@generations.command("list")
def embeddings_list(run: RunOption = None) -> None:
    """All generations: encoder, items, coverage, spread, overlap with the one before, and which is active."""
    from moon import journey
    from moon import releases as embeddings

    typer.echo(embeddings.table(journey.load(run).folder))


@generations.command("gc")
def embeddings_gc(run: RunOption = None) -> None:
    """Remove all but the active generation and the one a rollback returns to, with their vectors."""
    from moon import journey
    from moon import releases as embeddings

    removed = embeddings.collect(journey.load(run).folder)
    typer.echo("\n".join(f"removed {one}" for one in removed) or "nothing to remove")
