"""Text normalization: one form for catalogue, queries, categories and filters.

Texts that look the same become equal: "é" typed as one character or as two, full-width letters, a soft hyphen or a
byte order mark inside. Invisible characters are removed, and so is the markup of HTML, which shops keep in their
descriptions: an encoder would learn its words.
"""

from __future__ import annotations

import html
import re
import unicodedata

import pyarrow as pa

# Unicode's default-ignorable characters (DerivedCoreProperties): invisible, usually typed by accident.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
ELEMENTS = (
    "a|abbr|address|article|aside|b|big|blockquote|body|br|button|center|code|col|colgroup|dd|del|div|dl|dt|em|figcaption|"
    "figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|legend|li|link|main|mark|meta|nav|"
    "noscript|ol|p|picture|pre|q|s|script|section|small|source|span|strike|strong|style|sub|sup|svg|table|tbody|td|tfoot|"
    "th|thead|title|tr|u|ul|video|wbr"
)
# Of known elements only: "<3" and "<new>" are words. No part reads past a "<", so that time is linear.
MARKUP = re.compile(
    rf"<(script|style)(?=[\s>])[^<>]*>[^<]*</\1\s*>|<!--[^<>]*-->|</?(?:{ELEMENTS})(?=[\s/>])[^<>]*>",
    re.IGNORECASE,
)
AMPERSAND = re.compile("&(?:(?:amp|#0*38|#x0*26);)+", re.IGNORECASE)  # escaped any number of times
ENTITY = re.compile(r"&#?\w{2,32};")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed


def clean(text: str) -> str:
    """The text in Unicode form NFKC, without markup and invisible or control characters, stripped."""
    before = ""
    while before != text:  # what is removed may join another character, or markup that was escaped twice
        before = text
        if not text.isascii():
            text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
        text = CONTROL.sub(" ", text)
        if "<" in text or "&" in text:
            text = _without_markup(text)
    return text.strip()


def _without_markup(text: str) -> str:
    """The words of HTML: an element becomes a space, ``&amp;`` is "&"."""
    words = re.sub(" {2,}", " ", bare) if (bare := MARKUP.sub(" ", text)) != text else text
    return ENTITY.sub(lambda found: html.unescape(found[0]), AMPERSAND.sub("&", words))


def clean_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """``clean`` of every text of a column of strings, of lists of strings, or of maps from strings to strings."""
    return pa.chunked_array([_cleaned(chunk) for chunk in column.chunks], column.type)


def _cleaned(values: pa.Array) -> pa.Array:
    """Clean an array; returns the same object if nothing changes."""
    if pa.types.is_map(values.type) or pa.types.is_list(values.type):
        parts = (values.keys, values.items) if pa.types.is_map(values.type) else (values.values,)
        cleaned = [_cleaned(part) for part in parts]
        if all(one is part for one, part in zip(cleaned, parts, strict=True)):
            return values
        mask = values.is_null() if values.null_count else None
        kind = pa.MapArray if pa.types.is_map(values.type) else pa.ListArray
        return kind.from_arrays(values.offsets, *cleaned, mask=mask).cast(values.type)
    texts = values.dictionary_encode()
    known = texts.dictionary.to_pylist()
    made = [clean(text) for text in known]
    return values if made == known else pa.array(made, pa.string()).take(texts.indices)
