"""Which column of a log is the user, the item, the time, the type, ...; and those of judgements."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from dataset.adapters.described.description import DAYS, IGNORE
from dataset.adapters.described.joined import Joined
from dataset.adapters.guessing.clock import Clock
from dataset.adapters.guessing.guess import Proposal
from dataset.adapters.guessing.profile import Profile, pairs
from dataset.adapters.guessing.tables import MOST_TYPES, SURE, Seen, percent
from dataset.adapters.guessing.words import (
    BOUGHT,
    CLICKED,
    GRADES,
    PART,
    POSITION,
    QUANTITY,
    RATING,
    SKIPPED,
    STATE,
    TIME,
    TYPE,
    event_type,
    is_event_id,
    is_taken_back,
    is_unnamed,
    names_id_of,
    tokens,
)

CONSISTENT = 0.98
SCALE = (1.0, 5.0)


def event_columns(proposal: Proposal, table: Seen) -> None:
    """Add the guesses of a log."""
    columns = table.columns
    if isinstance(joined := table.found.files, Joined):
        proposal.add("join", list(joined.other.patterns), "says whose the rows are")
        proposal.add("join_on", joined.on, "both have it" if joined.key is None else "its name here")
        proposal.add("join_key", joined.key, "its name there")
    _who(proposal, table)
    item = table.refs["item"]
    proposal.add(
        "item", item, f"{columns[item].distinct:,} values in {columns[item].rows:,} rows; {table.why['item']}"
    )
    own = next(
        (
            name
            for name in columns
            if table.base is None and is_event_id(name) and columns[name].is_id and table.is_key(name)
        ),
        None,
    )
    proposal.add("id", own, "its name; a value of its own in every row")
    time_columns(proposal, "time", table.time(), table)
    if table.time() is None:
        _days(proposal, table)
    _type(proposal, table)
    _request(proposal, table)
    places = [
        name
        for name in table.with_words(POSITION)
        if min(columns[name].numbers) >= 0 and "." not in columns[name].example()
    ]
    if places:
        first = int(min(columns[places[0]].numbers))
        proposal.add("position", places[0], f"its name; from {first} to {max(columns[places[0]].numbers):g}")
        proposal.add("first_position", int(first == 1), "places count from 1")
    _query(proposal, table)
    proposal.left = [name for name in columns if name not in proposal.used]


def _days(proposal: Proposal, table: Seen) -> None:
    """Add a column that counts days or orders in place of times; without one the rows are in their order."""
    name = table.days()
    if name is None:
        named = [one for one, each in table.columns.items() if set(tokens(one)) & TIME and each.cells]
        like = [f"; {one!r} is named like one: {table.columns[one].example(2)}" for one in named[:1]]
        proposal.doubts.append(f"no column of times{''.join(like)}: the rows are taken in their order")
        return
    numbers = table.columns[name].numbers
    what = "days" if table.counter is None else "orders of each user, taken for days"
    proposal.add("time", name, f"counts {what}: {min(numbers):g} to {max(numbers):g}", table.counter is None)
    proposal.add("time_format", DAYS, "since some start, written as since 2000")
    proposal.add("whole_days", True, "none has a time of day: known at the end of its day")


def time_columns(proposal: Proposal, key: str, name: str | None, table: Seen) -> None:
    """Add the column of the time, its format, its zone, and what was seen of its sanity."""
    if name is None:
        return
    clock = table.columns[name].clock
    assert clock is not None  # Seen.time returns columns with one
    order = "in order" if clock.rising >= 0.999 else "not in order"
    span = f"{clock.first:%Y-%m-%d} to {clock.last:%Y-%m-%d}, rows {order}"
    odd = f"; {percent(1 - clock.share)} are no such time" if clock.share < 1 else ""
    odd += f"; {clock.future} are in the future" if clock.future else ""
    proposal.add(key, name, f"times from {span}{odd}", not odd)
    kind = table.columns[name].kind
    if kind.startswith(("TIMESTAMP", "DATE")):
        proposal.add("time_format", clock.layout, f"stored as {kind}")
    else:
        proposal.add(
            "time_format", clock.layout, _format_words(clock, table.columns[name]), clock.twin is None
        )
    if not clock.zoned:
        proposal.add("time_zone", "UTC", "they do not say their zone; write yours, e.g. Europe/Berlin", False)
    if clock.days:
        proposal.add("whole_days", True, "none has a time of day: known at the end of its day")


def _format_words(clock: Clock, profile: Profile) -> str:
    known = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    words = f"{known[clock.layout]} since 1970" if clock.layout in known else "as written"
    doubt = f"; could be {clock.twin} as well" if clock.twin else ""
    return f"{words}, e.g. {profile.example(1)}{doubt}"


def _who(proposal: Proposal, table: Seen) -> None:
    user, session = table.refs.get("user"), table.refs.get("session")
    columns = table.columns
    if user is None or not columns[user].cells:
        assert session is not None  # role_of asks for one of them
        why = "no column of users: a session stands for one" if user is None else f"{user!r} is empty"
        proposal.add("user", session, f"{why}; {columns[session].distinct:,} values", False)
        return
    gaps = f"; empty in {percent(1 - columns[user].full)} of the rows" if columns[user].full < 1 else ""
    sure = "not surely" not in table.why["user"]
    proposal.add(
        "user",
        user,
        f"{columns[user].distinct:,} values in {columns[user].rows:,} rows; {table.why['user']}{gaps}",
        sure,
    )
    others = [name for name in columns if name not in (user, session) and names_id_of(name, "user") >= SURE]
    for name in [*(one for one in others if columns[one].is_id), *([session] if session else [])]:
        if columns[user].full < columns[name].full and _agree(pairs(columns[name], columns[user])):
            proposal.add("visitor", name, "stands for the user where the row names none")
            return


def _type(proposal: Proposal, table: Seen) -> None:
    best, types = table.type_column(proposal.used)
    called = event_type(table.name.rpartition("/")[2].partition(".")[0])
    ratings = [
        name
        for name in table.ratings()
        if name not in proposal.used and not (is_unnamed(name) and called not in (None, "rating"))
    ]
    if best is not None:
        silent = _without_item(proposal, table, best)
        types = {value: IGNORE if value in silent else kind for value, kind in types.items()}
        if not ratings:
            types = {value: "click" if kind == "rating" else kind for value, kind in types.items()}
        common = ", ".join(f"{value} {count:,}" for value, count in table.columns[best].values.most_common(6))
        proposal.add("type_column", best, f"its values: {common}")
        unknown = [
            value
            for value, kind in types.items()
            if kind == IGNORE and value not in silent and not is_taken_back(value)
        ]
        said = f"; not recognised, left out: {', '.join(unknown[:6])}" if unknown else ""
        proposal.add("types", types, f"by what the words mean{said}", not unknown)
        if "rating" in types.values():
            _rating(proposal, table, ratings[0])
        return
    if ratings:
        proposal.add("type", "rating", f"the column {ratings[0]!r} holds ratings")
        _rating(proposal, table, ratings[0])
        return
    for key, words in (("clicked", CLICKED), ("skipped", SKIPPED)):
        if (label := _label(proposal, table, words)) is not None:
            proposal.add("type", "impression", f"{label!r} says of every row whether it was {key}")
            proposal.add(key, label, _counted(table.columns[label]))
            break
    bought = _label(proposal, table, BOUGHT)
    if bought is not None and set(tokens(bought)) <= BOUGHT | {"is", "was", "has", "item"}:
        if proposal.get("type") is None:
            proposal.add("type", "click", f"{bought!r} says of every row whether it was bought")
        proposal.add("bought", bought, _counted(table.columns[bought]))
    if proposal.get("type") is not None:
        return
    kind, why, sure = _kind(table)
    if kind == "purchase" and (states := _states(proposal, table)):
        name, types = states
        undone = [state for state, one in types.items() if one == IGNORE]
        proposal.add("type_column", name, f"{why}; left out: {', '.join(undone)}", sure)
        proposal.add("types", types, "what was undone is no purchase")
    else:
        proposal.add("type", kind, why, sure)
    if kind == "purchase":
        _returns(proposal, table)


def _without_item(proposal: Proposal, table: Seen, kind: str) -> set[str]:
    """The kinds of events that never name an item: pages that were seen, logins."""
    both = list(zip(table.columns[kind].aligned, table.columns[proposal.get("item")].aligned, strict=True))
    return {said for said, _ in both if said} - {said for said, item in both if item not in (None, "")}


def _states(proposal: Proposal, table: Seen) -> tuple[str, dict[str, str]] | None:
    """The column of what became of an order, and its values' types, where some orders were undone."""
    for name, one in table.columns.items():
        if (
            name not in proposal.used
            and set(tokens(name)) & STATE
            and one.is_text
            and one.distinct <= MOST_TYPES
        ):
            types = {value: IGNORE if is_taken_back(value) else "purchase" for value in one.values}
            if len(set(types.values())) > 1:
                return name, types
    return None


