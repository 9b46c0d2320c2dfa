"""What users see of an item: its card and its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.shop_ids import ShopId
from feature_repo.shop_ids import INT64_IDS, ShopIds
from retrieval.index import category_path


@dataclass(frozen=True)
class Card:
    """An item for display, under the shop's id; fields the catalogue lacks are None or empty."""

    item_id: ShopId
    title: str
    category: str
    price: float | None
    image_id: str | None

    @property
    def name(self) -> str:
        """What people see: the title, or else the shop's id."""
        return named(self.title, self.item_id)


def named(title: str | None, item_id: ShopId) -> str:
    """The name of an item for people: its title, or else the shop's id."""
    return title or f"item {item_id}"


class Catalogue:
    """Cards by item id.

    Args:
        items: the dataset's items table.
        image_bytes: picture of an image id, None when there is none.
        ids: of the shop.
    """

    def __init__(
        self, items: pa.Table, image_bytes: Callable[[str], bytes | None], ids: ShopIds = INT64_IDS
    ) -> None:
        self._items = items.select(["item_id", "title", "category", "price", "image_id", "first_seen"])
        self._row = {item_id: row for row, item_id in enumerate(items["item_id"].to_pylist())}
        self.image_bytes, self._ids = image_bytes, ids

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, item_id: int) -> bool:
        return item_id in self._row

    @cached_property
    def newest(self) -> np.ndarray:
        """Every item, int64, those first seen last first; of equal time those of larger id."""
        order = [("first_seen", "descending"), ("item_id", "descending")]
        return np.asarray(self._items.select(["item_id", "first_seen"]).sort_by(order)["item_id"].to_numpy())

    def with_items(self, items: pa.Table, pictures: Mapping[str, bytes]) -> Catalogue:
        """A catalogue with these items added or replaced; ``pictures`` by image id."""
        columns = items.select(self._items.column_names)
        kept = pc.invert(pc.is_in(self._items["item_id"], value_set=columns["item_id"]))
        image_bytes = self.image_bytes
        return Catalogue(
            pa.concat_tables([self._items.filter(kept), columns]),
            lambda image_id: pictures[image_id] if image_id in pictures else image_bytes(image_id),
            self._ids,
        )

    def cards(self, item_ids: Sequence[int] | np.ndarray) -> list[Card]:
        """One card per id, in order; an id the catalogue does not hold gets an empty card."""
        ids = [int(item_id) for item_id in item_ids]
        held = [self._row[item_id] for item_id in ids if item_id in self._row]
        found = {row["item_id"]: row for row in self._items.take(pa.array(held, pa.int64())).to_pylist()}
        names = self._ids.names("item_id", ids)
        return [_card(name, found.get(item_id)) for item_id, name in zip(ids, names, strict=True)]


def _card(item_id: ShopId, row: dict | None) -> Card:
    if row is None:
        return Card(item_id, "", "", None, None)
    price = row["price"]
    return Card(
        item_id=item_id,
        title=row["title"] or "",
        category=category_path(row["category"]),
        price=round(price, 2) if price is not None and np.isfinite(price) else None,
        image_id=row["image_id"],
    )
