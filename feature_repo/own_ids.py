"""Messages in the shop's own ids: what an error says of items, users and queries, for a person.

Inside, every id is an int64, and so it is in the message of an error raised there. Where the message leaves for a
person (the command line, the dead letter, a service's `GET /readyz`), the integer is replaced by the shop's id.
"""

from __future__ import annotations

import re
from pathlib import Path

from dataset.shop_ids import HASHED, NAMED
from feature_repo.shop_ids import ShopIds, shop_ids
from moonstore.errors import StoreError

# "item_id 7", "item_id [7, 8]", "user_ids 7, 8": how our messages name ids.
OF_FIELD = re.compile(rf"\b({'|'.join(NAMED)})(s?:? \[?)(\d+(?:, \d+)*)\b(?![.'\w-])")
HASH = re.compile(r"(?<![\w.'/-])\d{19}(?![\w.'/-])")


def in_own_ids(store_dir: Path, text: str) -> str:
    """The text with the shop's own ids, quoted, for the integers that stand for them.

    An integer is known by the name of its field before it; a hash, 2**62 and above, also without. What no id of the
    store stands behind stays.
    """
    try:
        ids = shop_ids(store_dir)
        named = OF_FIELD.sub(
            lambda found: found[1] + found[2] + ", ".join(_of(ids, found[1], found[3])), text
        )
        return HASH.sub(lambda found: _of_any(ids, found[0]), named)
    except StoreError:  # of the names, which another command will tell; here another error has to be told
        return text


def _of(ids: ShopIds, field: str, numbers: str) -> list[str]:
    texts = numbers.split(", ")
    return [
        text if str(name) == text else repr(name)
        for text, name in zip(texts, ids.names(field, map(int, texts)), strict=True)
    ]


def _of_any(ids: ShopIds, number: str) -> str:
    if HASHED <= int(number) < 2**63:
        for field in NAMED:
            (name,) = _of(ids, field, number)
            if name != number:
                return name
    return number
