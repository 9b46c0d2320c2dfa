"""What the documentation says exists, and what exists is documented: commands, links, anchors, tables, the tree."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import click
import pytest
from fake_shop import picture, recommender
from fastapi.testclient import TestClient
from typer.main import get_command

from dataset.records import Item, ItemState
from feature_repo.ingest.arrivals import parse_events, parsed
from moon.cli import app
from moon.summary import TABLES
from serving.app import create_app
from serving.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.glob("*.md")} | {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "docs").rglob("*.md")
}
README = PAGES["README.md"]
TODAY = {name: text for name, text in PAGES.items() if not name.startswith("docs/log/")}  # the log is dated
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z][a-z-]*):(.*)$", MAKEFILE, flags=re.MULTILINE)
READ = {
    "/events": parse_events,
    "/items": lambda body: parsed(Item, body),
    "/items/ID/state": lambda body: parsed(ItemState, body),
}  # what the service reads a body with


def commands(group, above=()):
    """(words, command) of every command, those of groups included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*above, name))
        else:
            yield " ".join((*above, name)), command


COMMANDS = dict(commands(get_command(app)))


def shell_lines(text):
    """The lines of a page's code blocks, python left out: continued lines joined, comments and prose cut off."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if language != "python":
            for line in re.sub(r" *\\\n\s*", " ", block).splitlines():
                yield re.split(r"\s{2,}", line.removeprefix("$ ").strip())[0]


def inline_code(text):
    """What a page's prose and tables set in backticks, on one line each."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def documented(program, places=(shell_lines, inline_code)):
    """(page, arguments) of every command line of a program in the documentation of today."""
    found = []
    for page, text in TODAY.items():
        for line in (line for place in places for line in place(text)):
            words = (
                shlex.split(line, comments=True)
                if re.match(r"[\w./]*\b(moon|make|feast|curl)\b", line)
                else []
            )
            if len(words) > 1 and Path(words[0]).name == program:
                found.append((page, words[1:]))
    return found


def parse(command, words):
    """Let click parse a command line without running it: its values, or a UsageError."""
    while hasattr(command, "commands"):
        name, *words = words
        if name not in command.commands:
            raise click.UsageError(f"no command {name!r} among {', '.join(command.commands)}")
        command = command.commands[name]
    return command.make_context(command.name, words).params


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented_and_has_help(command):
    words = command.split()
    assert any(line[: len(words)] == words for _, line in documented("moon")), (
        f"no page shows 'moon {command}'"
    )
    assert COMMANDS[command].help


def test_make_help_says_what_every_target_does():
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE).group(1).split()
    assert {name for name, _ in TARGETS} == set(phony)
    for name, rest in TARGETS:
        assert re.search(r"## \w+", rest), (
            f"make {name} has no '## what it does', so 'make help' leaves it out"
        )


def test_every_feast_command_of_the_docs_is_accepted_by_feast():
    from feast.cli.cli import cli

    lines = documented("feast")
    assert {"apply", "materialize", "ui"} <= {word for _, words in lines for word in words}
    for page, words in lines:
        if words[0] == "-f":
            assert (ROOT / "feature_repo" / words[1]).exists(), f"{page}: feast {' '.join(words)}"
            words = words[2:]
        parse(cli, words)


def test_every_curl_of_the_docs_is_understood_by_the_service(tmp_path):
    """Routes, methods, parameters and bodies; whether an item exists depends on the run."""
    client = TestClient(create_app(Settings(run=tmp_path), recommender()))
    lines = documented("curl")
    assert {urlsplit(words[-1]).path for _, words in lines} >= {
        "/recommend",
        "/similar",
        "/search",
        "/readyz",
    }
    for page, words in lines:
        (address,) = (word for word in words if word.startswith("http"))
        path, query = urlsplit(address).path, dict(parse_qsl(urlsplit(address).query))
        given = [pair for pair in pairwise(words) if pair[0].startswith("-")]
        fields = [value.split("=", 1) for option, value in given if option == "-F"]
        body = next((value for option, value in given if option == "-d"), None)
        assert {option for option, _ in given} <= {"-F", "-H", "-X", "-d"}, page
        method = dict(given).get("-X", "GET")
        if body is not None:
            assert ("-H", "Content-Type: application/json") in given, page
            READ[re.sub(r"/\d+", "/ID", path)](body)  # raises where the service would refuse it
            continue
        form = {name: ("photo", picture()) if value[0] == "@" else (None, value) for name, value in fields}
        answer = client.post(path, files=form) if form else client.request(method, path, params=query)
        unknown = answer.status_code == 404 and answer.json()["error"] != "Not Found"
        assert answer.status_code in (200, 503) or unknown, (
            f"{page}: {address}: {answer.status_code} {answer.text}"
        )


