"""Everything that ``feast apply`` registers: our definitions, those in ``mine/``, and the views of the embeddings."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView
from feast.base_feature_view import BaseFeatureView

from feature_repo import entities, features, services
from feature_repo.extras import Extra, extra_views, switch_on
from feature_repo.signature import signature_of
from feature_repo.views import EmbeddingRecord, embedding_views
from moonstore.errors import StoreError

MINE = "mine"  # folder of a repository: every .py file in it is part of the repository
KEPT = {"pd", "pandas", "np", "numpy"}  # what Feast gives to the functions of on-demand views
VECTORS = "vectors"  # tag of a service: which vectors of the active embedding it reads
Definition = Entity | BaseFeatureView | FeatureService
KINDS = (Entity, FeatureView, OnDemandFeatureView, FeatureService)


def definitions(
    record: EmbeddingRecord, repository: Path = Path(__file__).parent, extras: tuple[Extra, ...] = ()
) -> dict[str, Definition]:
    """All definitions by name; new objects at each call, because Feast modifies those it applies.

    Args:
        record: the embeddings of the store. Services with the tag ``vectors`` read the active one, and no vectors
            before the first one.
        repository: a definition in its folder ``mine`` joins ours; a service there replaces ours of the same name.
        extras: left-over columns of the store's data, which are views as well.

    Raises:
        StoreError: a file cannot be imported, two definitions have one name, the function of an on-demand view is
            not whole, or a service is no signature (``signature_of``).
    """
    found = {one.name: one for module in (entities, features, services) for one in _defined(module)}
    where = dict.fromkeys(found, "feature_repo")
    for path in sorted((repository / MINE).glob("*.py")):
        known = {id(one) for one in found.values()}  # what a file imports it does not define
        for one in _defined(_imported(path)):
            if id(one) not in known:
                _check_name(one, found, where, path)
                found[one.name], where[one.name] = one, str(path)
    found = copy.deepcopy(found)
    for embedding in record.embeddings:
        found |= embedding_views(embedding)
    own = extra_views(extras)
    found |= own
    views = [one for one in found.values() if isinstance(one, BaseFeatureView)]
    for view in views:
        _check_function(view)
    for one in found.values():
        if isinstance(one, FeatureService):
            _add_vectors(one, record, found)
            switch_on(one, extras, own)
            signature_of(one, views)
    return found


def _defined(module: ModuleType) -> Iterator[Definition]:
    """The definitions in a module's namespace, each once."""
    yield from {id(one): one for one in vars(module).values() if isinstance(one, KINDS)}.values()


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"feature_repo.mine.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a file of the user's raises
        raise StoreError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _check_name(
    one: Definition, found: Mapping[str, Definition], where: Mapping[str, str], path: Path
) -> None:
    other = found.get(one.name)
    ours = where.get(one.name) == "feature_repo"
    if other is None or (ours and isinstance(one, FeatureService) and isinstance(other, FeatureService)):
        return
    raise StoreError(
        f"{path}: expected definitions of new names, found {type(one).__name__} {one.name}, which {where[one.name]} "
        f"defines as well. Rename it; only a FeatureService may replace one of feature_repo."
    )


def _check_function(view: BaseFeatureView) -> None:
    """Refuse an on-demand view whose function needs its module: Feast keeps the text of the function alone."""
    udf = getattr(getattr(view, "feature_transformation", None), "udf", None)
    if udf is None:
        return
    used = inspect.getclosurevars(udf)
    names = sorted({*used.globals, *used.nonlocals} - KEPT)
    if names:
        raise StoreError(
            f"on-demand view {view.name}: its function uses {', '.join(names)} of its module, and Feast keeps the "
            f"text of the function alone. Define or import in the function what it needs; pd and np are there."
        )


def _add_vectors(service: FeatureService, record: EmbeddingRecord, found: Mapping[str, Definition]) -> None:
    asked = [one.strip() for one in service.tags.get(VECTORS, "").split(",") if one.strip()]
    wrong = sorted(set(asked) - {"item", "query"})
    if wrong:
        raise StoreError(
            f"service {service.name}: tag {VECTORS}: expected item, query or both, found {', '.join(wrong)}."
        )
    for embedding in record.embeddings:
        if embedding.version == record.active:
            chosen = {
                "item": (embedding.item_view, "vector"),
                "query": (embedding.query_view, "query_vector"),
            }
            for name, feature in (chosen[one] for one in asked):
                view = found[name]
                assert isinstance(view, FeatureView)
                service.feature_view_projections.append(view[[feature]].projection)
