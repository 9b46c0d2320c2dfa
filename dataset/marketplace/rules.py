"""What a simulated shop is like: how much it knows of each user, what tastes are made of, what it shows at random.

Where a taste shows decides which model can learn it: elongation, pattern density and the backdrop's hue only in
pixels; material, brand, style and price only in words; leaf category, colour and pattern in both; and the circle, to
which a product belongs as a book does to readers, nowhere but in who acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FEW_USERS = 100  # that even a small shop has, if it had as many by the rules of the first release


@dataclass(frozen=True)
class Rules:
    """The rules of one world; each strength multiplies the tastes that show in one way, and 0 switches them off.

    Attributes:
        users: how many users share 60,000 impressions; fewer users have more behaviour each.
        random_share: fraction of the requests without a query that are answered with a random slate.
        pixels: strength of tastes that only pictures show.
        words: of tastes that only words show.
        both: of tastes that both show.
        behaviour: of tastes that neither shows.
    """

    users: int = 1_000
    random_share: float = 0.0
    pixels: float = 1.0
    words: float = 1.0
    both: float = 1.0
    behaviour: float = 0.0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Rules:
        """The rules in a dataset's configuration; those of the first release where it names none."""
        return cls(**config["rules"]) if "rules" in config else FIRST

    def record(self) -> dict[str, Any]:
        """As written in a dataset's configuration."""
        return asdict(self)

    def user_count(self, events: int) -> int:
        """Users of a shop with so many impressions."""
        scale = (events / 60_000) ** 0.8
        return max(round(self.users * scale), min(FEW_USERS, round(FIRST.users * scale)))


FIRST = Rules()  # of releases that did not write them down
DEFAULT = Rules(users=250, random_share=0.05, behaviour=0.5)  # an ideal observer reaches an AUC of .80
