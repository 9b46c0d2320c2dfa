"""Search: items that answer words, a picture or both, by what they say, what they mean and how they look.

Three scores are mixed: the share of the words that an item says (``retrieval.search.lexical``), the meaning (how well
the vector of the whole item answers that of the query), and the likeness of the pictures. How much each counts, a run
chooses on judged queries that nothing has learned from (``retrieval.search.build``).

Legend: M items of the lexical part, C candidates, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file
from scipy import sparse

from feature_repo.vectors import rows_of
from retrieval.index import ItemIndex
from retrieval.search.lexical import Lexical, Said
from retrieval.search.spelling import folded
from run.artifacts import Artifact, open_artifact, write_artifact

TENSORS, VOCABULARY = "items.safetensors", "words.parquet"
# Where no judged query says how much words and pictures count. docs/log/retrieval.md has the measurement.
WORDS_SHARE, PICTURE_SHARE = 0.9, 0.5
NEAREST = 0.03  # ``Shares.nearest`` where there are no two pictures


# Unit vectors float32 (n, D) of n queries, each a text, a picture, or both: ``encoder.encode.query_encoder``.
QueryEncoder = Callable[[Sequence[tuple[str | None, bytes | None]]], np.ndarray]


# Log-odds float32 (n) that items answer a query, of the query's vector, the items' ids and their vectors.
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Asked:
    """What is searched for.

    Attributes:
        text: the words; None for a picture alone.
        vector: float32 (D), of words and picture together.
        picture: float32 (D), of the picture alone; None without one.
    """

    text: str | None
    vector: np.ndarray
    picture: np.ndarray | None

    @classmethod
    def of(cls, encode: QueryEncoder, text: str | None, image: bytes | None) -> Asked:
        """Encode a search; its case and accents do not matter.

        Raises:
            DataError: there is neither text nor picture, or the picture does not decode.
        """
        text = (text or "").strip() or None
        queries = [(None if text is None else folded(text), image)]
        if text is not None and image is not None:
            queries.append((None, image))
        vectors = encode(queries)
        return cls(text, vectors[0], None if image is None else vectors[-1])


@dataclass(frozen=True)
class Scored:
    """Candidates of a search with the parts of their scores.

    Attributes:
        ids: int64 (C).
        meaning: float32 (C), up to 1.
        words: float32 (C), the share of the text that each says, 0 to 1; None: nothing was asked in words.
        picture: float32 (C), the likeness of the pictures, 0 to 1; None: no picture was sent.
        tiers: int64 (C), how many of the text's words each says, one more if its title is the text.
        titled: bool (C), whether its title is the text.
    """

    ids: np.ndarray
    meaning: np.ndarray
    words: np.ndarray | None
    picture: np.ndarray | None
    tiers: np.ndarray
    titled: np.ndarray


@dataclass(frozen=True)
class Found:
    """The answer to a search, best first.

    Attributes:
        ids: int64 (C).
        scores: float32 (C), up to 1, or up to 2 for an item whose title is the text.
        tiers: int64 (C), see ``Scored``: a searcher's own taste may order items within a tier only.
    """

    ids: np.ndarray
    scores: np.ndarray
    tiers: np.ndarray


@dataclass(frozen=True)
class Shares:
    """How much of a score each part is; the meaning is the rest.

    Attributes:
        words: of a search by words, 0 to 1.
        picture: of a search by a picture, 0 to 1.
        floor: the least meaning with which an item that says none of the words answers them.
        nearest: the distance (1 - cosine) between a picture of the catalogue and the one most like it, the median: at
            this distance likeness has fallen to 1 / e. Encoders differ in it by far; with it the likeness of a copy
            stands out whichever made the vectors.
    """

    words: float = WORDS_SHARE
    picture: float = PICTURE_SHARE
    floor: float = 0.0
    nearest: float = NEAREST

    def mixed(self, scored: Scored) -> np.ndarray:
        """Scores of candidates, float32 (C); of words and a picture together the mean of both."""
        parts = [
            share * score + (1 - share) * scored.meaning
            for share, score in ((self.words, scored.words), (self.picture, scored.picture))
            if score is not None
        ]
        return np.stack(parts).mean(axis=0, dtype=np.float32) + scored.titled

    def best(self, scored: Scored, depth: int) -> Found:
        """The candidates that fit, at most the best ``depth``; a picture fits everything somehow."""
        scores, fits = self.mixed(scored), np.ones(len(scored.ids), bool)
        if scored.words is not None and scored.picture is None:
            fits = (scored.words > 0) | (scored.meaning >= self.floor)
        order = np.lexsort((scored.ids, -scores))
        order = order[fits[order]][:depth]
        return Found(scored.ids[order], scores[order], scored.tiers[order])


@dataclass(frozen=True)
class Search:
    """Answers searches.

    Attributes:
        lexical: what items say.
        pictures: vectors of the items' pictures alone.
        shares: how much each part of a score counts.
        index: vectors of whole items; tells which may be answered.
        received: image id -> vector of the picture alone, of items that came in while serving: each is encoded once.
    """

    lexical: Lexical
    pictures: ItemIndex
    shares: Shares
    index: ItemIndex
    received: dict[str, np.ndarray] = field(default_factory=dict)

    def find(self, asked: Asked, depth: int, judge: Judge | None = None) -> Found:
        """The best items for a search, at most ``depth``; none where nothing fits its words.

        ``judge`` knows what an item means for a query (``ranker.relevance``); without one it is their cosine.
        """
        return self.shares.best(self.scored(asked, depth, judge), depth)

    def scored(self, asked: Asked, depth: int, judge: Judge | None = None) -> Scored:
        """The union of the ``depth`` best of every part, with the scores of all parts."""
        lexical = self.lexical
        said = None if asked.text is None else lexical.said(asked.text)
        found = [self.index.search(asked.vector, depth)[0]]
        if said is not None:
            found.append(self._saying(said, depth))
        if asked.picture is not None:
            found.append(self.pictures.search(asked.picture, depth)[0])
        ids = np.unique(np.concatenate(found))
        row, (vectors, _) = rows_of(lexical.item_ids, ids), self.index.gather(ids)
        picture = None
        if asked.picture is not None:
            alone, pictured = self.pictures.gather(ids)
            cosine = (
                np.where(pictured[:, None], alone, vectors) @ asked.picture
            )  # of the whole item without a picture
            picture = np.exp((np.minimum(cosine, 1) - 1) / self.shares.nearest)
        return Scored(
            ids,
            _meaning(judge, asked.vector, ids, vectors),
            None if said is None else said.share[row],
            picture,
            np.zeros(len(ids), np.int64) if said is None else said.words[row] + said.titled[row],
            np.zeros(len(ids), bool) if said is None else said.titled[row],
        )

    def _saying(self, said: Said, depth: int) -> np.ndarray:
        """Ids of the ``depth`` items that say most of a text, of those that may be answered."""
        rows = np.flatnonzero(said.words)
        rows = rows[self.index.contains(self.lexical.item_ids[rows])]
        best = np.argsort(-(said.share[rows] + said.titled[rows]), kind="stable")[:depth]
        return self.lexical.item_ids[rows[best]]

    def without(self, item_ids: np.ndarray) -> Search:
        """The same search, which answers none of these items (int64 ids)."""
        return replace(self, index=self.index.without(item_ids), pictures=self.pictures.without(item_ids))

    def with_items(self, items: pa.Table, pictures: np.ndarray, index: ItemIndex) -> Search:
        """The same search with items added or replaced.

        Args:
            items: ITEMS rows.
            pictures: float32 (n, D), the vectors of their pictures alone, zeros without one.
            index: vectors of whole items, these included.
        """
        added = self.pictures.with_items(items["item_id"].to_numpy(), pictures, [""] * len(items))
        return replace(self, lexical=self.lexical.with_items(items), pictures=added, index=index)

    @classmethod
    def by_meaning(cls, index: ItemIndex) -> Search:
        """A search over vectors alone, for items of which neither words nor pictures are known."""
        nothing = sparse.csr_array((len(index), 0), dtype=np.float32)
        lexical = Lexical(np.sort(index.ids), nothing, [], np.zeros(len(index), np.int64))
        return cls(lexical, no_pictures(index), Shares(0, 0, -np.inf), index)

    @classmethod
    def of(cls, items: pa.Table, pictures: ItemIndex, index: ItemIndex) -> Search:
        """Of ITEMS rows, with shares that no query has chosen."""
        return cls(Lexical.of(items), pictures, Shares(), index)

    def save(self, out: Path, parents: Mapping[str, Artifact]) -> Artifact:
        """Write the words and the shares as an artifact of kind ``search``; pictures and index are others."""
        lexical = self.lexical
        with write_artifact(out, "search", {"shares": asdict(self.shares)}, parents) as folder:
            tensors = {
                "item_id": lexical.item_ids,
                "title": lexical.titles,
                "offsets": lexical.counts.indptr.astype(np.int64),
                "column": lexical.counts.indices.astype(np.int32),
                "count": lexical.counts.data,
            }
            save_file(tensors, folder / TENSORS)
            pq.write_table(pa.table({"word": pa.array(lexical.words, pa.string())}), folder / VOCABULARY)
        return open_artifact(out, "search")

    @classmethod
    def open(cls, artifact: Artifact, pictures: ItemIndex, index: ItemIndex) -> Search:
        """Open an artifact of kind "search"."""
        tensors = load_file(artifact.file(TENSORS))
        words = pq.read_table(artifact.file(VOCABULARY))["word"].to_pylist()
        shape = (len(tensors["item_id"]), len(words))
        counts = sparse.csr_array((tensors["count"], tensors["column"], tensors["offsets"]), shape=shape)
        lexical = Lexical(tensors["item_id"], counts, words, tensors["title"])
        return cls(lexical, pictures, Shares(**artifact.config["shares"]), index)


def no_pictures(index: ItemIndex) -> ItemIndex:
    """The pictures of items of which none is known."""
    return ItemIndex.build(index.ids, np.zeros_like(index.matrix))


def _meaning(judge: Judge | None, query: np.ndarray, ids: np.ndarray, items: np.ndarray) -> np.ndarray:
    """How well items answer a query by their vectors, float32 (C)."""
    if judge is None:
        return items @ query
    odds = np.asarray(judge(query, ids, items), dtype=np.float32)
    return 1 / (1 + np.exp(-odds))
