"""Open the search of a run or a generation."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from retrieval.index import ItemIndex
from retrieval.search.search import Search, no_pictures
from run.artifacts import Artifact


def open_search(artifacts: Mapping[str, Artifact], items: pa.Table, index: ItemIndex) -> Search:
    """A search over the items of an index.

    Args:
        artifacts: by role; of ``search`` and ``picture_index``, if they are there. A run made by a release without
            them is searched by words and meaning.
        items: ITEMS rows of the catalogue.
        index: vectors of whole items.
    """
    if "search" in artifacts:
        return Search.open(artifacts["search"], ItemIndex.open(artifacts["picture_index"]), index)
    return Search.of(items, no_pictures(index), index)
