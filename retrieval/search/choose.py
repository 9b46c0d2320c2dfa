"""How much words, meaning and pictures count in the searches of a run: chosen on queries that nothing learned from.

Legend: N items, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset.ndcg import ndcg
from dataset.tables import Dataset
from retrieval.search.search import NEAREST, Scored, Shares
from retrieval.search.spelling import words_of

DEPTH = 100  # candidates of each part
MOST_ASKED = 300  # withheld queries of each kind that choose the shares
LEAST_ASKED = 20  # with fewer, chance would choose
TRIED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # never all: meaning at least decides ties
NONSENSE = 400  # texts without meaning that set the floor
ANSWERED = 0.05  # of them, the fraction that finds something
LISTED = 10  # answers that are judged
SAME = 1 - 1e-5  # cosine of two vectors of one picture, but for rounding

Grades = dict[int, float]  # item -> how well it answers, 0 to 1
Ask = Callable[[str | None, bytes | None], Scored]


def chosen_shares(
    shares: Shares,
    ask: Ask,
    dataset: Dataset,
    query_ids: np.ndarray,
    words: Sequence[str],
    rng: np.random.Generator,
) -> Shares:
    """The shares with which judged queries that nothing has learned from are answered best (NDCG@10), and the floor.

    A photo of the catalogue should find its item: as many of them are asked as there are judged pictures. Of shares
    that are no worse than the best by more than a standard error the one nearest to the default is taken, so that
    chance does not choose; with fewer than LEAST_ASKED queries of a kind it is the default.

    Args:
        shares: the defaults.
        ask: searches for a text or a picture.
        dataset: queries, pictures and judgements.
        query_ids: int64, of the withheld queries.
        words: that titles say.
        rng: draws.
    """
    for name, column in (("words", "text"), ("picture", "image_id")):
        judged = list(judged_queries(dataset, query_ids, column))
        if len(judged) < LEAST_ASKED:
            continue
        asked = [judged[row] for row in rng.permutation(len(judged))[:MOST_ASKED]]
        if name == "picture":
            asked += _own_photos(dataset, len(asked), rng)
        scored = [(ask(text, image), grades) for text, image, grades in asked]
        shares = replace(shares, **{name: _best_share(shares, name, scored)})
    return replace(shares, floor=_floor(ask, words, rng))


def _best_share(shares: Shares, name: str, scored: Sequence[tuple[Scored, Grades]]) -> float:
    default = getattr(shares, name)
    tried = sorted({*TRIED, default}, key=lambda share: abs(share - default))
    gain = np.array(
        [
            [
                ndcg(replace(shares, **{name: share}).best(one, LISTED).ids, grades, LISTED)
                for one, grades in scored
            ]
            for share in tried
        ]
    )
    lost = gain[gain.mean(axis=1).argmax()] - gain
    error = lost.std(axis=1, ddof=1) / len(scored) ** 0.5
    return float(tried[int(np.argmax(lost.mean(axis=1) <= error))])


def _own_photos(
    dataset: Dataset, count: int, rng: np.random.Generator
) -> list[tuple[None, bytes | None, Grades]]:
    """Photos of the catalogue, each of which should find the items that it shows."""
    items = (
        dataset.items.filter(dataset.items["image_id"].is_valid())
        .select(["item_id", "image_id"])
        .sort_by("item_id")
    )
    shown: dict[str, Grades] = {}
    for item, image in zip(items["item_id"].to_pylist(), items["image_id"].to_pylist(), strict=True):
        shown.setdefault(image, {})[item] = 1.0
    images = sorted(shown)
    chosen = (images[row] for row in rng.permutation(len(images))[:count])
    return [(None, dataset.image_bytes(image), shown[image]) for image in chosen]


def nearest(pictures: np.ndarray, rng: np.random.Generator) -> float:
    """``Shares.nearest`` of vectors of pictures, float32 (N, D), zeros without one; copies count as one."""
    matrix = pictures[pictures.any(axis=1)]
    cosine = matrix[rng.permutation(len(matrix))[:MOST_ASKED]] @ matrix.T
    others = np.where(cosine < SAME, cosine, -1).max(axis=1, initial=-1)
    others = others[others > -1]
    return float(1 - np.median(others)) if len(others) else NEAREST


def judged_queries(
    dataset: Dataset, query_ids: np.ndarray, column: str
) -> Iterator[tuple[str | None, bytes | None, Grades]]:
    """Queries of words alone or of a picture alone, with the grades of their judged items, one above 0 at least.

    Args:
        dataset: queries, pictures and judgements.
        query_ids: int64, those wanted.
        column: ``text`` or ``image_id``.
    """
    other = {"text": "image_id", "image_id": "text"}[column]
    wanted = pa.array(query_ids, pa.int64())
    judgements = dataset.judgements.filter(pc.is_in(dataset.judgements["query_id"], value_set=wanted))
    grades: dict[int, Grades] = {}
    columns = (judgements[name].to_pylist() for name in ("query_id", "item_id", "relevance"))
    for query, item, grade in zip(*columns, strict=True):
        grades.setdefault(query, {})[item] = grade
    alone = pc.and_(dataset.queries[column].is_valid(), dataset.queries[other].is_null())
    for row in dataset.queries.filter(alone).sort_by("query_id").to_pylist():
        judged = grades.get(row["query_id"], {})
        if max(judged.values(), default=0) > 0:
            yield row["text"], dataset.image_bytes(row["image_id"]), judged


def _floor(ask: Ask, words: Sequence[str], rng: np.random.Generator) -> float:
    """The meaning that the best item for a text without meaning rarely has."""
    best = []
    for text in nonsense(words, NONSENSE, rng):
        scored = ask(text, None)
        if scored.words is not None and len(scored.ids) and not scored.words.any():
            best.append(float(scored.meaning.max()))
    return float(np.quantile(best, 1 - ANSWERED)) if best else 0.0


def title_words(items: pa.Table) -> list[str]:
    """The distinct words of ITEMS rows' titles, folded: what is searched for is said in such words."""
    return sorted({word for title in items["title"].to_pylist() for word in words_of(title)})


def nonsense(words: Sequence[str], count: int, rng: np.random.Generator) -> Iterator[str]:
    """Texts of one to three words that nobody has said: words with their letters shuffled."""
    spoken = [word for word in words if word.isalpha() and len(word) > 3] or ["nothing"]
    for _ in range(count):
        chosen = rng.integers(len(spoken), size=rng.integers(1, 4)).tolist()
        yield " ".join("".join(rng.permutation(list(spoken[one])).tolist()) for one in chosen)
