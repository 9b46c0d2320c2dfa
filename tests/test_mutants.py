"""``make mutants`` draws the same mutants while code elsewhere moves, leaves out what nobody should notice, and
tells a caught mutant from a survivor."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutants import draw, page
from tests.mutants.draw import mutants_of
from tests.mutants.page import Draw

CODE = '''"""A module: 1 + 1."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    LIMIT = 7

Pair = tuple[int, int]

@decorated(limit=3)
def taken(count: "int | None", most: int = 4) -> int:
    """Takes 1 + 1."""
    log.warning("few", count - 1)
    if count > most:
        raise ValueError(f"got {count + 1}, at most {most}")
    return sum(a for a, _ in zip(x, y, strict=True)) + print("a title") + cast("int", 5)
'''


def changes(code: str) -> set[str]:
    return {mutant.change for mutant in mutants_of("file.py", code)}


def test_types_prose_messages_and_declarations_are_left_out():
    found = changes(CODE)
    assert "> most → >= most" in found
    assert {c for c in found if c.startswith("4 ")} == {"4 → 5"}, "a default is code"
    for untouched in (
        "1",
        "3",
        "5",
        "7",
        '"few"',
        '"int"',
        '"a title"',
        "count - 1",
        "count + 1",
        "True",
        "Pair = tuple[int, int]",
    ):
        assert not [c for c in found if c.startswith(f"{untouched} →")], untouched
    of_zip = [change for change in found if change.startswith("zip(")]
    assert of_zip and all("strict=True" in change.split("→")[1] for change in of_zip)


def test_every_mutant_is_python_and_differs_in_its_own_statement_only():
    mutants = mutants_of("file.py", CODE)
    assert len(mutants) > 5
    before = CODE.splitlines()
    for mutant in mutants:
        compile(mutant.code, "mutant", "exec")
        after = mutant.code.splitlines()
        assert after != before
        assert after[: mutant.first - 1] == before[: mutant.first - 1]
        assert after[len(after) - (len(before) - mutant.last) :] == before[mutant.last :]


def test_code_that_moves_or_is_added_elsewhere_redraws_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "PLACES", ("file.py",))
    body = "\n".join(f"def f{n}(a, b):\n    return a * {n} < b - {n}\n" for n in range(40))
    (tmp_path / "file.py").write_text(body)
    before = draw.sample(tmp_path, 30)
    (tmp_path / "file.py").write_text("# a comment\n\n" + body)
    assert [m.key for m in draw.sample(tmp_path, 30)] == [m.key for m in before]
    assert [m.first + 2 for m in before] == [m.first for m in draw.sample(tmp_path, 30)]
    (tmp_path / "file.py").write_text(body.replace("a * 3 ", "a * 300 "))
    changed = {m.key for m in before} - {m.key for m in draw.sample(tmp_path, 30)}
    assert all(".f3" in f".{key}" for key in changed if "a * 3 " in key) and len(changed) <= 6


def test_a_place_that_is_gone_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="ranker of tests/mutants/draw.py"):
        draw.sample(tmp_path, 1)


WORLD = {
    "code.py": "LIMIT = 3\n\n\ndef above(a):\n    return a > LIMIT\n\n\ndef double(a):\n    return a * 2\n",
    "tests/test_one.py": """
import pytest
from little.code import above, double

@pytest.fixture(scope="module")
def four():
    return double(2)

def test_first(four): assert four
def test_second(four): assert four == 4
def test_above(): assert above(9) and not above(1)
def test_broken(): assert above(1)
""",
}
ATTACK = """
import json, sys
from pathlib import Path
from tests.mutants import draw, forks
from tests.mutants.__main__ import attack, outcome
from tests.mutants.record import record

tree = Path(sys.argv[1])
draw.PLACES = ("little/code.py",)
copies = forks.workplaces(tree, 1)
recorded = record(tree, copies, tree.parent, slow=False)
found = {}
for mutant in draw.sample(tree, 100):
    tests = recorded.touching(mutant)
    job = forks.Job(mutant.key, attack, (tests,), 60, {mutant.file: mutant.code})
    [ended] = forks.run_all([job], copies)
    found[mutant.change] = [sorted(sum(tests.values(), [])), outcome(ended)["outcome"]]
again = record(tree, [], tree.parent, slow=False)  # no copies: nothing may run
(tree / "tests/test_one.py").write_text("def test_other(): pass")
stale = record(tree, forks.workplaces(tree, 1), tree.parent, slow=False)
after = list(stale.files["tests/test_one.py"]["tests"])
print(json.dumps({"found": found, "kept": again == recorded, "after": after}))
"""


def test_the_tests_that_touch_a_mutant_run_and_a_caught_one_is_told_from_a_survivor(tmp_path):
    """In a process of its own, because the tool forks and runs pytest inside."""
    for name, text in WORLD.items():
        path = tmp_path / "tree" / (name if name.startswith("tests") else f"little/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", ATTACK, tmp_path / "tree"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    above, *fixture = (f"tests/test_one.py::test_{name}" for name in ("above", "first", "second"))
    found = answer["found"]
    assert found["> LIMIT → >= LIMIT"] == [[above], "survived"], (
        "a test that fails without a mutant is not run"
    )
    assert found["a * 2 → a / 2"] == [fixture, "caught"], (
        "both tests that ask for the fixture touch what it ran"
    )
    assert found["3 → 4"] == [[above, *fixture], "survived"], (
        "what runs at import is touched by all of the file's"
    )
    assert found["LIMIT = 3 → LIMIT = None"][1] == "caught"
    assert answer["kept"] and answer["after"] == ["tests/test_one.py::test_other"]


def test_the_page_keeps_the_first_run_of_a_seed_beside_the_last(tmp_path):
    draws: list[Draw] = []
    for seed, caught in (("a", 9), ("b", 8), ("a", 10), ("a", 7)):
        draws = page.keep(draws, seed, "abc", 10, {"ranker": [caught - 2, 5], "serving": [2, 5]})
    assert [(one.seed, one.caught, one.looked_at) for one in draws] == [
        ("a", 9, False),
        ("b", 8, False),
        ("a", 7, True),
    ]
    mutant = next(one for one in mutants_of("file.py", CODE) if one.change == "> most → >= most")
    written = page.text(draws, [(mutant, "It may."), (mutant, "")])
    day = draws[0].date
    assert "\nBy package: ranker 5 of 5, serving 2 of 5.\n" in written
    assert "stopped" not in written
    stopped = page.text([replace(draws[0], places=15)], [])
    assert "9 of 10 (90.0%) caught. It was stopped after 10 of its 15 places." in stopped
    three = [replace(mutant, file=name) for name in ("serving/a.py", "ranker/b.py", "serving/c.py")]
    assert page.by_package(three, three[2:]) == {"ranker": [1, 1], "serving": [1, 2]}
    assert f"The last draw, `a`, was run on {day} at commit abc: 7 of 10 (70.0%) caught." in written
    assert f"| `a` | {day} | abc | 9 of 10 (90.0%) | no |" in written
    assert f"| `a` | {day} | abc | 7 of 10 (70.0%) | yes |" in written
    assert "2 places of `a` no test noticed" in written
    assert "| file.py, `taken` | `> most → >= most` | It may. |" in written
    assert written.endswith("| none yet |\n")


def test_every_size_of_a_piece_that_is_left_out_is_one_of_the_code():
    names = {
        target.id
        for path in draw.files(Path(__file__).parents[1])
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert draw._PIECES <= names
    assert not mutants_of("file.py", "ROWS = 4096\n") and mutants_of("file.py", "EPOCHS = 8\n")
