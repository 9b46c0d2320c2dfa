"""What each model version reads: one FeatureService per model, and everything that is applied together."""

from __future__ import annotations

from feast import Entity, FeatureService, FeatureView

from feature_repo.entities import ENTITIES
from feature_repo.views import EmbeddingRecord, views

SERVICES = {
    "retrieval_v1": ("user_profile", "user_events", "user_history", "item_profile", "item_embedding"),
    "relevance_v1": ("item_profile", "item_embedding", "query_embedding", "query_stats"),
    "ctr_v1": ("user_profile", "user_events", "user_history", "item_profile", "item_stats", "item_embedding"),
}
MODELS = {
    "retrieval_v1": "The two-tower model: a user's profile and history against items.",
    "relevance_v1": "How well an item answers a query, from their vectors.",
    "ctr_v1": "The click model: a user's profile and history against candidates.",
}


def definitions(embedding: EmbeddingRecord) -> dict[str, Entity | FeatureView | FeatureService]:
    """Everything ``feast apply`` registers, by name."""
    every_view = views(embedding)
    services = {
        name: FeatureService(
            name=name, features=[every_view[view] for view in members], description=MODELS[name]
        )
        for name, members in SERVICES.items()
    }
    return {**{entity.name: entity for entity in ENTITIES}, **every_view, **services}
