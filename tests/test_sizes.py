"""The dial decides everything that depends on size, in one file; artifacts made before it knew more still open."""

import ast
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_architecture import PACKAGES, ROOT, files

from run.sizes import GPU, REAL, SIMULATED, SIZES, SizeError, recorded, size

ALLOWED = {"run/sizes.py", "moon/cli.py"}  # the dial, and the help of --size


def decided_by_name(tree):
    """Lines that choose by a size's name: the name written out, compared, or looked up."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in SIZES:
            yield node.lineno
        asked = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        asked += [node.slice] if isinstance(node, ast.Subscript) else []
        for one in asked:
            if isinstance(one, ast.Attribute) and one.attr == "name" and "size" in ast.unparse(one):
                yield node.lineno


def test_nothing_but_the_dial_decides_by_a_sizes_name():
    assert len(list(decided_by_name(ast.parse('a = {"nano": 96}.get(size.name, 256)')))) == 1
    assert len(list(decided_by_name(ast.parse("a = 64 if run.size.name == X else BATCH[size.name]")))) == 2
    for package in PACKAGES:
        for path in files(package):
            name = path.relative_to(ROOT).as_posix()
            if name not in ALLOWED:
                assert not list(decided_by_name(ast.parse(path.read_text()))), name


def test_the_help_of_the_command_line_names_every_size():
    (line,) = [one for one in Path(ROOT / "moon/options.py").read_text().splitlines() if '"--size"' in one]
    assert ", ".join(SIZES).replace(f", {GPU}", f" or {GPU}") in line


def test_the_dial_holds_what_was_decided_by_name_before():
    assert (SIMULATED, REAL, GPU) == tuple(SIZES)
    found = [(s.encoder_batch, s.encoder_steps, s.encoder_chunk, s.ranker_slots) for s in SIZES.values()]
    assert found == [(96, 500, None, 512), (128, 600, None, 1024), (256, 20_000, 64, 2048)]


def test_a_size_recorded_by_release_0_1_0_opens():
    known = ("name", "item_width", "hidden", "layers", "image_px", "text_tokens", "id_width", "history")
    for dial in (*SIZES.values(), replace(size("nano"), hidden=32, item_width=16)):
        assert recorded({key: asdict(dial)[key] for key in known}) == dial
        assert recorded(asdict(dial)) == dial
    with pytest.raises(SizeError, match="unknown size 'huge': expected one of nano, small, base"):
        recorded({"name": "huge"})
    with pytest.raises(TypeError, match="depth"):
        recorded({"name": "nano", "depth": 2})
