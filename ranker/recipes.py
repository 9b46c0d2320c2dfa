"""Rankers as recipes: each function returns one complete ranker and lists its modules.

A variation is a line: ``Recipe("no_numbers", {"ids": Ids, "interest": Interest, "cube": Cube})``. A module with
options of its own is a ``functools.partial``: ``{"sharp": partial(MyModule, temperature=0.05)}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from ranker.inputs.search import Search
from ranker.modules.codes import Codes
from ranker.modules.cross import Cross
from ranker.modules.cube import Cube
from ranker.modules.din import Din
from ranker.modules.hstu import Hstu
from ranker.modules.ids import Ids
from ranker.modules.interest import Interest
from ranker.modules.logistic import Logistic
from ranker.modules.make import Make
from ranker.modules.module import CONTENT, FOUND, Build, Features, Module, Widths
from ranker.modules.muse import Muse
from ranker.modules.numbers import Numbers
from ranker.modules.pairs import Pairs
from ranker.modules.sata import SaTa
from ranker.modules.sim import Sim
from ranker.modules.simtier import SimTier
from ranker.modules.twin import Twin
from ranker.modules.vector import Vector


class RecipeError(ValueError):
    """A ranker recipe that is unknown, has changed, or cannot be built."""


@dataclass(frozen=True)
class Recipe:
    """One ranker: the modules whose outputs its network takes, side by side in this order.

    Attributes:
        name: under which it is chosen.
        modules: name in the model, and so of its tensors -> the module's class, or a ``partial`` of it.
        search: how a long history is searched; its latest behaviours are then all that modules read of it beside
            what was found. None: they read all of it.
    """

    name: str
    modules: Mapping[str, Build]
    search: Search | None = None

    def build(self, widths: Widths) -> dict[str, Module]:
        """Fresh modules by name; without content vectors, those that need them are left out.

        Raises:
            RecipeError: a module reads what no batch holds, none is left, or histories are too long for one.
        """
        self.require_history(widths.history)
        known = {field.name for field in fields(Features)}
        for name, one in self.modules.items():
            if strange := [read for read in _kind(one).reads() if read not in known]:
                raise RecipeError(
                    f"recipe {self.name}: module {name} reads {', '.join(strange)}: "
                    f"expected fields of Features: {', '.join(sorted(known))}"
                )
            if self.search is None and not FOUND.isdisjoint(_kind(one).reads()):
                raise RecipeError(
                    f"recipe {self.name}: module {name} reads what a search found: expected one in the recipe"
                )
        kept = {n: one for n, one in self.modules.items() if widths.content or not self.needs_content(one)}
        if not kept:
            raise RecipeError(
                f"recipe {self.name}: all its {len(self.modules)} modules read content vectors, so a control without "
                f"vectors has none. Add one that does not, such as Ids."
            )
        if self.search is not None:
            widths = replace(widths, history=min(widths.history, self.search.recent))
        return {name: one(widths) for name, one in kept.items()}

    def require_history(self, history: int) -> None:
        """Refuse histories that are too long for a module.

        Raises:
            RecipeError: naming the module.
        """
        read = history if self.search is None else min(history, self.search.recent)
        for name, one in self.modules.items():
            longest = _kind(one).longest
            if longest is not None and read > longest:
                raise RecipeError(
                    f"recipe {self.name}: module {name} compares all behaviours with each other: expected at most "
                    f"{longest:,}, found {read:,}. Choose a recipe that searches them, such as 'moon ranker --recipe "
                    f"twin --history {read}', or fewer."
                )

    def needs_content(self, module: Build) -> bool:
        """Whether a module reads content vectors, or what was found by them."""
        reads = _kind(module).reads()
        by_content = self.search is not None and self.search.by == "content"
        return not CONTENT.isdisjoint(reads) or (by_content and not FOUND.isdisjoint(reads))

    def to_json(self) -> dict[str, Any]:
        """Name, modules and their options as JSON values, for a model's configuration."""
        described = {
            name: {"module": _kind(one).__name__, **(one.keywords if isinstance(one, partial) else {})}
            for name, one in self.modules.items()
        }
        search = {} if self.search is None else {"search": self.search.to_json()}
        return {"name": self.name, "modules": described, **search}


def cube() -> Recipe:
    """MOON's ranker (2511.11305, figure 5): ids, target attention, numbers and content interest by CUBE."""
    return Recipe("cube", {"ids": Ids, "interest": Interest, "numbers": Numbers, "cube": Cube})


