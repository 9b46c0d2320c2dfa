"""The embeddings of a store and their feature views, one of items and one of queries for each version.

Which embeddings a store has is written beside its sources, so these views are made from that record; all other views
are the plain objects of ``feature_repo.features``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from feast import Entity, FeatureView, Field
from feast.types import Array, Float32, Int64, String

from feature_repo.entities import item, query
from feature_repo.features import FOREVER
from feature_repo.sources import DATA, source
from moonstore.errors import StoreError
from moonstore.files import write_json
from run.artifacts import read_json
from run.sizes import SIZES

HISTORY = max(size.history for size in SIZES.values())  # behaviours kept online; readers may use fewer
EMBEDDING_RECORD = "embedding.json"
ITEM_EMBEDDING, QUERY_EMBEDDING, USER_HISTORY = "item_embedding", "query_embedding", "user_history"


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


def embedding_views(embedding: Embedding) -> dict[str, FeatureView]:
    """The view of the item vectors and that of the query vectors, by name."""
    items = _vectors(
        embedding,
        embedding.item_view,
        item,
        "",
        "The item's picture and text as a unit vector, stamped with the end of its encoder's training data.",
    )
    queries = _vectors(
        embedding,
        embedding.query_view,
        query,
        "query_",
        "The query's picture or text as a unit vector in the space of the items.",
    )
    return {str(view.name): view for view in (items, queries)}


def _vectors(embedding: Embedding, name: str, entity: Entity, prefix: str, says: str) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=FOREVER,
        schema=[
            Field(name=entity.join_key, dtype=Int64),
            Field(
                name=f"{prefix}vector",
                dtype=Array(Float32),
                vector_index=True,  # Feast checks the width of written vectors only where these three are set
                vector_length=embedding.width,
                vector_search_metric="cosine",
            ),
            Field(name=f"{prefix}encoder_id", dtype=String),
            Field(name=f"{prefix}version", dtype=Int64),
        ],
        source=source(name),
        description=says,
        tags=embedding.tags,
    )
