"""Which mutants are made: mutmut's operators, rules for what no test should notice, and a sample that stays.

A mutant is one small change to one file. Its key names the file, the function, the operator and the text, never
a line number, and the sample is the mutants whose keys hash smallest: code that moves elsewhere redraws nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

PLACES = (
    "ranker",
    "retrieval",
    "serving",
    "feature_repo/frames",
    "evaluation/metrics.py",
    "evaluation/measurements.py",
    "evaluation/classifiers.py",
    "evaluation/ctr_quality.py",
    "evaluation/retrieval_quality.py",
)
SEED = "moon"

# Calls whose arguments nobody's answer depends on: progress, logs, types.
_TOLD = {"track", "warn", "cast", "TypeVar", "ParamSpec", "getLogger", "print"}
_LOGGED = {"debug", "info", "warning", "error", "exception"}
_TYPES = {"Callable", "Iterator", "Mapping", "Sequence", "Union", "dict", "list", "tuple", "type"}
# How much is worked on at once: any number gives the same answer, and each has a test that says so.
_PIECES = {
    "CHUNK_REQUESTS",
    "CHUNK_PAIRS",
    "BLOCK_PAIRS",
    "BLOCK_REQUESTS",
    "ROWS",
    "SLOTS",
    "BATCH_ROWS",
    "VALID_REQUESTS",
}
# Arguments that assert something about our own code, or say what an answer may cost: never what it is.
_KEPT = {"strict", "zero_copy_only", "assume_unique", "fused", "non_blocking", "copy"}


@dataclass(frozen=True, eq=False)
class Mutant:
    """One change: ``old`` becomes ``new`` in ``statement``, lines ``first`` to ``last`` of ``file``."""

    file: str
    inside: str  # the function it is in, or "" where it runs at import
    operator: str
    first: int
    last: int
    statement: str
    old: str
    new: str
    nth: int  # among mutants that are otherwise the same
    tree: cst.Module
    nodes: tuple[cst.CSTNode, cst.CSTNode]  # before and after

    @property
    def code(self) -> str:
        """The whole mutated file."""
        return self.tree.deep_replace(*self.nodes).code

    @property
    def key(self) -> str:
        """What stays the same while other code moves."""
        return " | ".join((self.file, self.inside, self.operator, self.statement, self.change, str(self.nth)))

    @property
    def change(self) -> str:
        """The change in one line."""
        return f"{_one_line(self.old)} → {_one_line(self.new)}"

    def rank(self, seed: str) -> str:
        """The place in the draw."""
        return hashlib.sha256(f"{seed} {self.key}".encode()).hexdigest()


def sample(root: Path, size: int, seed: str = SEED) -> list[Mutant]:
    """``size`` mutants of ``PLACES``, evenly over mutmut's operators; of each, those whose keys hash smallest.

    Without the balance most would leave out an argument, because most of the code is calls.
    Raises ``FileNotFoundError`` where a place is gone.
    """
    of_operator: dict[str, list[Mutant]] = {}
    for file in files(root):
        for mutant in one_per_place(mutants_of(str(file.relative_to(root)), file.read_text()), seed):
            of_operator.setdefault(mutant.operator, []).append(mutant)
    rounds = zip_longest(
        *(sorted(of_operator[name], key=lambda m: m.rank(seed)) for name in sorted(of_operator))
    )
    return [mutant for drawn in rounds for mutant in drawn if mutant][:size]


def files(root: Path) -> list[Path]:
    """Every file that is mutated."""
    found: list[Path] = []
    for place in PLACES:
        path = root / place
        if not path.exists():
            raise FileNotFoundError(f"{place} of tests/mutants/draw.py does not exist: correct PLACES")
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def one_per_place(mutants: list[Mutant], seed: str) -> list[Mutant]:
    """One mutant per place and operator: a call with eight arguments does not count sixteen times."""
    best: dict[tuple, Mutant] = {}
    for mutant in mutants:
        place = (mutant.operator, mutant.first, mutant.old, mutant.nth)
        best[place] = min(best.get(place, mutant), mutant, key=lambda m: m.rank(seed))
    return list(best.values())


def mutants_of(name: str, source: str) -> list[Mutant]:
    """Every mutant of a file that a test could notice."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = _Mutations(wrapper.module)
    wrapper.visit(visitor)
    seen: Counter = Counter()
    mutants = []
    for node, changed, operator, inside, (first, last) in visitor.found:
        old, new = wrapper.module.code_for_node(node), wrapper.module.code_for_node(changed)
        if isinstance(node, cst.Assign | cst.AugAssign | cst.AnnAssign):
            new = new.strip()
        statement = _one_line("\n".join(source.splitlines()[first - 1 : last]))
        nth = seen[inside, operator, statement, old, new]
        seen[inside, operator, statement, old, new] += 1
        nodes = (node, changed)
        mutants.append(
            Mutant(name, inside, operator, first, last, statement, old, new, nth, wrapper.module, nodes)
        )
    return mutants


