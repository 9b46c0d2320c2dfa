"""Rankers as recipes: each function returns one complete ranker and lists its modules.

A variation is a line: ``Recipe("no_numbers", {"ids": Ids, "interest": Interest, "cube": Cube})``. A module with
options of its own is a ``functools.partial``: ``{"sharp": partial(MyModule, temperature=0.05)}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from ranker.modules.cube import Cube
from ranker.modules.ids import Ids
from ranker.modules.interest import Interest
from ranker.modules.module import CONTENT, Build, Features, Module, Widths
from ranker.modules.numbers import Numbers


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
                f"recipe {self.name}: all its {len(self.modules)} modules read content vectors, so the id-only "
                f"control has none. Add one that does not, such as Ids."
            )
        return {name: one(widths) for name, one in kept.items()}

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


RECIPES: dict[str, Callable[[], Recipe]] = {"cube": cube}


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
