"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunOption = Annotated[Path | None, typer.Option("--run", help="Run folder; default: the last one.")]
DataOption = Annotated[str, typer.Option("--data", help="marketplace[:EVENTS] or FORMAT:FOLDER.")]
SizeOption = Annotated[str | None, typer.Option("--size", help="nano, small or base; default: by the data.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
ClockOption = Annotated[
    str, typer.Option("--clock", help="log: goes on from the end of the run's log; wall: the time of day.")
]
KeysOption = Annotated[
    Path | None, typer.Option("--keys", help="File of API keys; default: keys.json in the run folder.")
]
ProfileOption = Annotated[str, typer.Option("--profile", help="Online store: embedded or redis.")]
