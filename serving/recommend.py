"""Recommendation, search and similar items: everything the service does, without HTTP.

When something is missing, a named fallback is used, reported in the answer and counted:

    unknown_user       the store has no such user            -> popular items, of the category if asked, in the
    empty_history      a known user who acted on no item        ranker's order (docs/log/ranker.md#strangers)
                       that is still there
    store_unavailable  the online store does not answer      -> retrieval from the session, else popular items
    nothing_fits       no item says any of the searched words or means something like them -> nothing
    ranker_error       the ranker raised or gave bad scores  -> retrieval order

Where fewer items are popular than were asked for, the newest ones follow: the service answers before the first event.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from dataset.records import DELETED
from dataset.shop_ids import ShopId
from encoder.encode import query_encoder
from feature_repo.frame import Frame, History
from feature_repo.ingest.item_states import UnknownItem
from feature_repo.item_matrix import ItemMatrix
from feature_repo.online import StoreUnavailable
from feature_repo.shop_ids import INT64_IDS, ShopIds
from retrieval.explore import with_rare
from retrieval.fusion import fuse_within
from retrieval.requests import Request, Requests, history_of
from retrieval.retriever import Retriever
from retrieval.search.search import Asked, Search
from retrieval.sources import CANDIDATES, PER_SOURCE, Matches, propose
from serving.alike import alike
from serving.answer import Answer, Hit, Stages
from serving.catalogue import Card, Catalogue
from serving.newest import followed_by_newest
from serving.protocols import ContentEncoder, Context, Reader, RelevanceHead, Scorer
from serving.ranked import Ranked, judging, rank
from serving.visit import newest_of, with_session

log = logging.getLogger("moon.serving")

STORE_AWAY = "the online store does not answer"  # all that a client is told; the log has the address

SEARCH_DEPTH = 100  # candidates of a search that are reranked


class UnknownCategory(LookupError):
    """A category path that no item has."""


class Recommender:
    """The whole serving path over one generation (``serving.opening``); immutable once it is open.

    Args:
        retriever: the retrieval sources.
        reader: the online store.
        ranker: scores candidates; None: nothing was there to learn from, and retrieval's order stays.
        encoder: turns searched text and pictures into vectors.
        finder: answers searches.
        relevance: tells what an item means for a search; None: the cosine does.
        catalogue: cards and pictures.
        artifacts: role -> id of every artifact used.
        now: the time of requests that give none.
        behaviours: most behaviours of a history that retrieval reads.
        per_source: candidates asked of every source.
        explore: log-odds by which items that almost nobody acted on are raised in a ranked recommendation.
        example_users: users with test requests, for the page; the shop's ids.
        generation: number of the generation; None: the artifacts are not a generation.
        ids: of the shop. Questions and answers have its ids; everything behind them has what stands for them inside.

    Attributes:
        items: the snapshot that candidates' features come from (``serving.refresh``); None: the online store.
        withdrawn: items that are in no answer: id -> state (``feature_repo.ingest.item_states``).
    """

    def __init__(
        self,
        retriever: Retriever,
        reader: Reader,
        ranker: Scorer | None,
        encoder: ContentEncoder,
        finder: Search,
        relevance: RelevanceHead | None,
        catalogue: Catalogue,
        artifacts: Mapping[str, str],
        now: Callable[[], datetime],
        behaviours: int,
        per_source: int = PER_SOURCE,
        explore: float = 0.0,
        example_users: Sequence[ShopId] = (),
        generation: int | None = None,
        ids: ShopIds = INT64_IDS,
    ) -> None:
        self.retriever, self.reader, self.ranker, self.encoder = retriever, reader, ranker, encoder
        self.finder, self.relevance, self.catalogue, self.artifacts = (
            finder,
            relevance,
            catalogue,
            dict(artifacts),
        )
        self.now, self.behaviours, self.per_source, self.explore = now, behaviours, per_source, explore
        self.example_users = tuple(example_users)
        self.generation, self.ids = generation, ids
        self.items: ItemMatrix | None = None
        self.withdrawn: Mapping[int, str] = {}
        self.counts: Counter[str] = Counter()

    def without(self, withdrawn: Mapping[int, str]) -> Recommender:
        """The same recommender, which answers with none of the withdrawn items (id -> state)."""
        if not withdrawn:
            return self
        moon = copy.copy(self)
        moon.withdrawn = dict(withdrawn)
        hidden = np.fromiter(withdrawn, np.int64, len(withdrawn))
        moon.retriever, moon.finder = self.retriever.without(hidden), self.finder.without(hidden)
        return moon

    def recommend(
        self,
        user_id: ShopId,
        k: int,
        category: str | None = None,
        time: datetime | None = None,
        session: Sequence[ShopId] = (),
        context: Context | None = None,
        explained: bool = False,
        new: bool = False,
    ) -> Answer:
        """The k items this user should see now.

        Without those of their history or of this visit, unless the shop's users take things again.

        Args:
            user_id: any id; an unknown one gets popular items.
            k: at most how many.
            category: only items under this path.
            time: as of when; default ``now``.
            session: item ids of this visit that the store may not know yet, oldest first.
            context: what on-demand views read of the request (``feature_repo.on_demand``).
            explained: whether the hits say what each feature adds to their score, if the ranker ordered them.
            new: whether to leave out what the user took before, whatever the shop's users do.

        Raises:
            UnknownCategory: no item has this category.
            DataError: a name in the context that no view reads, or a value of another type.
        """
        self._require_category(category)
        fallbacks: list[str] = []
        person, visit = self.ids.one("user_id", user_id), self.ids.find("item_id", session)
        stages, time = Stages(), time or self.now()
        with stages.measure("features"):
            user = self._read_user(person, time, fallbacks, context, visit)
        history = with_session(history_of(()), visit, time)
        if user is not None:
            history = self._retrieved(user, len(visit))
        personal = bool(self.retriever.knows(history)[0])
        if user is not None and not personal:
            fallbacks.append("empty_history" if _known(user) else "unknown_user")
        request = Request(
            user_id=person,
            history=history,
            time=time,
            category=category,
            user=user.requests if user is not None and _known(user) else None,
        )
        if new or not self.retriever.repeats:  # as in training and in every measurement
            request = replace(request, exclude=self.retriever.taken_before(Requests.of([request]), 0))
        sources = self.retriever.recommending if personal else (self.retriever.popular,)
        with stages.measure("retrieve"):
            asked, weights = max(self.per_source, k), self.retriever.weights
            ids, scores = propose(sources, Requests.of([request]), asked, weights, max(CANDIDATES, k))[0]
            order = "retrieval" if personal else "popularity"
            if len(ids) < k:
                order = order if len(ids) else "newest"
                newest, index = self.catalogue.newest, self.retriever.index
                ids, scores = followed_by_newest(ids, scores, k, request, newest, index)
            matches = Matches.of(self.retriever.sources, request, ids)
        ranked, explored = None, np.zeros(len(ids), dtype=bool)
        if user is not None and self.ranker is not None and len(ids):
            ranked = self._rank(self.ranker, request, user, ids, matches, stages, fallbacks)
            if ranked is not None:
                # The ranker's order alone, not fused with retrieval's, also where it learned from impressions:
                # recall by the log prefers the fused order, but the log knows only what the old shop chose to
                # show; by the truth, fusing costs a tenth of the clicks (docs/log/ranker.md#the-rankers-order-alone).
                # Of ratings it is of what was chosen already: there it counts as far as it was seen to help
                # (``ranker.order``).
                rare = self.retriever.popular.rare(ids)
                order = "ranker"
                scores = self.retriever.weights.order(scores, ranked.scores, ranked.ranker.order)
                ids, scores, explored = with_rare(ids, scores, rare, k, self.explore)
        parts = None
        if explained and ranked is not None:
            with stages.measure("explain"):
                parts = ranked.parts(ids[:k])
        return self._answer(ids[:k], scores[:k], matches, order, stages, fallbacks, parts, explored[:k])

    def search(
        self,
        text: str | None,
        image: bytes | None,
        k: int,
        user_id: ShopId | None = None,
        time: datetime | None = None,
    ) -> Answer:
        """The k items that answer a text, a picture or both (``retrieval.search``); none where nothing fits.

        For a known user the ranker's order of the same candidates is fused in by reciprocal ranks, so that neither
        order overrules the other; but no item goes before one that says more of the words.
        """
        fallbacks: list[str] = []
        person = None if user_id is None else self.ids.one("user_id", user_id)
        stages, time = Stages(), time or self.now()
        with stages.measure("encode"):
            asked = Asked.of(query_encoder(self.encoder), text, image)
        user = None
        if person is not None:
            with stages.measure("features"):
                user = self._read_user(person, time, fallbacks)
            if user is not None and not _known(user):
                fallbacks.append("unknown_user")
                user = None
        request = Request(
            user_id=-1 if person is None else person,
            history=self._retrieved(user) if user is not None else history_of(()),
            time=time,
            query_vector=asked.vector,
            user=user.requests if user is not None else None,
            text=text,
            image=image,
        )
        judge = None
        if self.relevance is not None:
            judge = judging(self.relevance, self.reader, time, stages, fallbacks)
        with stages.measure("retrieve"):
            found = self.finder.find(asked, max(SEARCH_DEPTH, k), judge)
            matches = Matches.of(self.retriever.sources, request, found.ids)
        order, ids, scores = "relevance", found.ids, found.scores
        if not len(ids):
            fallbacks.append("nothing_fits")
        elif user is not None and self.ranker is not None:
            ranked = self._rank(self.ranker, request, user, ids, matches, stages, fallbacks)
            if ranked is not None:
                order, (ids, scores) = "relevance+ranker", fuse_within(found.tiers, ids, ranked.scores)
        return self._answer(ids[:k], scores[:k], matches, order, stages, fallbacks)

    def similar(self, item_id: ShopId, k: int) -> Answer:
        """The k items most like this one, by cosine of their vectors; by co-occurrence if it has none.

        Raises:
            UnknownItem: the index does not hold it, or it was deleted.
        """
        item = self.ids.one("item_id", item_id)
        if self.withdrawn.get(item) == DELETED:
            raise UnknownItem(f"item {item_id} was deleted")
        if self.retriever.index.rows(np.array([item]))[0] < 0:
            raise UnknownItem(f"no item {item_id}")
        stages = Stages()
        with stages.measure("retrieve"):
            order, ids, scores = alike(self.retriever, item, k, self.now())
        return self._answer(ids, scores, None, order, stages, [])

    def history(self, user_id: ShopId) -> list[Card]:
        """What the user acted on, newest first; empty for an unknown user.

        Raises:
            StoreUnavailable: the online store does not answer.
        """
        user = self.reader.read_user(self.ids.one("user_id", user_id), self.now())
        return self.catalogue.cards(self._retrieved(user).item_id[::-1])

    def unready(self) -> list[str]:
        """What keeps the service from answering at all; empty when nothing does."""
        return [] if len(self.retriever.index) else ["the index holds no item"]

    def degraded(self) -> list[str]:
        """What makes it answer with popular items instead of personal ones; empty when nothing does."""
        try:
            for user_id in self.example_users[:1]:
                if not _known(self.reader.read_user(self.ids.one("user_id", user_id), self.now())):
                    return [f"the online store has no user {user_id}: run 'moon materialize'"]
        except StoreUnavailable as error:
            log.warning("%s", error)
            return [STORE_AWAY]
        return []

    def _require_category(self, category: str | None) -> None:
        if category is not None and not self.retriever.index.has_category(category):
            known = self.retriever.index.categories
            raise UnknownCategory(f"no item has category {category!r}; {len(known)} have, e.g. {known[:3]}")

    def _read_user(
        self,
        user_id: int,
        time: datetime,
        fallbacks: list[str],
        context: Context | None = None,
        visit: Sequence[int] = (),
    ) -> Frame | None:
        """The frame of a request, its visit at the end of the history; None where the store does not answer."""
        try:
            user = self.reader.read_user(user_id, time, context=context)
            return replace(user, history=with_session(user.history, visit, time))
        except StoreUnavailable as error:
            log.warning("a user is answered without the store: %s", error)
            fallbacks.append("store_unavailable")
            return None

    def _retrieved(self, user: Frame, visited: int = 0) -> History:
        """The history that retrieval reads, at the end of which a visit of so many items stands."""
        return newest_of(user.history, self.behaviours + visited)

    def _rank(
        self,
        ranker: Scorer,
        request: Request,
        user: Frame,
        ids: np.ndarray,
        matches: Matches,
        stages: Stages,
        fallbacks: list[str],
    ) -> Ranked | None:
        """``ids`` as the ranker scores them; None when there are none, with the reason in ``fallbacks``."""
        alike, reader = self.retriever.similarities, self.reader
        return rank(ranker, reader, alike, request, user, ids, matches, stages, fallbacks)

    def _answer(
        self,
        ids: np.ndarray,
        scores: np.ndarray,
        matches: Matches | None,
        order: str,
        stages: Stages,
        fallbacks: list[str],
        parts: Sequence[dict[str, float] | None] | None = None,
        explored: np.ndarray | None = None,
    ) -> Answer:
        with stages.measure("cards"):
            rows = [{} for _ in ids] if matches is None else matches.named(ids)
            whys: Sequence[dict[str, float] | None] = parts or [None for _ in ids]
            kept = [False for _ in ids] if explored is None else explored.tolist()
            columns = (self.catalogue.cards(ids), scores.tolist(), rows, whys, kept)
            hits = [Hit(*hit) for hit in zip(*columns, strict=True)]
        self.counts.update(dict.fromkeys(fallbacks, 1))
        self.counts.update({"answers": 1, "empty": int(not hits)})
        return Answer(hits, stages.ms, tuple(dict.fromkeys(fallbacks)), order)


def _known(user: Frame) -> bool:
    return bool(user.requests["user_found"][0].as_py())
