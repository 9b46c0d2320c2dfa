"""What features are about."""

from feast import Entity, ValueType

user = Entity(
    name="user", join_keys=["user_id"], value_type=ValueType.INT64, description="Somebody who shops."
)
item = Entity(
    name="item", join_keys=["item_id"], value_type=ValueType.INT64, description="Something for sale."
)
query = Entity(
    name="query",
    join_keys=["query_id"],
    value_type=ValueType.INT64,
    description="A search, by text or picture.",
)
ENTITIES = (user, item, query)
