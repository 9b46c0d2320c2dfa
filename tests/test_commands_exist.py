"""Every command, flag, choice and make target that a message, a help text or a document names exists.

Run: pytest tests/test_commands_exist.py
"""

import re
import subprocess
import sys

import pytest
from conftest import ROOT
from mentions import BLANK, Mention, everywhere, in_python, in_shell, in_text
from typer.main import get_command

from dataset.importers import IMPORTERS
from dataset.protocols import BY
from encoder import recipes as encoders
from feature_repo.frames.shards import WAYS
from moon import journey
from moon.cli import app
from ranker import calibration
from ranker import recipes as rankers
from run.folder import REPEATS
from run.sizes import SIZES
from serving.keys import SCOPES
from serving.settings import CLOCKS, PROFILES

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z]+) *\?=", MAKEFILE, flags=re.MULTILINE))
CHOICES = {
    "--size": SIZES,
    "--profile": PROFILES,
    "--by": (*WAYS, *BY),
    "--split": BY,
    "--repeats": REPEATS,
    "--clock": CLOCKS,
    "--scope": SCOPES,
    "--calibrate": calibration.METHODS,
    "--recipe": {**encoders.RECIPES, **rankers.RECIPES},
}
OTHERS = {"--no-deps"}  # flags of other programs that documents name by themselves: pip's
ROOT_COMMAND = get_command(app)


def choices_of(verb):
    """What the flags of a verb may be set to."""
    own = {
        "encoder": {"--recipe": encoders.RECIPES},
        "ranker": {"--recipe": rankers.RECIPES},
        "frame": {"--by": WAYS},
        "split": {"--by": BY},
    }
    return CHOICES | own.get(verb, {})


def options_of(command):
    return {name: one for one in command.params if one.param_type_name == "option" for name in one.opts}


def leaves(command, verb=""):
    """(verb, command) of every command that does something, a group's under its group's verb."""
    if not hasattr(command, "commands"):
        return [(verb, command)]
    return [leaf for name, one in command.commands.items() for leaf in leaves(one, verb or name)]


ALL_OPTIONS = {name: one for _, leaf in leaves(ROOT_COMMAND) for name, one in options_of(leaf).items()}


def filled_in(word):
    """Whether the reader or the message puts something in its place."""
    return BLANK in word or re.fullmatch(r"[\W\dA-Z_]*[A-Z][\W\dA-Z_]*", word) is not None


def wrong(mention: Mention) -> str | None:
    """What the command line has to say against a command; None where it takes it."""
    first, *words = mention.words
    if first.startswith("--"):
        return _wrong_flags([first, *words], ALL_OPTIONS, CHOICES)
    if first == "make":
        return _wrong_targets(words)
    command, verb = ROOT_COMMAND, (words or [""])[0]
    while hasattr(command, "commands"):
        if not words or words[0] == "--help":
            return None  # a group lists its commands
        if words[0] not in command.commands:
            return f"expected one of {sorted(command.commands)}, found {words[0]}"
        command = command.commands[words.pop(0)]
    if not mention.whole:
        return None
    takes = [one for one in command.params if one.param_type_name == "argument"]
    needed = sum(one.required for one in takes) if mention.typed else 0
    return _wrong_flags(words, options_of(command), choices_of(verb), needed, len(takes))


def _wrong_targets(words):
    for word in words:
        name, equals, _ = word.partition("=")
        if (equals and name not in VARIABLES) or (not equals and name not in TARGETS):
            return f"no such {'variable' if equals else 'target'}: {name}"
    return None


def _wrong_flags(words, options, choices, least=0, most=0):
    words, given = list(words), 0
    while words:
        word = words.pop(0)
        if word == "--help":
            return None
        if not word.startswith("-"):
            given += 1
        elif word in OTHERS and options is ALL_OPTIONS:
            continue
        elif word not in options:
            return f"expected one of {sorted(options)}, found {word}"
        elif not options[word].is_flag and words:
            if said := _wrong_value(word, options[word], words.pop(0), choices):
                return said
    return None if least <= given <= most else f"expected {least} to {most} arguments, found {given}"


def _wrong_value(flag, option, value, choices):
    if filled_in(value):
        return None
    if flag in choices:
        known = [*choices[flag]]
        return None if value in known else f"{flag}: expected one of {known}, found {value}"
    if flag == "--data":
        if "/" in value or value == ".":  # a path
            return None
        name = value.partition(":")[0]
        return None if name in {"marketplace", *IMPORTERS} or filled_in(name) else f"unknown format {name}"
    if flag == "--shard":
        return None if re.fullmatch(r"\d+/\d+", value) or BLANK in value else f"no shard: {value}"
    if isinstance(option.default, int | float):
        try:
            type(option.default)(value)
        except ValueError as error:
            return f"{flag}: {error}"
    return None