class _Mutations(cst.CSTVisitor):
    """Walks a module and keeps (node, changed node, operator, function, lines)."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, module: cst.Module) -> None:
        super().__init__()
        self.module = module
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, str, str, tuple[int, int]]] = []
        self._skipped: list[cst.CSTNode] = []
        self._lines: list[tuple[int, int]] = []  # of the statements around, innermost last
        self._inside: list[str] = []
        self._bodies: list[cst.BaseSuite] = []  # of the functions around
        self._open: list[bool] = []  # for every block around, whether it is a function's body

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Mutates a node unless a rule leaves it out, with everything below it."""
        if _left_out(node):
            self._skipped.append(node)
            return False
        if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            self._lines.append(self._span(node))
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._inside.append(node.name.value)
        for changed, operator in self._changes(node):
            inside = ".".join(self._inside) if any(self._open) else ""
            self.found.append((node, changed, operator, inside, self._lines[-1]))
        if isinstance(node, cst.FunctionDef):
            self._bodies.append(node.body)
        if isinstance(node, cst.BaseSuite):
            self._open.append(node in self._bodies)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        """Forgets the statement that ends here."""
        if self._skipped and self._skipped[-1] is original_node:
            self._skipped.pop()
            return
        if isinstance(original_node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            self._lines.pop()
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self._inside.pop()
        if isinstance(original_node, cst.BaseSuite):
            self._open.pop()

    def _changes(self, node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, str]]:
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                for changed in operator(node):
                    if not (isinstance(node, cst.Call) and _kept(node) != _kept(changed)):
                        yield changed, operator.__name__.removeprefix("operator_")

    def _span(self, node: cst.CSTNode) -> tuple[int, int]:
        """First and last line of a statement; of a compound one only its header."""
        position = self.get_metadata(PositionProvider, node)
        last = position.end.line
        if isinstance(node, cst.BaseCompoundStatement) and isinstance(node.body, cst.IndentedBlock):
            header = self.get_metadata(PositionProvider, node.body.body[0]).start.line - 1
            last = max(position.start.line, header)
        return position.start.line, last


def _left_out(node: cst.CSTNode) -> bool:
    """Whether no test should notice a change here: types, prose, messages, imports, sizes of pieces."""
    match node:
        case (
            cst.Annotation() | cst.Raise() | cst.Assert() | cst.Decorator() | cst.Import() | cst.ImportFrom()
        ):
            return True
        case cst.Expr(value=cst.SimpleString() | cst.ConcatenatedString()):
            return True
        case cst.SimpleString(value=text):
            return any(letter.isspace() for letter in text)  # prose: a message, a title, a help text
        case cst.FunctionDef(name=cst.Name(value="__repr__" | "__str__")):
            return True
        case cst.If(test=cst.Name(value="TYPE_CHECKING")):
            return True
        case cst.Call(func=cst.Name(value=name)):
            return name in _TOLD or name.endswith(("Error", "Exception"))
        case cst.Call(func=cst.Attribute(value=cst.Name(value=name), attr=cst.Name(value=verb))):
            return (name in ("log", "logger", "logging") and verb in _LOGGED) or verb in _TOLD
        case cst.Arg(keyword=cst.Name(value=name)):
            return name in _KEPT
        case cst.Assign(value=cst.Call(func=cst.Name(value="TypeVar" | "ParamSpec"))):
            return True
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value=name))]):
            alias = isinstance(node.value, cst.Subscript) and _alias(node.value)
            return name == "__all__" or name in _PIECES or alias
    return False


def _alias(value: cst.Subscript) -> bool:
    """Whether this is a type: ``Callable[...]``, ``tuple[int, int]``."""
    return isinstance(value.value, cst.Name) and value.value.value in _TYPES


def _kept(node: cst.CSTNode) -> list[str]:
    """The arguments of a call that no mutant may drop or change, as written."""
    if not isinstance(node, cst.Call):
        return []
    kept = [arg for arg in node.args if arg.keyword and arg.keyword.value in _KEPT]
    return [cst.Module([]).code_for_node(arg.value) for arg in kept]


def _one_line(text: str) -> str:
    return " ".join(text.split())
