"""Rankers as recipes: each function returns one complete ranker and lists its modules.

A variation is a line: ``Recipe("no_numbers", {"ids": Ids, "interest": Interest, "cube": Cube})``. A module with
options of its own is a ``functools.partial``: ``{"sharp": partial(MyModule, temperature=0.05)}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from ranker.modules.codes import Codes
from ranker.modules.cross import Cross
from ranker.modules.cube import Cube
from ranker.modules.din import Din
from ranker.modules.hstu import Hstu
from ranker.modules.ids import Ids
from ranker.modules.interest import Interest
from ranker.modules.logistic import Logistic
from ranker.modules.make import Make
from ranker.modules.module import CONTENT, Build, Features, Module, Widths
from ranker.modules.muse import Muse
from ranker.modules.numbers import Numbers
from ranker.modules.pairs import Pairs
from ranker.modules.sata import SaTa
from ranker.modules.sim import SimHard, SimSoft
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
    """

    name: str
    modules: Mapping[str, Build]

    def build(self, widths: Widths) -> dict[str, Module]:
        """Fresh modules by name; without content vectors, those that need them are left out.

        Raises:
            RecipeError: a module reads what no batch holds, or none is left.
        """
        known = {field.name for field in fields(Features)}
        for name, one in self.modules.items():
            if strange := [read for read in _kind(one).reads() if read not in known]:
                raise RecipeError(
                    f"recipe {self.name}: module {name} reads {', '.join(strange)}: "
                    f"expected fields of Features: {', '.join(sorted(known))}"
                )
        kept = {n: one for n, one in self.modules.items() if widths.content or not needs_content(one)}
        if not kept:
            raise RecipeError(
                f"recipe {self.name}: all its {len(self.modules)} modules read content vectors, so a control without "
                f"vectors has none. Add one that does not, such as Ids."
            )
        return {name: one(widths) for name, one in kept.items()}

    @property
    def by_category(self) -> bool:
        """Whether a module searches the history by category."""
        return any("same_category_RNL" in _kind(one).reads() for one in self.modules.values())

    def to_json(self) -> dict[str, Any]:
        """Name, modules and their options as JSON values, for a model's configuration."""
        described = {
            name: {"module": _kind(one).__name__, **(one.keywords if isinstance(one, partial) else {})}
            for name, one in self.modules.items()
        }
        return {"name": self.name, "modules": described}


def needs_content(module: Build) -> bool:
    """Whether a module reads content vectors."""
    return not CONTENT.isdisjoint(_kind(module).reads())


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
    """SIM (Qi, CIKM 2020) searching by category, beside attention to the whole history."""
    return Recipe("sim_hard", {**IDS, "sim": SimHard})


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
    return Recipe("sim_soft", {**IDS, "sim": SimSoft})


def simtier() -> Recipe:
    """SimTier (2407.19467): a histogram of content similarity."""
    return Recipe("simtier", {**IDS, "simtier": SimTier})


def sata() -> Recipe:
    """SA-TA (2512.07216): target attention by ids and content together."""
    return Recipe("sata", {"ids": Ids, "sata": SaTa, "numbers": Numbers})


def muse() -> Recipe:
    """MUSE (2512.07216): search by content, SimTier and SA-TA, beside attention to the whole history."""
    return Recipe("muse", {**IDS, "muse": Muse})


def make() -> Recipe:
    """MAKE (2407.19467): a click model of content, trained alone first; SimTier beside it, as in the paper."""
    return Recipe("make", {**IDS, "make": Make, "simtier": SimTier})


def qarm() -> Recipe:
    """QARM (2411.11739): quantised codes with embeddings of their own."""
    return Recipe("qarm", {**IDS, "codes": Codes})


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
