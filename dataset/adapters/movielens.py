"""MovieLens ratings with posters: the research pack (parquet) and the raw ``ml-latest`` layout (CSV)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataset.adapters.canonical import (
    attach_pictures,
    attributes,
    event_table,
    first_seen,
    flat,
    paths,
    times,
    under,
    user_table,
)
from dataset.adapters.source import choose_layout, read_csv, read_parquet
from dataset.contracts import ITEMS, JUDGEMENTS, QUERIES, Tables
from dataset.first_seen import LOG
from dataset.pictures import read_pictures

PACK = ("items.parquet", "ratings.parquet", "images.parquet")
RAW = ("movies.csv", "ratings.csv")
NO_GENRE = "(no genres listed)"

TEXT, INTEGER = pa.string(), pa.int64()
MOVIE = [("movieId", INTEGER), ("title", TEXT), ("genres", TEXT)]
RATING = pa.schema(
    [("userId", INTEGER), ("movieId", INTEGER), ("rating", pa.float32()), ("timestamp", INTEGER)]
)
DETAILS = ("plot", "director", "actors", "language", "country")
PACK_SCHEMAS = {
    "items.parquet": pa.schema(
        [
            *MOVIE,
            ("has_image", pa.bool_()),
            ("imdbId", INTEGER),
            ("tmdbId", pa.float64()),
            *((name, TEXT) for name in DETAILS),
        ]
    ),
    "ratings.parquet": RATING,
    "images.parquet": pa.schema(
        [("movieId", INTEGER), ("jpeg", pa.binary()), ("width", INTEGER), ("height", INTEGER)]
    ),
}
RAW_SCHEMAS = {"movies.csv": pa.schema(MOVIE), "ratings.csv": RATING}


def ml_posters(folder: Path, some: bool = False) -> tuple[Tables, dict[str, Any]]:
    """Ratings, movies with posters (``posters/<movieId>.jpg`` in the raw layout, optional), and users.

    Args:
        folder: the source.
        some: a new day of it, of which files may be missing.

    Raises:
        DataError: files, columns or types are not those of either layout.
    """
    layout = choose_layout(folder, {"pack": PACK, "raw": RAW}, some)
    if layout == "pack":
        movies, ratings, posters = (read_parquet(folder / name, PACK_SCHEMAS[name]) for name in PACK)
        shown: Iterable[tuple[str, bytes | None]] = zip(
            posters.column("movieId").cast(TEXT).to_pylist(), posters.column("jpeg").to_pylist(), strict=True
        )
    else:
        movies, ratings = (read_csv(folder / name, RAW_SCHEMAS[name]) for name in RAW)
        shown = read_pictures(folder / "posters")
    events = event_table(
        "rating",
        ratings.column("userId"),
        ratings.column("movieId"),
        times(ratings.column("timestamp"), per_second=1),
        value=ratings.column("rating"),
    )
    items, images, quarantine = _items(movies, events, shown)
    tables = Tables(
        items=items,
        images=images,
        users=user_table(events),
        events=events,
        queries=QUERIES.empty_table(),
        judgements=JUDGEMENTS.empty_table(),
        quarantine=quarantine,
    )
    return tables, {
        "name": "ml_posters",
        "source": f"MovieLens latest (GroupLens) with posters, {layout} layout",
        "first_seen": {"items": LOG, "users": LOG},
    }


def _items(
    movies: pa.Table, events: pa.Table, shown: Iterable[tuple[str, bytes | None]]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """ITEMS, IMAGES and QUARANTINE entries of refused posters."""
    movie = movies.column("movieId")
    image_id, images, quarantine = attach_pictures(movie.cast(TEXT).to_pylist(), shown)
    genres = _genres(movies.column("genres"))
    described = {
        name: movies.column(name)
        for name in ("director", "language", "country")
        if name in movies.column_names
    }
    columns = {
        "item_id": movie,
        "external_id": movie.cast(TEXT),
        "title": movies.column("title"),
        "category": paths(genres[:1]),
        "attributes": attributes(
            {**{f"genre_{n}": genre for n, genre in enumerate(genres, start=1)}, **described}
        ),
        "spu": movie,
        "image_id": image_id,
        "first_seen": first_seen(movie, events.column("item_id"), events.column("event_time")),
    }
    if "plot" in movies.column_names:
        columns["description"] = movies.column("plot")
    return under(ITEMS, columns), images, quarantine


def _genres(listed: pa.ChunkedArray) -> list[pa.Array]:
    """One column per genre position, null where a movie has fewer genres; at least one column."""
    known = pc.if_else(pc.equal(flat(listed), NO_GENRE), pa.scalar(None, TEXT), flat(listed))
    split = pc.split_pattern(known, "|").to_pylist()
    most = max((len(genres or ()) for genres in split), default=0)
    return [
        pa.array([genres[n] if genres and n < len(genres) else None for genres in split], TEXT)
        for n in range(max(most, 1))
    ]
