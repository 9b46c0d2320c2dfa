"""The commands on the API keys of a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moon.options import KeysOption, RunOption

app = typer.Typer(help="API keys of the service: who may read, write and administer.", no_args_is_help=True)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who will hold it; also the sender of their events.")],
    scope: Annotated[list[str], typer.Option(help="read, write or admin; may be repeated.")],
    run: RunOption = None,
    keys: KeysOption = None,
) -> None:
    """Make an API key and print it, once; only its digest is stored. A running service takes it at once."""
    from serving.keys import create_key

    typer.echo(create_key(_keys_file(run, keys), name, scope))


@app.command("list")
def list_(run: RunOption = None, keys: KeysOption = None) -> None:
    """Name, id, scopes and date of every key."""
    from serving.keys import read_keys

    for key in read_keys(_keys_file(run, keys)):
        made = key.created.date().isoformat() if key.created else ""
        typer.echo(f"{key.name}\t{key.id}\t{','.join(key.scopes)}\t{made}")


@app.command("revoke")
def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME", help="All keys of a name, or one key by its id.")],
    run: RunOption = None,
    keys: KeysOption = None,
) -> None:
    """Revoke keys; a running service refuses them from the next request on."""
    from serving.keys import revoke_key

    typer.echo(f"{revoke_key(_keys_file(run, keys), which)} revoked")


def _keys_file(run: Path | None, keys: Path | None) -> Path:
    from moon import journey
    from serving.keys import KEYS_FILE

    if run is not None and keys is not None:
        raise typer.BadParameter("expected without --keys", param_hint="--run")
    return keys or journey.load(run).folder / KEYS_FILE
