"""The walkthroughs of docs/extending.md run exactly as printed, in one process, from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_every_walkthrough_ends_in_an_answer_that_is_checked():
    for walkthrough in PAGE.split("\n## ")[1:]:
        blocks = re.findall(r"^```python\n(.*?)^```", walkthrough, flags=re.MULTILINE | re.DOTALL)
        assert "assert " in blocks[-1] and "print(" in blocks[-1], walkthrough.splitlines()[0]


@pytest.mark.slow
def test_the_walkthroughs_run_as_printed(tmp_path):
    """In a process of its own, because they add to Moon's lists of recipes, importers and measurements."""
    (tmp_path / "page.py").write_text("\n".join(BLOCKS))
    paths = [
        str(ROOT),
        str(ROOT / "tests"),
        os.environ.get("PYTHONPATH", ""),
    ]  # tests: for the contract suites
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    printed = ran.stdout.splitlines()
    assert len(printed) == PAGE.count("\nprint("), printed
