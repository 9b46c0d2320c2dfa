"""The feature views of items, users and queries, with types, widths and versions.

Rows are stamped with the time they became available. Windows of statistics end at the row's stamp, a midnight UTC.
``user_events`` points into the immutable event log (``feature_repo.event_log``), so that training can cut histories
of any length; ``user_history`` is its online counterpart, the last behaviours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path

from feast import Entity, FeatureView, Field
from feast.types import Array, FeastType, Float32, Int64, String

from feature_repo.entities import item, query, user
from feature_repo.sources import DATA, source
from moonstore.errors import StoreError
from run.artifacts import read_json, write_json
from run.sizes import SIZES

HISTORY = max(size.history for size in SIZES.values())  # behaviours kept online; readers may use fewer
FOREVER = timedelta(0)
# Oldest statistics used at the time of a request, in training and serving alike. A row is written only when a count
# changes, so an old row is still exact; a limit under 28 days would drop the statistics of rarely shown items.
STATISTICS_TTL = FOREVER
EMBEDDING_RECORD = "embedding.json"
ITEM_EMBEDDING, QUERY_EMBEDDING, USER_HISTORY = "item_embedding", "query_embedding", "user_history"

ITEM_STATS = {
    "shown_7d": Int64,
    "positive_7d": Int64,
    "shown_28d": Int64,
    "positive_28d": Int64,
    "shown_all": Int64,
    "positive_all": Int64,
    "rate_all": Float32,
}


@dataclass(frozen=True)
class Embedding:
    """One embedding in the store, with an item view and a query view of its own.

    Attributes:
        version: from 1, never reused.
        width: of the vectors.
        encoder_id: artifact id of the encoder.
        artifact_id: id of the embedding artifact.
    """

    version: int
    width: int
    encoder_id: str
    artifact_id: str

    @property
    def item_view(self) -> str:
        """Name of the view of the item vectors."""
        return f"{ITEM_EMBEDDING}_v{self.version}"

    @property
    def query_view(self) -> str:
        """Name of the view of the query vectors."""
        return f"{QUERY_EMBEDDING}_v{self.version}"

    @property
    def tags(self) -> dict[str, str]:
        """Tags of both views."""
        return {"encoder_id": self.encoder_id, "version": str(self.version)}


@dataclass(frozen=True)
class EmbeddingRecord:
    """The embeddings of a store; kept beside the sources because the definitions depend on them.

    Attributes:
        embeddings: oldest first.
        active: version that the feature services read; 0 before the first.
        last: the highest version ever used.
    """

    embeddings: tuple[Embedding, ...] = ()
    active: int = 0
    last: int = 0

    @classmethod
    def load(cls, repository: Path) -> EmbeddingRecord:
        """Read the record of the store at ``repository``.

        Raises:
            StoreError: there is no store, or one of a release that kept a single embedding.
        """
        path = repository / DATA / EMBEDDING_RECORD
        if not path.exists():
            raise StoreError(
                f"{path}: expected the feature store of a run, found none. Run 'moon demo' (or 'moon store')."
            )
        content = read_json(path, "Run 'moon store' again, and 'moon embed'.")
        if not isinstance(content, dict) or set(content) != {"embeddings", "active", "last"}:
            raise StoreError(
                f"{path}: expected the keys active, embeddings and last, found {sorted(content)}: damaged, or of an "
                f"earlier release. Run 'moon store' again."
            )
        try:
            embeddings = tuple(Embedding(**one) for one in content["embeddings"])
        except TypeError as error:
            raise StoreError(
                f"{path}: damaged ({error}). Run 'moon store' again, and 'moon embed'."
            ) from None
        return cls(embeddings, content["active"], content["last"])

    def save(self, repository: Path) -> None:
        """Write the record atomically."""
        write_json(repository / DATA / EMBEDDING_RECORD, asdict(self))

    def find(self, artifact_id: str) -> Embedding | None:
        """The embedding that came from this artifact, if any."""
        return next((one for one in self.embeddings if one.artifact_id == artifact_id), None)


def _view(
    name: str,
    entity: Entity,
    schema: Mapping[str, FeastType],
    says: str,
    tags: dict[str, str] | None = None,
    ttl: timedelta = FOREVER,
) -> FeatureView:
    fields = [Field(name=feature, dtype=dtype) for feature, dtype in schema.items()]
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=ttl,
        schema=[Field(name=entity.join_key, dtype=Int64), *fields],
        source=source(name),
        description=says,
        tags=tags or {},
    )


def _vectors(view: FeatureView, feature: str, width: int) -> FeatureView:
    for field in (*view.features, *view.schema):
        if field.name == feature:  # Feast checks the width of written vectors only where these are set
            field.vector_index = True
            field.vector_length = width
            field.vector_search_metric = "cosine"
    return view


def views(record: EmbeddingRecord) -> dict[str, FeatureView]:
    """All views by name; new objects at each call, because Feast modifies those it applies."""
    all_views = (
        _view(
            "item_profile",
            item,
            {
                "category": String,
                "category_top": String,
                "spu": Int64,
                "price": Float32,
                "attributes": Array(String),
                "first_seen_us": Int64,
            },
            "Catalogue data of an item, available from the time it was first seen.",
        ),
        _view(
            "item_stats",
            item,
            ITEM_STATS,
            "How often an item was shown and liked in the windows ending at the row's midnight.",
            ttl=STATISTICS_TTL,
        ),
        _view(
            "user_profile",
            user,
            {"age_band": Int64, "segment": String},
            "Profile of a user: decade of age (-1 unknown) and the source's own grouping.",
        ),
        _view(
            "user_events",
            user,
            {"position": Int64, "log_version": String},
            "Number of the user's behaviours in this version of the event log at the row's time.",
        ),
        _view(
            USER_HISTORY,
            user,
            {
                "recent_item_id": Array(Int64),
                "recent_code": Array(Int64),
                "recent_time_us": Array(Int64),
                "recent_available_us": Array(Int64),
                "recent_event_id": Array(Int64),
                "recent_position": Int64,
            },
            f"The user's last {HISTORY} behaviours, newest last, and how many there were in all.",
        ),
        _view(
            "query_stats",
            query,
            {f"query_{feature}": dtype for feature, dtype in ITEM_STATS.items()},
            "How often the query's results were shown and liked in the windows ending at the row's midnight.",
            ttl=STATISTICS_TTL,
        ),
        *chain.from_iterable(_embedding_views(one) for one in record.embeddings),
    )
    return {view.name: view for view in all_views}


def _embedding_views(embedding: Embedding) -> Iterator[FeatureView]:
    item_vectors = _view(
        embedding.item_view,
        item,
        {"vector": Array(Float32), "encoder_id": String, "version": Int64},
        "The item's picture and text as a unit vector, stamped with the end of its encoder's training data.",
        embedding.tags,
    )
    yield _vectors(item_vectors, "vector", embedding.width)
    query_vectors = _view(
        embedding.query_view,
        query,
        {"query_vector": Array(Float32), "query_encoder_id": String, "query_version": Int64},
        "The query's picture or text as a unit vector in the space of the items.",
        embedding.tags,
    )
    yield _vectors(query_vectors, "query_vector", embedding.width)
