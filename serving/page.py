"""A demonstration page: a user's history in pictures, and the recommendations with scores and timings.

Rendered on the server without scripts or external files: item ids may exceed JavaScript's integers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from html import escape
from urllib.parse import quote, urlencode

from dataset.shop_ids import ShopId, from_text
from feature_repo.online import StoreUnavailable
from retrieval.index import SEPARATOR
from serving.answer import Answer
from serving.catalogue import Card
from serving.recommend import STORE_AWAY, Recommender, UnknownCategory, UnknownItem

log = logging.getLogger("moon.serving")

SHOWN = 24
SHOWN_HISTORY = 12
MOST_CATEGORIES = 300  # to choose from, the broadest
REASONS = {  # of each source, in words
    "match_similar": "like an item they know",
    "match_profile": "their taste",
    "match_two_tower": "their taste",
    "match_cooccurrence": "taken together",
    "match_taste": "has what they like",
    "match_repeats": "taken before",
    "match_words": "described alike",
    "match_popular": "popular",
    "match_query": "like the search",
}
KEPT = "hardly known yet"  # of an item that was raised to explore it
SHOWN_REASONS = 2

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #5d6066; --accent: #2f62c4; }
@media (prefers-color-scheme: dark) { :root { --soft: #a9adb5; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 0 auto; padding: 20px; }
h1 { font-size: 22px; margin: 0 0 14px; } h1 small { font-weight: 400; color: var(--soft); font-size: 14px; }
h2 { font-size: 16px; margin: 26px 0 10px; }
form { display: inline-flex; gap: 8px; margin: 0 18px 10px 0; flex-wrap: wrap; }
input, select, button { font: inherit; padding: 6px 10px; border: 1px solid var(--line); border-radius: 8px;
  background: transparent; color: inherit; max-width: 240px; }
button { background: var(--accent); color: #fff; border-color: transparent; cursor: pointer; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 12px; }
.card { border: 1px solid var(--line); border-radius: 12px; padding: 8px; font-size: 12.5px; overflow: hidden;
  color: inherit; text-decoration: none; display: block; }
.card:hover { border-color: var(--accent); }
.card .frame { height: 132px; display: flex; align-items: center; justify-content: center; background: #8881;
  border-radius: 8px; margin-bottom: 6px; color: var(--soft); }
.card img { width: 100%; height: 132px; object-fit: contain; border-radius: 8px; }
.card b { display: block; overflow-wrap: anywhere; }
.card meter { width: 100%; height: 8px; display: block; margin-top: 4px; }
.soft, .card i { color: var(--soft); font-style: normal; }
.bars { display: flex; gap: 14px; flex-wrap: wrap; }
.flag { background: #d98a1b33; border-radius: 8px; padding: 6px 12px; display: inline-block; }
code { font-size: 12px; }
"""


def render(
    moon: Recommender, user_id: str, category: str, item_id: str, text: str, image: bytes | None = None
) -> str:
    """The page for a search, an item or a user, in that order of preference; every argument may be empty.

    Raises:
        DataError: the searched picture cannot be decoded.
    """
    if text or image is not None:
        shown = _result(_sought(text, image), moon.search(text or None, image, SHOWN), user_id)
        return page(moon, "", shown, user_id, category, text)
    problem, history, answer, title = "", [], None, ""
    try:
        if item_id:
            item = _id("item_id", item_id, moon)
            answer, title = moon.similar(item, SHOWN), f"Like item {item_id}"
            history = moon.catalogue.cards([moon.ids.one("item_id", item)])
        elif user_id or moon.example_users:
            user_id = user_id or str(moon.example_users[0])
            user = _id("user_id", user_id, moon)
            answer = moon.recommend(user, SHOWN, category or None)
            title = f"Recommended to user {user_id}"
            history = list({card.item_id: card for card in moon.history(user)}.values())
    except StoreUnavailable as error:
        log.warning("%s", error)
        problem = STORE_AWAY
    except (ValueError, UnknownItem, UnknownCategory) as error:
        problem = str(error)
    heading = "The item" if item_id else "What the user did, newest first"
    shown = _section(heading, history[:SHOWN_HISTORY], user_id)
    if answer is not None:
        shown += "\n" + _result(title, answer, user_id)
    return page(moon, problem, shown, user_id, category, text)


