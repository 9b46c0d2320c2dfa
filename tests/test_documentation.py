"""The README says what is there, and what it says is there exists."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from moon.cli import app
from moon.summary import TABLES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def commands(group, above=()):
    """(words, command) of every command, those of groups included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*above, name))
        else:
            yield " ".join((*above, name)), command


COMMANDS = dict(commands(get_command(app)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented_and_has_help(command):
    assert f"moon {command}" in README
    assert COMMANDS[command].help


def test_the_commands_of_the_readme_exist():
    for words in re.findall(r"(?:^ *|`)moon ([a-z]+(?: [a-z]+)?)", README, flags=re.MULTILINE):
        assert {words, words.split()[0]} & set(COMMANDS), f"README mentions 'moon {words}'"


def test_the_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    mentioned = set(re.findall(r"(?:^|`)make ([a-z]+)", README, flags=re.MULTILINE))
    assert mentioned and mentioned <= targets
    assert {"demo", "test"} <= mentioned


def test_the_tree_of_the_readme_is_the_tree():
    block = README.split("## The tree")[1].split("```")[1]
    folder, named = "", set()
    for line in block.splitlines():
        match = re.match(r"(\s*)([\w./-]+)", line)
        if not match:
            continue
        indent, name = match.groups()
        if not indent:
            folder = name if name.endswith("/") else ""
        path = (folder if indent else "") + name
        assert (ROOT / path).exists(), f"README's tree names {path}"
        named.add(path.rstrip("/"))
    top = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert top <= named, f"README's tree lacks {sorted(top - named)}"


def test_the_options_are_few_and_frozen():
    options = {
        option
        for command in COMMANDS.values()
        for one in command.params
        if one.param_type_name == "option"
        for option in one.opts
    }
    journey = {"--data", "--run", "--size", "--seed", "--profile", "--host", "--port"}
    assert options == journey | {
        "--recipe",
        "--backbone",
        "--lora",
        "--seconds",
        "--ablations",
        "--shard",
        "--by",
        "--json",
        "--activate",
        "--consumer",
        "--clock",
    }


def test_every_number_of_the_readme_has_its_command():
    for heading in ("## Results",):
        section = README.split(heading)[1].split("\n## ")[0]
        for table in re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE):
            before = section[: section.index(table)]
            assert "`make " in before or "`moon" in before, "a results table without the command that made it"


def test_summary_tables_are_rectangular():
    for table in TABLES.values():
        assert len(set(table["columns"])) == len(table["columns"])
        assert len(set(table["rows"])) == len(table["rows"])
