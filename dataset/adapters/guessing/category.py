"""Which columns are the category of an item: a path in one column, tags, or one column per level."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from dataset.adapters.guessing.guess import Rest
from dataset.adapters.guessing.profile import Profile, pairs
from dataset.adapters.guessing.tables import percent
from dataset.adapters.guessing.words import ATTRIBUTE, CATEGORY, IMAGE, RATING, TAGS, is_unnamed, tokens

SEPARATORS = (" > ", " >> ", ">", "＞", " / ", " | ", "|", "/", "::", ";", ".", ", ", ",")
SHORT = 60  # characters of a category, on average
DETERMINED = 0.95  # share of the rows that agree with the coarser category of their finer one


def category(rest: Rest) -> None:
    """Add the guesses of the category, if there is one."""
    foreign = ATTRIBUTE | IMAGE | RATING | {"url", "count", "price"}
    scored = {}
    for name, one in rest.free.items():
        words = set(tokens(name))
        points = max((CATEGORY[word] for word in words if word in CATEGORY), default=0) - 2 * len(
            words & foreign
        )
        listed = "[]" in one.kind
        if points > 0 and (listed or (one.is_text or one.is_id) and 1 < one.distinct and one.length < 200):
            scored[name] = points + one.is_text + 0.5 * one.full - (one.unique > 0.5)
    if not scored:
        scored = {
            name: 1.0 + one.is_text + _is_words(one)
            for name, one in rest.free.items()
            if is_unnamed(name) and _groups(one)
        }
    if not scored:
        return
    seed = max(scored, key=lambda name: scored[name])
    one = rest.free[seed]
    if "[]" in one.kind or all(re.match(r"\[.*\]$", str(cell)) for cell in one.cells[:200]):
        rest.take("category", seed, f"its name; lists, e.g. {one.example(1)}")
        if "[]" not in one.kind:
            rest.proposal.add("category_separator", "[]", "the cells are lists")
        if set(tokens(seed)) & TAGS:
            rest.proposal.add(
                "category_levels", 1, "they are tags beside each other, no path: the first one counts"
            )
        return
    tagged, named = bool(set(tokens(seed)) & TAGS), "its name"
    if is_unnamed(seed):
        named = "nothing names it; its values repeat"
    separator = _separator(one, tagged)
    if separator is not None:
        tagged = tagged or (is_unnamed(seed) or separator.strip() == ",") and _in_any_order(one, separator)
        rest.take("category", seed, f"{named}; e.g. {one.example(2)}", not is_unnamed(seed))
        rest.proposal.add(
            "category_separator", separator, f"in {percent(_share(one, separator))} of the values"
        )
        if tagged:
            rest.proposal.add(
                "category_levels", 1, "they are tags beside each other, no path: the first one counts"
            )
        return
    levels = _levels(seed, {name: rest.free[name] for name in scored if rest.free[name].kind == "VARCHAR"})
    if len(levels) > 1:
        sizes = " > ".join(str(rest.free[name].distinct) for name in levels)
        rest.take(
            "category",
            levels,
            f"their names; each value belongs to one of the column before ({sizes} values)",
        )
    else:
        said = f"{named}; {one.distinct} values, e.g. {one.example()}"
        rest.take("category", seed, said, not is_unnamed(seed))


def _separator(one: Profile, tagged: bool) -> str | None:
    for separator in SEPARATORS:
        if (
            separator.strip() == ","
            and not (tagged or _in_any_order(one, separator))
            or separator == "."
            and any(" " in str(cell) for cell in one.cells[:500])
        ):
            continue
        if _share(one, separator) >= 0.2:
            firsts = {text.split(separator)[0] for text in one.values}
            if len(firsts) < max(2, 0.9 * one.distinct):
                return separator
    return None


def _groups(one: Profile) -> bool:
    """Whether a column without a name could be a category: few short values, each of several rows, and no flag."""
    is_short = (one.is_text or one.is_id) and one.length < SHORT and one.clock is None
    return is_short and 1 < one.distinct and one.unique <= 0.5 and not one.values.keys() <= {"0", "1"}


def _is_words(one: Profile) -> bool:
    """Whether no value has a digit, as codes have."""
    return not any(re.search(r"\d", text) for text in one.values)


def _in_any_order(one: Profile, separator: str) -> bool:
    """Whether a part of some values is the first one of others: tags, not a path."""
    parts = [text.split(separator) for text in one.values]
    return bool({part[0] for part in parts} & {other for part in parts for other in part[1:]})


def _share(one: Profile, separator: str) -> float:
    return sum(separator in str(cell) for cell in one.cells[:5000]) / max(len(one.cells[:5000]), 1)


def _levels(seed: str, candidates: dict[str, Profile]) -> list[str]:
    """Columns that refine each other, broadest first, ``seed`` among them."""
    chain = [seed]
    by_size = sorted(
        (name for name in candidates if name != seed), key=lambda name: -candidates[name].distinct
    )
    for name in by_size:  # from the finest to the broadest
        if candidates[name].distinct < candidates[chain[0]].distinct and determines(
            candidates[chain[0]], candidates[name]
        ):
            chain.insert(0, name)
    for name in reversed(by_size):
        finer = candidates[name].distinct > candidates[chain[-1]].distinct
        if (
            name not in chain
            and finer
            and candidates[name].unique < 0.5
            and determines(candidates[name], candidates[chain[-1]])
        ):
            chain.append(name)
    return chain[:5]


def determines(finer: Profile, coarser: Profile) -> bool:
    """Whether rows of one value of ``finer`` have, nearly all, one value of ``coarser``; gaps aside.

    A column that is nearly one value says nothing of ``finer``: at most half of the rows that are not the commonest
    value may disagree.
    """
    both = pairs(finer, coarser)
    if len(both) < 0.5 * max(len(finer.cells), len(coarser.cells), 1):
        return False
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for one, other in both:
        seen[one][other] += 1
    repeated = [counts for counts in seen.values() if sum(counts.values()) > 1]
    rows = sum(sum(counts.values()) for counts in repeated)
    wrong = rows - sum(max(counts.values()) for counts in repeated)
    rare = rows - max(sum(repeated, Counter()).values(), default=0)
    return rows >= 10 and wrong <= min((1 - DETERMINED) * rows, rare / 2)