def lr() -> Recipe:
    """Logistic regression on ids and numbers."""
    return Recipe("lr", {"lr": Logistic})


def fm() -> Recipe:
    """Factorisation machine (Rendle, ICDM 2010): the linear part, and all pairs of ids."""
    return Recipe("fm", {"lr": Logistic, "pairs": Pairs})


def deep_fm() -> Recipe:
    """DeepFM (Guo, IJCAI 2017): a factorisation machine and a perceptron on the same embeddings."""
    return Recipe("deep_fm", {"lr": Logistic, "pairs": Pairs, "ids": Ids, "numbers": Numbers})


def dcn_v2() -> Recipe:
    """DCNv2 (Wang, WWW 2021): a cross network and a perceptron on the same inputs."""
    return Recipe("dcn_v2", {"cross": Cross, "ids": Ids, "numbers": Numbers})


def attention() -> Recipe:
    """Ids, numbers and target attention by dot products: what the recipes of content below add to."""
    return Recipe("attention", IDS)


def din() -> Recipe:
    """DIN (Zhou, KDD 2018): a perceptron weighs behaviours."""
    return Recipe("din", {"ids": Ids, "din": Din, "numbers": Numbers})


def sim_hard() -> Recipe:
    """SIM (Qi, CIKM 2020) searching a long history by category, beside attention to the recent one."""
    return Recipe("sim_hard", {**IDS, "sim": Sim}, Search("category", keep=50, recent=RECENT))


def twin() -> Recipe:
    """Like TWIN (Chang, KDD 2023): one attention searches and weighs."""
    return Recipe("twin", {"ids": Ids, "twin": Twin, "numbers": Numbers})


def hstu() -> Recipe:
    """Like HSTU (Zhai, ICML 2024): the history encoded as a sequence."""
    return Recipe("hstu", {"ids": Ids, "hstu": Hstu, "numbers": Numbers})


def vector() -> Recipe:
    """Content vectors beside everything else, as they are."""
    return Recipe("vector", {**IDS, "vector": Vector})


def sim_soft() -> Recipe:
    """SIM searching by content."""
    return Recipe("sim_soft", {**IDS, "sim": Sim}, Search("content", keep=15, recent=RECENT))


def simtier() -> Recipe:
    """SimTier (2407.19467): a histogram of content similarity."""
    return Recipe("simtier", {**IDS, "simtier": SimTier})


def sata() -> Recipe:
    """SA-TA (2512.07216): target attention by ids and content together."""
    return Recipe("sata", {"ids": Ids, "sata": SaTa, "numbers": Numbers})


def muse() -> Recipe:
    """MUSE (2512.07216): SimTier and SA-TA over a long history searched by content, SimTier over the recent one."""
    parts = {**IDS, "simtier": SimTier, "muse": Muse}
    return Recipe("muse", parts, Search("content", keep=15, recent=RECENT))


def make() -> Recipe:
    """MAKE (2407.19467): a click model of content, trained alone first; SimTier beside it, as in the paper."""
    return Recipe("make", {**IDS, "make": Make, "simtier": SimTier})


def qarm() -> Recipe:
    """QARM (2411.11739): quantised codes with embeddings of their own."""
    return Recipe("qarm", {**IDS, "codes": Codes})


RECENT = 50  # behaviours that a recipe with a search reads as they are
IDS: Mapping[str, Build] = {"ids": Ids, "interest": Interest, "numbers": Numbers}
# The default first; then those that read ids only, then those that read content.
RECIPES: dict[str, Callable[[], Recipe]] = {
    one.__name__: one
    for one in (
        cube, lr, fm, deep_fm, dcn_v2, attention, din, sim_hard, twin, hstu,
        vector, sim_soft, simtier, sata, muse, make, qarm,
    )
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        RecipeError: unknown name, listing the known ones.
    """
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def recorded(content: Mapping[str, Any]) -> Recipe:
    """The recipe that ``to_json`` described.

    Raises:
        RecipeError: its name is unknown, or means another ranker by now.
    """
    found = recipe(content["name"])
    if found.to_json() != content:
        raise RecipeError(f"recipe {found.name}: trained as {content}, by now it is {found.to_json()}")
    return found


def _kind(module: Build) -> type[Module]:
    kind = module.func if isinstance(module, partial) else module
    if not (isinstance(kind, type) and issubclass(kind, Module)):
        raise RecipeError(f"expected a class of ranker module or a partial of one, found {module!r}")
    return kind
