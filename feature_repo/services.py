"""One FeatureService per model, listing what it reads, and all definitions that are applied together."""

from __future__ import annotations

from feast import Entity, FeatureService, FeatureView

from feature_repo.entities import ENTITIES
from feature_repo.views import ITEM_EMBEDDING, QUERY_EMBEDDING, EmbeddingRecord, views

SERVICES = {
    "retrieval_v1": ("user_profile", "user_events", "user_history", "item_profile", ITEM_EMBEDDING),
    "relevance_v1": ("item_profile", ITEM_EMBEDDING, QUERY_EMBEDDING, "query_stats"),
    "ctr_v1": ("user_profile", "user_events", "user_history", "item_profile", "item_stats", ITEM_EMBEDDING),
}
MODELS = {
    "retrieval_v1": "The two-tower model: a user's profile and history against items.",
    "relevance_v1": "How well an item answers a query, from their vectors.",
    "ctr_v1": "The click model: a user's profile and history against candidates.",
}


def definitions(record: EmbeddingRecord) -> dict[str, Entity | FeatureView | FeatureService]:
    """Everything that ``feast apply`` registers, by name.

    Services read the vectors of the active embedding, and no vectors before the first one.
    """
    every_view = views(record)
    active = f"_v{record.active}"

    def named(member: str) -> str:
        return member + active if member in (ITEM_EMBEDDING, QUERY_EMBEDDING) else member

    services = {
        name: FeatureService(
            name=name,
            features=[every_view[named(view)] for view in members if named(view) in every_view],
            description=MODELS[name],
        )
        for name, members in SERVICES.items()
    }
    return {**{entity.name: entity for entity in ENTITIES}, **every_view, **services}
