"""One FeatureService per model: the signature of the model, all that it reads (``feature_repo.signature``).

``[[...]]`` names features of a view; without it a model reads all of them. The tag ``vectors`` adds the vectors of
the active embedding, of items, of queries, or of both: which view holds them changes with every embedding.
"""

from feast import FeatureService

from feature_repo.features import item_profile, item_stats, query_stats, user_profile

retrieval_v1 = FeatureService(
    name="retrieval_v1",
    features=[user_profile, item_profile],
    tags={"vectors": "item"},
    description="The two-tower model: a user's profile and history against items.",
)

relevance_v1 = FeatureService(
    name="relevance_v1",
    features=[],
    tags={"vectors": "item, query"},
    description="How well an item answers a query, from their vectors.",
)

ctr_v1 = FeatureService(
    name="ctr_v1",
    features=[user_profile, item_profile, item_stats, query_stats],
    tags={"vectors": "item, query"},
    description="The click model: a user's profile and history against candidates.",
)

RETRIEVAL, RELEVANCE, CTR = str(retrieval_v1.name), str(relevance_v1.name), str(ctr_v1.name)
