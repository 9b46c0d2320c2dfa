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
from serving.answer import Answer
from serving.catalogue import Card
from serving.recommend import STORE_AWAY, Recommender, UnknownCategory, UnknownItem

log = logging.getLogger("moon.serving")

SHOWN = 24
SHOWN_HISTORY = 12

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8889; --accent: #3b6fd4; }
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
.card b { display: block; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.soft, .card i { color: var(--soft); font-style: normal; }
.bars { display: flex; gap: 14px; flex-wrap: wrap; }
.flag { background: #d98a1b33; border-radius: 8px; padding: 6px 12px; display: inline-block; }
code { font-size: 12px; }
"""


def render(moon: Recommender, user_id: str, category: str, item_id: str, text: str) -> str:
    """The page for a user, an item or a text, in that order of preference; every argument may be empty."""
    problem, history, answer, title = "", [], None, ""
    try:
        if text:
            answer, title = moon.search(text, None, SHOWN), f"Found for “{text}”"
        elif item_id:
            item = _id("item_id", item_id, moon)
            answer, title = moon.similar(item, SHOWN), f"Like item {item_id}"
            history = moon.catalogue.cards([moon.ids.one("item_id", item)])
        elif user_id or moon.example_users:
            user_id = user_id or str(moon.example_users[0])
            user = _id("user_id", user_id, moon)
            answer = moon.recommend(user, SHOWN, category or None)
            title = f"Recommended to user {user_id}"
            history = moon.history(user)
    except StoreUnavailable as error:
        log.warning("%s", error)
        problem = STORE_AWAY
    except (ValueError, UnknownItem, UnknownCategory) as error:
        problem = str(error)
    heading = "The item" if item_id and not text else "What the user did, newest first"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Moon</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>Moon <small>{len(moon.retriever.index)} items</small></h1>",
        _forms(moon, user_id, category, text),
        f"<p class='flag'>{escape(problem)}</p>" if problem else "",
        _section(heading, history[:SHOWN_HISTORY], []),
        _result(title, answer) if answer is not None else "",
        _made_of(moon),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part)


def _id(field: str, text: str, moon: Recommender) -> ShopId:
    try:
        return from_text(text, moon.ids.kinds[field])
    except ValueError as error:
        raise ValueError(f"{text!r} is not an id: {error}") from None


def _forms(moon: Recommender, user_id: str, category: str, text: str) -> str:
    users = "".join(f"<option value='{escape(str(user))}'>" for user in moon.example_users)
    categories = "".join(
        f"<option value='{escape(path)}'{' selected' if path == category else ''}>{escape(path)}</option>"
        for path in moon.retriever.index.categories
    )
    return (
        f"<form><input name='user_id' aria-label='user' list='users' placeholder='user' value='{escape(user_id)}'>"
        f"<datalist id='users'>{users}</datalist>"
        f"<select name='category' aria-label='category'><option value=''>every category</option>{categories}</select>"
        f"<button>Recommend</button></form>"
        f"<form><input name='text' aria-label='search' placeholder='search' value='{escape(text)}'>"
        f"<button>Search</button></form>"
    )


def _result(title: str, answer: Answer) -> str:
    notes = [
        " · ".join(f"{key.removeprefix('match_')} {value:.2f}" for key, value in hit.matches.items() if value)
        for hit in answer.hits
    ]
    captions = [f"{hit.score:.3f}" for hit in answer.hits]
    times = "".join(
        f"<span>{escape(stage)} <b>{ms:.1f} ms</b></span>" for stage, ms in answer.timings_ms.items()
    )
    flags = "".join(f"<p class='flag'>{escape(name.replace('_', ' '))}</p> " for name in answer.fallbacks)
    about = (
        f"<div class='bars soft'><span>ordered by <b>{escape(answer.order)}</b></span>{times}</div>{flags}"
    )
    if not answer.hits:
        return f"<h2>{escape(title)}</h2>{about}<p>Nothing fits.</p>"
    return _section(title, [hit.card for hit in answer.hits], captions, notes, about)


def _section(
    title: str, cards: Sequence[Card], captions: Sequence[str], notes: Sequence[str] = (), about: str = ""
) -> str:
    if not cards:
        return ""
    tiles = [
        _tile(card, captions[place] if captions else "", notes[place] if notes else "")
        for place, card in enumerate(cards)
    ]
    return f"<h2>{escape(title)}</h2>{about}<div class='grid'>{''.join(tiles)}</div>"


def _tile(card: Card, caption: str, note: str) -> str:
    name = card.title or f"item {card.item_id}"
    picture = (
        f"<img src='/image/{quote(card.image_id, safe='')}' alt='{escape(name)}' loading='lazy'>"
        if card.image_id
        else "no picture"
    )
    price = "" if card.price is None else f"<div>{card.price:,.2f}</div>"  # in the shop's own unit
    link = "/?" + urlencode({"item_id": card.item_id})
    return (
        f"<a class='card' href='{escape(link)}' title='{escape(note)}'><div class='frame'>{picture}</div>"
        f"<b>{escape(name)}</b><i>{escape(card.category)}</i>{price}"
        f"{f'<div>{escape(caption)}</div>' if caption else ''}</a>"
    )


def _made_of(moon: Recommender) -> str:
    made = " · ".join(
        f"{escape(role)} <code>{escape(value)}</code>" for role, value in moon.artifacts.items()
    )
    return f"<h2>Made of</h2><p class='soft'>{made}</p>"
