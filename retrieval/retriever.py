"""Open the retrieval artifacts of a run folder, and the sources built from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dataset.jagged import owners
from feature_repo.frame import History
from feature_repo.signature import Signature
from feature_repo.vectors import Vectors, rows_of
from retrieval.asked import Asked
from retrieval.cooccurrence import Cooccurrence
from retrieval.fusion import EQUAL, Weights
from retrieval.index import ItemIndex, category_path
from retrieval.lifts import Lifts
from retrieval.places import Places
from retrieval.properties import Picture
from retrieval.repeats import RepeatsSource
from retrieval.requests import NO_IDS, Requests, interests
from retrieval.similarities import Categories, Similarities, Space
from retrieval.sources import (
    CooccurrenceSource,
    PopularSource,
    SimilarSource,
    Source,
    profile_source,
    query_source,
    two_tower_source,
)
from retrieval.taken import Taken
from retrieval.taste import Taste
from retrieval.taste_files import Tastes, open_taste
from retrieval.taste_source import TasteSource
from retrieval.word_vectors import WordVectors
from retrieval.words import Words
from retrieval.words_source import WordsSource
from run.artifacts import Artifact, open_artifact, require_agreement

if TYPE_CHECKING:
    from ranker.two_tower.train import TwoTower

ROLES = (
    *("embedding", "index", "cooccurrence", "words", "word_vectors", "taste", "two_tower", "two_tower_index"),
    *("lifts", "taken", "fusion"),
)


def open_retrieval(folder: Path, fitted: bool = False) -> dict[str, Artifact]:
    """The verified artifacts of a ``Retriever``, by role.

    Args:
        folder: of a run or a generation.
        fitted: those that learned from the earlier log only: they answer the ranker's training requests.

    Raises:
        ArtifactError: one is missing or damaged.
    """
    end = "_fit" if fitted else ""
    artifacts = {
        "embedding": open_artifact(folder / "embedding", "embedding"),
        "index": open_artifact(folder / "index", "index"),
        "cooccurrence": open_artifact(folder / f"cooccurrence{end}", "cooccurrence"),
    }
    for name in ("words", "word_vectors", "taste", "lifts", "taken", "fusion"):
        if (folder / name).exists():  # an earlier release had none, or the log has none
            artifacts[name] = open_artifact(folder / name, name)
    if (folder / f"two_tower{end}").exists():
        artifacts["two_tower"] = open_artifact(folder / f"two_tower{end}", "two_tower")
        artifacts["two_tower_index"] = open_artifact(folder / f"two_tower_index{end}", "index")
    return artifacts


@dataclass(frozen=True)
class Parts:
    """What the sources of a run are made of, besides the index and the vectors.

    Attributes:
        graph: the co-occurrence graph.
        towers, tower_index: the two-tower model and the items in its space; None where none was trained.
        categories: of all items, also of those that may not be returned.
        words: of all items; None: the run was made by a release that had none.
        word_vectors: makes the two-tower model's content from words; None likewise.
        taste, asked: what else the ranker reads of a user or a query and an item; None: nothing was shown to
            anybody, or the run was made by a release that had none.
        tastes: by what they read of an item, ``taste`` among them; None likewise.
        places: of all items in the two-tower model's space, also of those that may not be returned; None likewise.
        lifts: tastes of a log that says only what was taken; None: it says more, or the run was made by a release
            that had none.
        taken: what users took before, which they are not proposed again, or are; None: the run was made by a release
            that had none.
    """

    graph: Cooccurrence
    towers: TwoTower | None
    tower_index: ItemIndex | None
    categories: Categories
    words: Words | None
    word_vectors: WordVectors | None = None
    taste: Taste | None = None
    asked: Asked | None = None
    tastes: Tastes | None = None
    places: Places | None = None
    lifts: Lifts | None = None
    taken: Taken | None = None


@dataclass(frozen=True)
class Retriever:
    """The sources of one run.

    Attributes:
        index: items that may be returned, in the encoder's space.
        vectors: the embedding artifact's vectors, of every item.
        personal: the sources that read a user's history or features, in the order of the ``match_*`` columns.
        popular: the source for users about whom nothing is known.
        query: the source for a text or a picture.
        artifacts: role -> artifact of everything opened here.
        similarities: what the ranker reads of a history and a candidate, besides the scores of sources.
        parts: what the sources are made of; None: they were passed in directly.
        weights: of the sources in the order of the candidates.
    """

    index: ItemIndex
    vectors: Vectors
    personal: tuple[Source, ...]
    popular: PopularSource
    query: Source
    artifacts: dict[str, Artifact]
    similarities: Similarities = Similarities({})
    parts: Parts | None = None
    weights: Weights = EQUAL

    @property
    def recommending(self) -> tuple[Source, ...]:
        """The sources that propose candidates to a user with a history, popular items included."""
        return (*self.personal, self.popular)

    def knows(self, history: History) -> np.ndarray:
        """Whether each of R histories holds a liked item of the catalogue, bool (R).

        To who is not known only popular items are proposed. An item that may not be answered tells of its user, too.
        """
        liked = interests(history)
        whole = None if self.parts is None else self.parts.categories.item_ids
        rows = self.index.rows(liked.item_id) if whole is None else rows_of(whole, liked.item_id)
        held = rows >= 0
        return np.bincount(owners(liked.offsets)[held], minlength=len(history)) > 0

    @property
    def repeats(self) -> bool:
        """Whether it proposes what a user took before, too (``dataset.repeats``)."""
        return any(isinstance(source, RepeatsSource) for source in self.personal)

    def asking(self, requests: Requests) -> Requests:
        """The same requests, to be answered without what is gone, nor what their users took before.

        Where repeats are proposed, what they took before is answered.
        """
        own = [NO_IDS if self.repeats else self.taken_before(requests, r) for r in range(len(requests))]
        both = zip(own, self._gone(requests), strict=True)
        return replace(
            requests, exclude=tuple(np.union1d(taken, gone) if len(gone) else taken for taken, gone in both)
        )

    def _gone(self, requests: Requests) -> list[np.ndarray]:
        """Of what may be returned the items that are not to be had at each request, int64."""
        taken = None if self.parts is None else self.parts.taken
        if taken is None or not len(taken.gone_us):
            return [NO_IDS] * len(requests)
        held = self.index.contains(taken.gone_item_id)
        item_id, since_us = taken.gone_item_id[held], taken.gone_us[held]
        return [item_id[:count] for count in np.searchsorted(since_us, requests.time_us, side="right")]

    def taken_before(self, requests: Requests, r: int) -> np.ndarray:
        """The items of a request's history and all that its user took before it, int64, ascending."""
        did = requests.history.item_id[requests.history.offsets[r] : requests.history.offsets[r + 1]]
        taken = None if self.parts is None else self.parts.taken
        return np.unique(did if taken is None else np.append(did, taken.before(requests, r)))

    @property
    def sources(self) -> tuple[Source, ...]:
        """All sources; each scores every candidate in a ``match_*`` column, whichever source proposed it."""
        return (*self.personal, self.popular, self.query)

    @classmethod
    def open(
        cls,
        artifacts: Mapping[str, Artifact],
        only: np.ndarray | None = None,
        signature: Signature | None = None,
    ) -> Retriever:
        """Load what the sources are made of.

        Args:
            artifacts: by role, see ``open_retrieval``; other roles are ignored.
            only: int64 ids, the only items that may be returned; None: all of the index.
            signature: of the two-tower model's service, as the store has it now; None: not known here.

        Raises:
            ArtifactError: they were not made from one another, or the service lists other features than the
                two-tower model was trained with.
        """
        artifacts = {role: artifact for role, artifact in artifacts.items() if role in ROLES}
        placed = (
            [("two_tower_index", "two_tower"), ("two_tower", "word_vectors")]
            if "two_tower" in artifacts
            else []
        )
        require_agreement(artifacts, [("index", "embedding"), *placed])
        vectors = Vectors.open(artifacts["embedding"])
        whole = ItemIndex.open(artifacts["index"])
        index = whole.only(only)
        graph = Cooccurrence.open(artifacts["cooccurrence"])
        words = Words.open(artifacts["words"]) if "words" in artifacts else None
        word_vectors = WordVectors.open(artifacts["word_vectors"]) if "word_vectors" in artifacts else None
        towers, tower_index, places = None, None, None
        if "two_tower" in artifacts:
            from ranker.two_tower.train import TwoTower

            content = None if words is None or word_vectors is None else word_vectors.vectors(words)
            towers = TwoTower.open(artifacts["two_tower"], content, signature)
            places = Places(ItemIndex.open(artifacts["two_tower_index"]))
            tower_index = places.index.only(only)
        tastes, asked = None, None
        if words is not None and "taste" in artifacts:
            tastes, queries = open_taste(artifacts["taste"])
            asked = Asked(words, tastes.whole.properties, queries)
        parts = Parts(
            graph=graph,
            towers=towers,
            tower_index=tower_index,
            categories=Categories.of(whole),
            words=words,
            word_vectors=word_vectors,
            taste=None if tastes is None else tastes.whole,
            asked=asked,
            tastes=tastes,
            places=places,
            lifts=Lifts.open(artifacts["lifts"]) if "lifts" in artifacts else None,
            taken=Taken.open(artifacts["taken"]) if "taken" in artifacts else None,
        )
        return cls._of(index, vectors, parts, artifacts)

    @classmethod
    def _of(
        cls, index: ItemIndex, vectors: Vectors, parts: Parts, artifacts: dict[str, Artifact]
    ) -> Retriever:
        personal: list[Source] = [
            SimilarSource(index, vectors),
            profile_source(index, vectors),
            CooccurrenceSource(parts.graph, index),
        ]
        if parts.words is not None:
            personal.append(WordsSource(parts.words, index))
        if parts.towers is not None and parts.tower_index is not None:
            personal.append(two_tower_source(parts.towers, parts.tower_index))
        if parts.taste is not None:
            personal.append(TasteSource(parts.taste, index))
        if parts.taken is not None and parts.taken.half_life is not None:
            personal.append(RepeatsSource(parts.taken, parts.taken.half_life, index))
        graph = parts.graph
        popular = PopularSource(graph.item_ids, graph.popularity, index, graph.trend)
        spaces: dict[str, Space] = {"category": parts.categories, "co_occurrence": parts.graph}
        if parts.words is not None:
            spaces["words"] = parts.words
        if parts.places is not None:
            spaces["two_tower"] = parts.places
        beside = (parts.taste, parts.lifts, parts.asked, parts.places)
        similarities = Similarities(spaces, tuple(one for one in beside if one is not None))
        weights = Weights.open(artifacts["fusion"]) if "fusion" in artifacts else EQUAL
        return cls(
            index=index,
            vectors=vectors,
            personal=tuple(personal),
            popular=popular,
            query=query_source(index),
            artifacts=artifacts,
            similarities=similarities,
            parts=parts,
            weights=weights,
        )

    def with_vectors(self, vectors: Vectors) -> Retriever:
        """A retriever that reads these vectors of the same embedding; the items it returns are the same."""
        assert self.parts is not None
        return self._of(self.index, vectors, self.parts, self.artifacts)

    def without_content(self) -> Retriever:
        """A retriever whose columns for the ranker read nothing that an item says or shows: for the ID-only control.

        The two-tower model, which reads words, is left out as well. The catalogue is that of the artifacts; items
        added since are unknown to its tastes.
        """
        assert self.parts is not None
        unread = replace(self.parts, words=None, asked=None, towers=None, tower_index=None, places=None)
        tastes = self.parts.tastes
        parts = replace(unread, taste=None if tastes is None else tastes.blind)
        return self._of(self.index, self.vectors, parts, self.artifacts)

    def without_vectors(self) -> Retriever:
        """A retriever whose columns for the ranker read no vectors; itself where none of them does."""
        tastes = None if self.parts is None else self.parts.tastes
        if self.parts is None or tastes is None or tastes.plain is tastes.whole:
            return self
        return self._of(self.index, self.vectors, replace(self.parts, taste=tastes.plain), self.artifacts)

    def without(self, item_ids: np.ndarray) -> Retriever:
        """A retriever none of whose sources answers these items (int64 ids); others take their places.

        Their vectors stay: histories may hold them. Its slow twin is ``open`` with all other items as ``only``.
        """
        assert self.parts is not None
        parts = self.parts
        if parts.tower_index is not None:
            parts = replace(parts, tower_index=parts.tower_index.without(item_ids))
        return self._of(self.index.without(item_ids), self.vectors, parts, self.artifacts)

    def with_items(self, items: pa.Table, rows: pa.Table, picture: Picture) -> Retriever:
        """A retriever with these items added or replaced.

        Args:
            items: their features, as in ``Frame.candidates``; their vectors are in ``vectors``.
            rows: the same items in the same order, ITEMS rows.
            picture: gives that of an ``image_id``; None: there is none.
        """
        categories = [category_path(path) for path in rows["category"].to_pylist()]
        assert self.parts is not None
        ids, parts = items["item_id"].to_numpy(), self.parts
        index = self.index.with_items(ids, self.vectors.gather(ids)[0], categories)
        words = None if parts.words is None else parts.words.with_items(rows)
        parts = replace(parts, categories=Categories.of(index), words=words)
        if parts.taste is not None and parts.asked is not None and words is not None:
            taste = parts.taste.with_items(rows, picture, self.vectors.gather(ids)[0])
            parts = replace(parts, taste=taste, asked=parts.asked.with_items(words, taste.properties))
        if parts.lifts is not None:
            parts = replace(parts, lifts=parts.lifts.with_items(rows, picture))
        if parts.towers is not None and parts.tower_index is not None:
            towers = parts.towers
            if words is not None and parts.word_vectors is not None:
                towers = towers.with_content(parts.word_vectors.vectors(words))
            tower_index = parts.tower_index.with_items(ids, towers.item_vectors(items), categories)
            parts = replace(parts, towers=towers, tower_index=tower_index, places=Places(tower_index))
        return self._of(index, self.vectors, parts, self.artifacts)