def _label(proposal: Proposal, table: Seen, words: frozenset[str]) -> str | None:
    """The column of 0 and 1 that is named by one of the words."""
    beside = re.sub(r"\[\]\.1$", "[].2", proposal.get("item"))  # what is written behind each item of a list
    named = [
        name
        for name, one in table.columns.items()
        if name not in proposal.used
        and _flags(one) is not None
        and (set(tokens(name)) & words or words is CLICKED and name == beside)
    ]
    return next(iter(named), None)


def _counted(one: Profile) -> str:
    return f"its name; 0 and 1, of {one.rows:,} rows {sum(_flags(one) or []):,} are 1"


def _flags(one: Profile) -> list[int] | None:
    """The values of a column of yes and no, of which it has both; None: it has others."""
    known = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
    values = [known.get(str(cell).lower()) for cell in one.cells]
    return [value for value in values if value is not None] if set(values) == {0, 1} else None


def _returns(proposal: Proposal, table: Seen) -> None:
    """The column of how many were bought, where some are below zero."""
    for name in table.with_words(QUANTITY):
        below = sum(one < 0 for one in table.columns[name].numbers)
        if below and name not in proposal.used:
            proposal.add("quantity", name, f"its name; {below:,} are below zero: taken back, left out")
            return


def _kind(table: Seen) -> tuple[str, str, bool]:
    """The type of all rows, of a log without a column of types or ratings."""
    by_name = event_type(table.name.rpartition("/")[2].partition(".")[0]) or event_type(
        table.name.rpartition("/")[0]
    )
    if by_name is not None and by_name != "rating":
        return by_name, "the name of the file", True
    by_column = [event_type(name) for name, one in table.columns.items() if one.clock is not None]
    if table.is_bought or "purchase" in by_column:
        return "purchase", "the columns are those of a bill", True
    refs = {event_type(name) for name in table.refs.values()} - {None, "rating"}
    if "purchase" in refs:
        return "purchase", "every row belongs to an order", True
    if any("price" in tokens(name) or "amount" in tokens(name) for name in table.columns):
        return "purchase", "there is a price in every row", True
    said = [name for name, one in table.columns.items() if _may_say(name, one, set(table.refs.values()))]
    asked = "".join(
        f"; {name!r} may, in words not known: {table.columns[name].example(6)}" for name in said[:1]
    )
    return "click", f"nothing says what the rows are{asked}", False