def page(
    moon: Recommender, problem: str, shown: str = "", user_id: str = "", category: str = "", text: str = ""
) -> str:
    """The page around what it shows, or around what was wrong with a request."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Moon</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>Moon <small>{len(moon.retriever.index)} items</small></h1>",
        _forms(moon, user_id, category, text),
        f"<p class='flag'>{escape(problem)}</p>" if problem else "",
        shown.strip("\n"),
        _made_of(moon),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part)


def _sought(text: str, image: bytes | None) -> str:
    if image is None:
        return f"Found for “{text}”"
    return f"Found for “{text}” and the picture" if text else "Found for the picture"


def _id(field: str, text: str, moon: Recommender) -> ShopId:
    try:
        return from_text(text, moon.ids.kinds[field])
    except ValueError as error:
        raise ValueError(f"{text!r} is not an id: {error}") from None


def _forms(moon: Recommender, user_id: str, category: str, text: str) -> str:
    users = "".join(f"<option value='{escape(str(user))}'>" for user in moon.example_users)
    every = moon.retriever.index.categories
    broadest = sorted(every, key=lambda path: path.count(SEPARATOR))[:MOST_CATEGORIES]
    categories = "".join(
        f"<option value='{escape(path)}'{' selected' if path == category else ''}>{escape(path)}</option>"
        for path in sorted({*broadest, *([category] if category in every else [])})
    )
    return (
        f"<form><input name='user_id' aria-label='user' list='users' placeholder='user' value='{escape(user_id)}'>"
        f"<datalist id='users'>{users}</datalist>"
        f"<select name='category' aria-label='category'><option value=''>every category</option>{categories}</select>"
        f"<button>Recommend</button></form>"
        f"<form method='post' action='/' enctype='multipart/form-data'>"
        f"<input name='text' aria-label='search' placeholder='search' value='{escape(text)}'>"
        f"<input type='file' name='image' aria-label='picture' accept='image/*'><button>Search</button></form>"
    )


def _result(title: str, answer: Answer, user_id: str) -> str:
    times = "".join(
        f"<span>{escape(stage)} <b>{ms:.1f} ms</b></span>" for stage, ms in answer.timings_ms.items()
    )
    flags = "".join(f"<p class='flag'>{escape(name.replace('_', ' '))}</p> " for name in answer.fallbacks)
    about = (
        f"<div class='bars soft'><span>ordered by <b>{escape(answer.order)}</b></span>{times}</div>{flags}"
    )
    if not answer.hits:
        return f"<h2>{escape(title)}</h2>{about}<p>Nothing fits.</p>"
    notes = [
        " · ".join(f"{key.removeprefix('match_')} {value:.2f}" for key, value in hit.matches.items() if value)
        for hit in answer.hits
    ]
    captions = [
        f"<meter value='{share:.3f}'></meter>{escape(said)}{f'<div class=soft>{escape(why)}</div>' if why else ''}"
        for (share, said), why in zip(_strengths(answer), _whys(answer), strict=True)
    ]
    return _section(title, [hit.card for hit in answer.hits], user_id, captions, notes, about)


def _strengths(answer: Answer) -> list[tuple[float, str]]:
    """For each hit a length from 0 to 1 and words: how well it fits, or its place where scores are no shares."""
    scores = [hit.score for hit in answer.hits]
    if answer.order in ("relevance", "similarity"):
        word = "match" if answer.order == "relevance" else "alike"
        return [(share, f"{share:.0%} {word}") for share in (min(max(score, 0.0), 1.0) for score in scores)]
    least, most = min(scores), max(scores)
    return [
        ((score - least) / (most - least) if most > least else 1.0, f"no. {place}")
        for place, score in enumerate(scores, 1)
    ]


def _whys(answer: Answer) -> list[str]:
    """For each hit the sources that speak for it more than for two thirds of the hits, in words; KEPT before them."""
    names = list(dict.fromkeys(name for hit in answer.hits for name in hit.matches))
    bar = {
        name: sorted(hit.matches.get(name, 0.0) for hit in answer.hits)[2 * len(answer.hits) // 3]
        for name in names
    }
    whys = []
    for hit in answer.hits:
        speaking = [name for name, value in hit.matches.items() if value > 0 and value >= bar[name]]
        words = dict.fromkeys([KEPT] if hit.explored else [])
        words |= dict.fromkeys(REASONS.get(name, name.removeprefix("match_")) for name in speaking)
        whys.append(", ".join(list(words)[:SHOWN_REASONS]))
    return whys


def _section(
    title: str,
    cards: Sequence[Card],
    user_id: str,
    captions: Sequence[str] = (),
    notes: Sequence[str] = (),
    about: str = "",
) -> str:
    """Cards under a title; ``captions`` are markup."""
    if not cards:
        return ""
    tiles = [
        _tile(card, user_id, captions[place] if captions else "", notes[place] if notes else "")
        for place, card in enumerate(cards)
    ]
    return f"<h2>{escape(title)}</h2>{about}<div class='grid'>{''.join(tiles)}</div>"


def _tile(card: Card, user_id: str, caption: str, note: str) -> str:
    name = card.name
    picture = (
        f"<img src='/image/{quote(card.image_id, safe='')}' alt='{escape(name)}' loading='lazy'>"
        if card.image_id
        else "no picture"
    )
    price = "" if card.price is None else f"<div>{card.price:,.2f}</div>"  # in the shop's own unit
    link = "/?" + urlencode({"item_id": card.item_id} | ({"user_id": user_id} if user_id else {}))
    return (
        f"<a class='card' href='{escape(link)}' title='{escape(note)}'><div class='frame'>{picture}</div>"
        f"<b>{escape(name)}</b><i>{escape(card.category)}</i>{price}"
        f"{f'<div>{caption}</div>' if caption else ''}</a>"
    )


def _made_of(moon: Recommender) -> str:
    made = " · ".join(
        f"{escape(role)} <code>{escape(value)}</code>" for role, value in moon.artifacts.items()
    )
    return f"<h2>Made of</h2><p class='soft'>{made}</p>"
