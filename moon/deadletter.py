"""``moon deadletter``: the commands on refused records; what they do is in ``moon.refused``."""

from __future__ import annotations

from typing import Annotated

import typer

from moon.options import ClockOption, RunOption

deadletter = typer.Typer(
    help="What was refused: items, events, rows, views, vectors, generations; retry or drop it.",
    no_args_is_help=True,
)
LetterArgument = Annotated[str, typer.Argument(metavar="ID", help="See 'moon deadletter list'.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@deadletter.command("list")
def deadletter_list(
    kind: Annotated[
        str | None,
        typer.Argument(help="new_items, events, embeddings, views, generations or rows; default: all."),
    ] = None,
    run: RunOption = None,
    json: JsonOption = False,
) -> None:
    """Refused records: id, door and reason of each, and how many of each kind."""
    from moon import journey, refused

    folder = journey.load(run).folder
    typer.echo(refused.as_json(refused.listed(folder, kind)) if json else refused.table(folder, kind))


@deadletter.command("show")
def deadletter_show(letter: LetterArgument, run: RunOption = None) -> None:
    """One refused record as JSON: door, reason, time, attempts and the record itself."""
    from moon import journey, refused

    typer.echo(refused.shown(journey.load(run).folder, letter))


@deadletter.command("retry")
def deadletter_retry(letter: LetterArgument, run: RunOption = None, clock: ClockOption = "log") -> None:
    """Put a record back through the door it came by; it leaves the dead letter only if it is accepted."""
    from moon import journey, refused

    typer.echo(refused.retry(journey.load(run).folder, letter, clock))


@deadletter.command("drop")
def deadletter_drop(letter: LetterArgument, run: RunOption = None) -> None:
    """Delete a refused record."""
    from moon import journey, refused

    typer.echo(refused.drop(journey.load(run).folder, letter))
