"""The table of what was tried says what the runs recorded, and that nothing went wrong.

Run: pytest tests/test_promises.py
"""

import json
import re

import pytest

from tests import promises


def test_what_is_recorded_is_summed_by_what_was_tried(tmp_path, monkeypatch):
    promises.record(promises.DOORS, "import", 5)  # outside of make promises nothing is kept
    monkeypatch.setenv(promises.FOLDER, str(tmp_path))
    for where, tried, wrong in (("HTTP", 900, 0), ("stream", 7, 1), ("stream", 200, 0)):
        promises.record(promises.DOORS, where, tried, wrong)
    promises.record(promises.KILLS, "fold", 40, 2)
    with pytest.raises(ValueError, match="expected one of"):
        promises.record("something else", "x", 1)
    records = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    rows = promises.table(records, "abc1234", "2026-11-29").splitlines()
    assert [re.findall(r"\| ([\d,]+)(?= \|)", row) for row in rows[4:]] == [
        ["2", "1,100", "0"],
        ["1", "40", "2"],
    ]


def test_the_table_replaces_the_one_before_and_nothing_else():
    page = f"above\n{promises.BEGIN}\nold\n{promises.END}\nbelow\n"
    assert promises.written(page, "new") == page.replace("old", "new")


def test_every_promise_names_tests_that_there_are():
    rows = [row for row in promises.PAGE.read_text().split("\n## ")[0].splitlines() if row.startswith("| ")][
        1:
    ]
    assert len(rows) > 60
    for row in rows:
        _, promise, named, _ = row.split("|")
        names = re.findall(r"`([^`]+)`", named)
        assert promise.strip() and names, row
        for name in names:
            if not name.startswith("make "):
                assert list((promises.ROOT / "tests").glob(name)), f"{name}, of: {promise}"


def test_the_page_says_that_nothing_went_wrong():
    part = promises.PAGE.read_text().split(promises.BEGIN)[1].split(promises.END)[0]
    rows = [row.strip("| ").split(" | ") for row in part.splitlines() if row.startswith("| ")][1:]
    assert {promises.KILLS, promises.FAULTS, promises.DAMAGE} <= {row[0] for row in rows}
    assert all(int(row[3].replace(",", "")) > 0 and row[4] == "0" for row in rows)
