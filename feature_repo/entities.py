"""The entities that features describe."""

from feast import Entity, ValueType

user = Entity(
    name="user", join_keys=["user_id"], value_type=ValueType.INT64, description="A person who uses the shop."
)
item = Entity(
    name="item",
    join_keys=["item_id"],
    value_type=ValueType.INT64,
    description="An entry of the catalogue that can be recommended.",
)
query = Entity(
    name="query",
    join_keys=["query_id"],
    value_type=ValueType.INT64,
    description="A search, by text or picture.",
)
ENTITIES = (user, item, query)
