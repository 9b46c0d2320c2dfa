"""Options of the commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

# The names in encoder/recipes.py, which is not imported here because it imports torch.
RECIPES = "moon_embedding, moon, moon2, moon3, dual, ours, photos, pretrained or unfrozen"
# The names in ranker/recipes.py, the default first.
RANKERS = (
    "cube, lr, fm, deep_fm, dcn_v2, attention, din, sim_hard, twin, hstu, vector, sim_soft, simtier, sata, muse, "
    "make or qarm"
)
CALIBRATIONS = "temperature, platt or isotonic"  # the names in ranker/calibration.py
RunOption = Annotated[Path | None, typer.Option("--run", help="Run folder; default: the last one.")]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="marketplace[:EVENTS], FORMAT:FOLDER, or a path: your folder, its moon.toml, or a dataset.",
    ),
]
SizeOption = Annotated[
    str | None, typer.Option("--size", help="nano, small or base; default: the run's, or by the data.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
ClockOption = Annotated[
    str, typer.Option("--clock", help="log: goes on from the end of the run's log; wall: the time of day.")
]
KeysOption = Annotated[
    Path | None, typer.Option("--keys", help="File of API keys; default: keys.json in the run folder.")
]
ExploreOption = Annotated[
    float,
    typer.Option(
        "--explore", min=0, max=5, help="Log-odds by which items that almost nobody acted on are raised."
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="Protocol of the split: time, last, users or given; default: by the data."),
]
RepeatsOption = Annotated[
    str | None,
    typer.Option("--repeats", help="yes or no: recommend what a user took before; default: by the data."),
]
ProfileOption = Annotated[str, typer.Option("--profile", help="Online store: embedded or redis.")]

# Of `moon ranker`.
RankerOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help=f"{RANKERS}; default: cube where it validates clearly better than attention, else that; with --compare: "
        "every one; with --without: that of the run's ranker; with --daily and --tune: cube.",
    ),
]
WithoutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--without", help="Print what this feature is worth, and leave the run as it is; may be repeated."
    ),
]
CompareOption = Annotated[
    int | None,
    typer.Option(
        "--compare",
        min=1,
        help="Compare every recipe, or one, over so many seeds, and leave the run as it is.",
    ),
]
RequestsOption = Annotated[
    int | None,
    typer.Option(
        "--requests",
        min=1,
        help="With --compare: train every recipe on so many requests, drawn at random; default: all. With --daily: "
        "go through so many at most, drawn from all days; default: 5,000 of the latest 60 days.",
    ),
]
RanksOption = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        min=1,
        help="Processes that train together, each on a GPU if there are enough; default: this one.",
    ),
]
StreamOption = Annotated[
    bool, typer.Option("--stream", help="Read the training requests in windows, for logs larger than memory.")
]
DailyOption = Annotated[
    bool,
    typer.Option(
        "--daily", help="Train day after day, measure each day first; the run's ranker stays as it is."
    ),
]
WaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, help="With --daily: hours after which the labels of a request are final."),
]
ForgetOption = Annotated[
    int | None,
    typer.Option(
        "--forget", min=1, help="With --daily: days unseen after which an id is forgotten; default: never."
    ),
]
TuneOption = Annotated[
    int | None,
    typer.Option(
        "--tune",
        min=1,
        help="Search for the best settings by so many trials in all, and leave the run as it is; with --compare: "
        "of each recipe.",
    ),
]
SettingsOption = Annotated[
    Path | None,
    typer.Option("--settings", help="File of settings to train with, such as the best.json of --tune."),
]
CalibrateOption = Annotated[
    str | None,
    typer.Option(
        "--calibrate", help=f"Calibrate scores by the validation impressions: {CALIBRATIONS}; default: not."
    ),
]
RankByOption = Annotated[
    str | None,
    typer.Option(
        "--rank-by",
        help="Learn what follows clicks, too, and rank by the chance of a click, cart or purchase; default: only "
        "clicks are learned.",
    ),
]
HistoryOption = Annotated[
    int | None,
    typer.Option(
        "--history",
        min=1,
        max=10_000,
        help="The latest behaviours of a user that the ranker reads, at most; default: as many as the run's other "
        "models; with --without: as the run's ranker.",
    ),
]
PositionTowerOption = Annotated[
    bool,
    typer.Option(
        "--position-tower",
        help="Learn the chance that a user looks at a place of a slate; default: a number for each place.",
    ),
]


def refuse_beside(context: typer.Context, option: str, *others: str) -> None:
    """Refuse options that were typed beside ``option``, which has no use for them.

    Raises:
        typer.BadParameter: naming the first.
    """
    for name in others:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"expected without {option}", param_hint=f"--{name}")


def require_together(
    modes: Mapping[str, Any], trained: Mapping[str, Any], of_days: Mapping[str, Any], asked: Mapping[str, Any]
) -> None:
    """Refuse options of ``moon ranker`` that would be ignored; all are flag -> value, empty if it was not given.

    Args:
        modes: each does something else than to train the run's ranker; only --compare and --tune go together.
        trained: say how the run's ranker is trained.
        of_days: of --daily.
        asked: of --daily or --compare.

    Raises:
        typer.BadParameter: naming the first, and what it needs or does not go with.
    """
    chosen = [option for option, given in modes.items() if given]
    beside = {} if chosen == ["--compare", "--tune"] else dict.fromkeys(chosen[1:], True)
    for option, given in (beside | dict(trained)).items():
        if chosen and given:
            raise typer.BadParameter(f"expected without {chosen[0]}", param_hint=option)
    if trained["--stream"] and trained["--rank-by"]:
        raise typer.BadParameter("expected without --stream", param_hint="--rank-by")
    for options, needed in ((of_days, {"--daily"}), (asked, {"--compare", "--daily"})):
        for option, given in options.items():
            if given and not needed & set(chosen):
                raise typer.BadParameter(f"expected with {' or '.join(sorted(needed))}", param_hint=option)