def test_the_readme_is_short():
    assert len(README.split()) <= 900


def test_the_tree_of_the_readme_is_the_tree():
    block = README.split("## The tree")[1].split("```")[1]
    named = {line.split()[0].rstrip("/") for line in block.strip().splitlines()}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert named == packages | {"docs", "requirements", "tests"}


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(set(slugs)) == len(slugs), f"two headings of one page have one anchor: {slugs}"
    return set(slugs)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(found.read_text()), f"{page}: {target}"


def test_every_page_is_linked_from_the_readme_or_an_index():
    linked = {
        ((ROOT / page).parent / target.partition("#")[0]).resolve()
        for page, text in PAGES.items()
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not target.startswith("http")
    }
    assert not [page for page in PAGES if page != "README.md" and ROOT / page not in linked]


def sources():
    """(path, text) of the files in which a reference to the documentation may stand."""
    for package in sorted({path.parent for path in ROOT.glob("*/__init__.py")} | {ROOT / "tests"}):
        for suffix in ("py", "yaml", "html"):
            yield from ((path, path.read_text()) for path in package.rglob(f"*.{suffix}"))
    yield from ((ROOT / name, (ROOT / name).read_text()) for name in ("Makefile", "pyproject.toml", *PAGES))


def test_every_reference_to_the_docs_leads_to_a_file_and_a_heading():
    found = [
        (path, page, anchor)
        for path, text in sources()
        for page, anchor in re.findall(r"\b((?:docs/[\w/]+|CONTRIBUTING|CHANGELOG)\.md)(?:#([\w-]+))?", text)
    ]
    assert len([one for one in found if one[2]]) > 10
    for path, page, anchor in found:
        assert page in PAGES, f"{path}: {page}"
        assert not anchor or anchor in anchors(PAGES[page]), f"{path}: {page}#{anchor}"
    assert not [path for path, text in sources() if re.search(r"\bLOG\.md\b", text.replace(r"LOG\.md", ""))]


def number_tables(text):
    """(what stands between the heading and the table, the table) of every table that holds measured numbers."""
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
        for table in re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE):
            if re.search(r"\| \**\.?\d", table):
                yield section[: section.index(table)] + table.splitlines()[0], table


def test_every_table_of_numbers_has_its_command_date_and_commit():
    tables = [(page, *one) for page, text in TODAY.items() for one in number_tables(text)]
    assert len(tables) > 10
    for page, before, table in tables:
        command = r"`(make|moon) [^`]+`"
        for what in (command, r"\b20\d\d-\d\d-\d\d\b", r"\bcommit [0-9a-f]{7}\b"):
            assert re.search(what, before), f"{page}: no {what} before the table {table.splitlines()[0]}"


def test_the_options_are_few_and_frozen():
    options = {
        option
        for command in COMMANDS.values()
        for one in command.params
        if one.param_type_name == "option"
        for option in one.opts
    }
    journey = {"--data", "--run", "--size", "--seed", "--profile"}
    service = {"--host", "--port", "--workers", "--drain", "--clock", "--explore"}
    training = {
        "--recipe",
        "--backbone",
        "--lora",
        "--seconds",
        "--ablations",
        "--without",
        "--compare",
        "--requests",
        "--ranks",
        "--stream",
        "--daily",
        "--wait",
        "--forget",
        "--settings",
        "--tune",
        "--calibrate",
        "--rank-by",
        "--position-tower",
        "--history",
    }
    assert options == journey | training | service | {
        "--shard",
        "--split",
        "--by",
        "--repeats",  # no protocol: it says what every protocol asks for
        "--json",
        "--out",
        "--activate",
        "--consumer",
        "--keys",
        "--scope",
        "--allow-host",
        "--append",
        "--events",
        "--last-day",
    }


def test_every_option_is_shown_in_the_docs():
    shown = {word for _, words in documented("moon") for word in words if word.startswith("--")}
    options = {
        opt for command in COMMANDS.values() for one in command.params for opt in one.opts if opt[0] == "-"
    }
    assert options <= shown, f"no page shows {sorted(options - shown)}"


def test_summary_tables_are_rectangular():
    for table in TABLES.values():
        assert len(set(table["columns"])) == len(table["columns"])
        assert len(set(table["rows"])) == len(table["rows"])
