"""docs/features.md says what the code does: every kind, type, rule and tag, no other."""

import re
from pathlib import Path

import pytest

from feature_repo.feature_tags import OPTIONS
from feature_repo.signature import KINDS, TYPES, Feature
from ranker.inputs.rules import categories, numbers
from ranker.inputs.rules.table import NAMES, learner

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "features.md").read_text()


def table(first):
    """Rows of the table whose first column has this title."""
    text = PAGE.split(f"| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    return {cells[0].strip("` "): cells[1:] for cells in (line[1:-1].split("|") for line in text)}


ROWS = table("kind")


def named(cell):
    return sorted(part for part in re.split(r",\s*|\s+", cell.replace("`", "").strip()) if part)


def type_names(kind, place):
    """Names of the Feast types for which ``kind`` is the first of their kinds, or another one."""
    return sorted(str(one) for one, (kinds, _) in TYPES.items() if kind in (kinds[:1], kinds[1:])[place])


def test_every_kind_has_a_row():
    assert sorted(ROWS) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_types_and_tags_of_a_kind_are_those_of_the_code(kind):
    by_type, by_tag, _, tags = ROWS[kind]
    assert (named(by_type), named(by_tag)) == (type_names(kind, 0), type_names(kind, 1))
    assert named(tags) == sorted(name for name, option in OPTIONS.items() if kind in option.kinds)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_of_a_kind_is_the_one_it_gets_by_default(kind):
    dtype = next(dtype for kinds, dtype in TYPES.values() if kinds[0] == kind)
    rule = learner(Feature("x", "v", "x", "candidate", kind, dtype)).learned()
    assert ROWS[kind][2].split(":")[0].strip("` ") == NAMES[type(rule)]


def test_every_tag_has_a_row():
    assert sorted(table("tag")) == sorted(("kind", "role", *OPTIONS))


def test_limits_are_those_of_the_code():
    assert f"at most {categories.LARGEST:,} values" in " ".join(PAGE.split())
    assert numbers.CLIP == 5 and "cut at five deviations" in PAGE