def invented(mention):
    """Whether it chooses what a walkthrough of docs/extending.md adds: a name that stands there in double quotes."""
    if mention.where != "docs/extending.md":
        return False
    added = set(re.findall(r'"(\w+)"', (ROOT / mention.where).read_text()))
    return any(word.partition(":")[0] in added for word in mention.words)


def test_every_command_that_we_name_exists():
    mentions = list(everywhere())
    problems = [f"{one}: {said}" for one in mentions if not invented(one) and (said := wrong(one))]
    assert not problems, "\n".join(problems)
    places = {one.where.partition("/")[0].partition(":")[0] for one in mentions}
    assert {"README.md", "Makefile", "moon", "encoder", "feature_repo", "dataset", "run"} <= places
    assert len(mentions) > 100


def test_every_stage_names_a_command_that_exists():
    for stage in journey.STAGES:
        assert wrong(Mention(stage.verb, tuple(stage.command.split()))) is None


@pytest.mark.parametrize("flag", CHOICES)
def test_the_help_of_a_flag_names_its_choices_and_no_others(flag):
    shown = [
        (verb, options_of(leaf)[flag].help) for verb, leaf in leaves(ROOT_COMMAND) if flag in options_of(leaf)
    ]
    assert shown
    for verb, help_text in shown:
        known = choices_of(verb)[flag]
        for choice in known:
            assert re.search(rf"\b{choice}\b", help_text), f"{verb} {flag}: {help_text!r} lacks {choice}"
        if listed := re.match(r"(?:[A-Za-z ]*: )?((?:\w+, )*\w+ or \w+)\b", help_text):
            assert set(re.split(", | or ", listed[1])) == set(known)


def test_python_m_moon_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "moon", "encoder", "train", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "--recipe" in done.stdout and "photos" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "Run 'moon import' again.",
        "``moon encoder trian``",
        "`moon embed --part 1/4`",
        "'moon encoder train --recipe moon4'",
        "'moon demo --size huge'",
        "'moon dataset --data hm:FOLDER'",
        "'moon serve --port eighty'",
        "'moon serve 8000'",
        "'make tests'",
        "'make demo DATUM=x'",
        "start it with moon features chek.",
        "`--clok wall`",
        "'moon embeddings publsh'",
        "'moon ranker --recipe moon2'",
    ],
)
def test_a_command_that_does_not_exist_is_found(text):
    (mention,) = in_text("here", text)
    assert wrong(mention)


@pytest.mark.parametrize(
    "text",
    [
        "Run 'moon dataset --data FORMAT:FOLDER', or 'moon demo'.",
        "`moon embed --shard 1/4` and 'moon embed --shard'",
        "Not examined: start it and run moon features check, as moon bench store does.",
        "`moon encoder\ncompare --recipe ours --seconds 600`",
        "`make demo DATA=hm_fashion:FOLDER`, with `--clock wall`",
        "Moon is the moon's; make it again, and make sure",
    ],
)
def test_a_command_that_exists_is_left_alone(text):
    assert [wrong(one) for one in in_text("here", text) if wrong(one)] == []


def test_a_command_to_be_typed_lacks_no_argument():
    (typed,), (named,) = in_shell("x", "moon embeddings activate"), in_text("x", "'moon embeddings activate'")
    assert wrong(typed) and not wrong(named)


def test_commands_are_read_out_of_programs_and_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr("mentions.ROOT", tmp_path)
    (tmp_path / "a.py").write_text(
        'MADE_BY = "moon embed"\n'
        "# as ``moon serve`` does\n"
        'raise ValueError(f"{x}: run \'{MADE_BY} --shard {n}\' or "\n    f"choose with --run {y}")\n'
    )
    found = {one.words for one in in_python(tmp_path / "a.py")}
    assert found == {("moon", "embed"), ("moon", "embed", "--shard", BLANK), ("moon", "serve"), ("--run",)}
    block = "$ moon embed --shard 1/4  # a quarter\nmoon dataset   tables\nmake test && moon seeds\nx = 1\n"
    assert [one.words for one in in_shell("x", block)] == [
        ("moon", "embed", "--shard", "1/4"),
        ("moon", "dataset"),
        ("make", "test"),
    ]