def _may_say(name: str, one: Profile, ids: set[str]) -> bool:
    """Whether a column is named like one of types, and has a few words again and again."""
    is_named = bool(set(tokens(name)) & TYPE) and name not in ids
    is_code = one.is_text or one.is_number and one.is_id
    return is_named and is_code and 1 < one.distinct <= MOST_TYPES and one.unique < 0.5


def _rating(proposal: Proposal, table: Seen, name: str) -> None:
    numbers = table.columns[name].numbers
    low, high = min(numbers), max(numbers)
    counts = Counter(numbers)
    if low == 0 and high >= SCALE[1] and counts[0] > counts[1] + counts[2]:
        share = percent(counts[0] / len(numbers))
        proposal.add("unrated", 0.0, f"{share} are 0, more than 1 and 2 together: no rating, a click", False)
        low = min(one for one in numbers if one > 0)
    named = "its name" if set(tokens(name)) & RATING else "few numbers; the file is called ratings"
    named = "few numbers; nothing names it" if is_unnamed(name) else named
    proposal.add("value", name, f"{named}; {table.columns[name].distinct} values from {low:g} to {high:g}")
    if high > SCALE[1] or high <= 1 or low < 0:
        top = next((one for one in (1.0, 10.0, 20.0, 100.0) if high <= one), high)
        proposal.add(
            "value_scale",
            [min(low, 0.0 if high <= 1 or top > 10 else 1.0), top],
            "brought to the scale from 1 to 5",
        )


def _request(proposal: Proposal, table: Seen) -> None:
    """A session, order or slate, if its rows are of one user."""
    name, user = table.refs.get("session") or _search(table), proposal.get("user")
    if name is None or name == user:
        return
    types = proposal.get("types") or {}
    request, users = table.columns[name], table.columns[user]
    shown = {value for value, kind in types.items() if kind == "impression"}
    if _agree(pairs(request, users)):
        if shown or proposal.get("type") == "impression":
            if table.is_key(name) or not _one_time(table, name, proposal, shown):
                return  # it numbers the rows, or is a visit
        proposal.add("request", name, f"its name; {request.distinct:,} values, each of one user")


