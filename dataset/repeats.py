"""What users take again: whether a recommendation may be of an item that its user liked before.

In some shops users come back for what they know (groceries, spare parts, music), in others what they have is of no
use to them. Which it is decides what is asked for, what is proposed, and what every method is measured by.
"""

from __future__ import annotations

import numpy as np

from dataset.log import Log, pairs

USUAL = 1 / 2  # of the takings: a majority is a principle, not a limit found on some log


def takings(log: Log) -> np.ndarray:
    """Likes that follow no like of the same item by the same user, as rows of the log, ordered by user, then time.

    So a click and the purchase that it leads to are one taking, and a like of the next item ends it.
    """
    rows = log.liked_by_user
    user, item = log.user[rows], log.item[rows]
    other = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    return rows[np.append(True, other)[: len(rows)]]


def are_usual(log: Log) -> tuple[bool, str]:
    """Whether most of what users take, but their first, they had taken before; and the share, in words."""
    rows = takings(log)
    later = np.append(False, log.user[rows][1:] == log.user[rows][:-1])[: len(rows)]
    if not later.any():
        return False, "no user liked two items"
    pair = pairs(log.user[rows], log.item[rows])
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(pair, return_index=True)[1]] = True
    share = float((~first)[later].mean())
    return share > USUAL, f"{share:.0%} of what users like, they had liked before"