def _search(table: Seen) -> str | None:
    """The column of searches that were made, where several share their words: it numbers requests, not queries."""
    name = table.refs.get("query")
    words = [column for column in _query_texts(table) if column != name]
    if name is None or not words or table.columns[name].distinct <= table.columns[words[0]].distinct:
        return None
    return name if _agree(pairs(table.columns[name], table.columns[words[0]])) else None


def _one_time(table: Seen, name: str, proposal: Proposal, shown: set[str]) -> bool:
    """Whether the impressions of a slate have one time; ``shown``: the values of the type that are impressions."""
    time, kind = proposal.get("time"), proposal.get("type_column")
    if time is None:
        return False
    rows = list(zip(table.columns[name].aligned, table.columns[time].aligned, strict=True))
    if kind is not None:
        rows = [row for row, said in zip(rows, table.columns[kind].aligned, strict=True) if said in shown]
    return _agree([(str(left), str(right)) for left, right in rows if left is not None])


def _agree(both: list[tuple[str, str]]) -> bool:
    """Whether, nearly always, equal left values have equal right values."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for left, right in both:
        seen[left][right] += 1
    rows = sum(sum(counts.values()) for counts in seen.values())
    return sum(max(counts.values()) for counts in seen.values()) / max(rows, 1) >= CONSISTENT


def _query(proposal: Proposal, table: Seen) -> None:
    name = table.refs.get("query")
    words = [column for column in _query_texts(table) if column not in proposal.used]
    if name is not None and name not in {*words, *proposal.used}:
        proposal.add("query", name, f"{table.why['query']}; {table.columns[name].distinct:,} values")
    if words:
        proposal.add("query_text", words[0], f"its name; e.g. {table.columns[words[0]].example(2)}")


def _query_texts(table: Seen) -> list[str]:
    named = {"query", "search", "keyword", "term", "phrase"}
    return [
        name
        for name, one in table.columns.items()
        if set(tokens(name)) & named and one.is_text and (one.words > 1.1 or not one.is_id)
    ]


def query_columns(proposal: Proposal, table: Seen) -> None:
    """Add the guesses of a table of queries."""
    text = next(
        name for name in [*_query_texts(table), *(n for n, one in table.columns.items() if one.is_text)]
    )
    proposal.add("id", table.refs["query"], f"{table.why['query']}; a value of its own in every row")
    proposal.add("text", text, f"its name; e.g. {table.columns[text].example(2)}")
    proposal.left = [name for name in table.columns if name not in proposal.used]


def judgement_columns(proposal: Proposal, table: Seen) -> None:
    """Add the guesses of a table of judgements."""
    item, query = table.refs["item"], table.refs.get("query")
    words = [name for name in _query_texts(table) if name != query]
    if query is not None:
        proposal.add("query", query, table.why["query"])
    if words:
        proposal.add("query_text", words[0], f"its name; e.g. {table.columns[words[0]].example(2)}")
    proposal.add("item", item, table.why["item"])
    name = max(
        table.relevances(), key=lambda one: ("relevance" in tokens(one) or "label" in tokens(one), -len(one))
    )
    one = table.columns[name]
    proposal.add("relevance", name, f"its name; {one.distinct} values, e.g. {one.example()}")
    if one.is_number:
        low, high = min(one.numbers), max(one.numbers)
        proposal.add("relevance_scale", [low, high], "the lowest and the highest grade", high > low)
    else:
        grades = {value: _grade(value) for value in one.values}
        known = {value: grade for value, grade in grades.items() if grade is not None}
        unknown = [value for value in grades if value not in known]
        proposal.add(
            "grades", {**known, **dict.fromkeys(unknown, 0.0)}, "by what the words mean", not unknown
        )
    parts = [
        column
        for column, each in table.columns.items()
        if set(tokens(column)) & PART and 1 < each.distinct <= 6 and each.is_text
    ]
    if parts:
        proposal.add("part", parts[0], f"its name; {table.columns[parts[0]].example()}")
    proposal.left = [column for column in table.columns if column not in proposal.used]


def _grade(text: str) -> float | None:
    words = (text.lower(), *tokens(text))
    return next((GRADES[word] for word in words if word in GRADES), None)
