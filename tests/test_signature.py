"""A FeatureService is the signature of a model: its features' roles and kinds, and what is refused.

Run: pytest tests/test_signature.py
"""

import json

import pandas as pd
import pyarrow as pa
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
)
from feast.on_demand_feature_view import PandasTransformation
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType

from feature_repo.signature import Feature, Signature, features_of, signature_of
from moonstore.errors import StoreError

ENTITIES = {
    name: Entity(name=name, join_keys=[f"{name}_id"], value_type=ValueType.INT64)
    for name in ("user", "item", "query", "seller")
}
CONTEXT = RequestSource(name="context", schema=[Field(name="device_sent", dtype=String)])


def view(name="goods", entity="item", stamp="event_timestamp", push=False, **schema):
    """``schema``: field -> type, or (type, tags)."""
    pairs = {one: of if isinstance(of, tuple) else (of, {}) for one, of in schema.items()}
    fields = [Field(name=one, dtype=dtype, tags=tags) for one, (dtype, tags) in pairs.items()]
    source = FileSource(name=name, path=f"{name}.parquet", timestamp_field=stamp)
    return FeatureView(
        name=name,
        entities=[ENTITIES[entity]] if entity else [],
        schema=[*([Field(name=f"{entity}_id", dtype=Int64)] if entity else []), *fields],
        source=PushSource(name=f"{name}_push", batch_source=source) if push else source,
    )


def on_demand(name, sources, **schema):
    return OnDemandFeatureView(
        name=name,
        sources=sources,
        schema=[Field(name=one, dtype=dtype) for one, dtype in schema.items()],
        feature_transformation=PandasTransformation(udf=same, udf_string="same"),
        mode="pandas",
    )


def same(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


def signature(*views, service=None):
    return signature_of(service or FeatureService(name="model", features=list(views)), views)


def test_each_type_has_a_kind_and_a_column_type():
    everything = view(
        small=Int32, count=Int64, price=Float32, rate=Float64, brand=String, sold=Bool, seen=UnixTimestamp,
        words=Array(String), related=Array(Int64), clip=Array(Float32), wide=Array(Float64),
    )  # fmt: skip
    assert {one.name: (one.kind, one.dtype) for one in signature(everything).features} == {
        "small": ("number", pa.int32()),
        "count": ("number", pa.int64()),
        "price": ("number", pa.float32()),
        "rate": ("number", pa.float64()),
        "brand": ("category", pa.string()),
        "sold": ("boolean", pa.bool_()),
        "seen": ("timestamp", pa.timestamp("s", "UTC")),
        "words": ("categories", pa.list_(pa.string())),
        "related": ("categories", pa.list_(pa.int64())),
        "clip": ("vector", pa.list_(pa.float32())),
        "wide": ("vector", pa.list_(pa.float64())),
    }


def test_a_tag_says_what_the_type_does_not():
    tags = {"kind": "category", "hashed": "4096", "min_count": "5"}
    found = signature(view(spu=(Int64, tags), made=(Int64, {"kind": "timestamp"})))
    assert found.features == (
        Feature(
            "spu", "goods", "spu", "candidate", "category", pa.int64(), {"hashed": "4096", "min_count": "5"}
        ),
        Feature("made", "goods", "made", "candidate", "timestamp", pa.int64(), {}),
    )


def test_the_role_follows_from_the_entity():
    found = signature(view("a", "user", x=Int64), view("b", "item", y=Int64), view("c", "query", z=Int64))
    assert [(one.name, one.role) for one in found.features] == [
        ("x", "user"),
        ("y", "candidate"),
        ("z", "query"),
    ]
    assert [one.name for one in found.of("candidate")] == ["y"]


def test_an_on_demand_view_is_computed_where_what_it_reads_is_known():
    users, items = view("users", "user", cart=Int64), view(price=Float32)
    device = on_demand("device", [CONTEXT], device=String)
    since_cart = on_demand("since_cart", [users, CONTEXT], minutes=Float64)
    activity = on_demand("activity", [users], active=Bool)
    offer = on_demand("offer", [items, users, CONTEXT], cheap=Bool)
    views = [users, items, device, since_cart, activity, offer]
    found = signature(
        *views, service=FeatureService(name="model", features=[device, since_cart, activity, offer])
    )
    assert {one.name: one.role for one in found.features} == {"device": "request"} | {
        "minutes": "request",
        "active": "user",
        "cheap": "candidate",
    }


def test_a_feature_of_the_item_can_be_one_of_its_behaviours_as_well():
    found = signature(
        view(brand=(String, {"role": "candidate, behaviour"}), price=(Float32, {"role": "behaviour"}))
    )
    assert [(one.name, one.field, one.role) for one in found.features] == [
        ("brand", "brand", "candidate"),
        ("behaviour_brand", "brand", "behaviour"),
        ("behaviour_price", "price", "behaviour"),
    ]


def test_the_service_chooses_fields_of_a_view():
    goods = view(brand=String, price=Float32, push=True)
    service = FeatureService(name="model", features=[goods[["price"]]])
    assert [one.reference for one in signature(goods, service=service).features] == ["goods:price"]


def test_a_signature_survives_its_file_and_names_what_changed():
    old = signature(view(brand=String, price=(Float32, {"transform": "log"}), spu=Int64))
    assert Signature.from_json(json.loads(json.dumps(old.to_json()))) == old
    assert old.difference(old) == []
    new = signature(
        view(price=(Float32, {"transform": "standard"}), spu=(Int64, {"kind": "category"}), size=String)
    )
    assert old.difference(new) == [
        "added: size (goods:size, category of the candidate)",
        "lost: brand (goods:brand, category of the candidate)",
        "changed: price, options {'transform': 'log'} -> {'transform': 'standard'}",
        "changed: spu, kind number -> category",
    ]


def test_a_view_that_is_gone_is_refused():
    service = FeatureService(name="model", features=[view("gone", x=Int64)])
    with pytest.raises(StoreError, match="service model: expected its view gone in the store, found goods"):
        signature_of(service, [view(price=Float32)])


def test_a_field_that_is_gone_is_refused():
    service = FeatureService(name="model", features=[view(brand=String, price=Float32)])
    with pytest.raises(StoreError, match="expected the field brand in view goods, found price. Take it out"):
        signature_of(service, [view(price=Float32)])


def test_two_features_of_one_name_are_refused():
    with pytest.raises(StoreError, match="found goods:price and offers:price, both price. Rename the Field"):
        signature(view(price=Float32), view("offers", price=Float32))


@pytest.mark.parametrize("name", ["label", "time", "match_towers"])
def test_a_name_that_every_frame_has_is_refused(name):
    with pytest.raises(StoreError, match=f"goods:{name} has the name of a column that every frame has"):
        signature(view(**{name: Float32}))


def test_a_type_without_a_rule_is_refused():
    with pytest.raises(
        StoreError, match=r"goods:photo: expected a type that models read \(Int32, .*found Bytes"
    ):
        signature(view(photo=Bytes))


def test_a_source_without_time_is_refused():
    with pytest.raises(StoreError, match="view goods: expected a source with a time, found goods without"):
        signature(view(stamp="", price=Float32))


@pytest.mark.parametrize(("entity", "said"), [("seller", "found seller"), (None, "found (none|__dummy)")])
def test_a_view_that_no_role_fits_is_refused(entity, said):
    with pytest.raises(StoreError, match=f"view goods: expected one entity of user, item, query, {said}"):
        signature(view(entity=entity, price=Float32))


@pytest.mark.parametrize(
    ("dtype", "tags", "said"),
    [
        (String, {"hashd": "10"}, "goods:x: expected tags of .*, found 'hashd'. Did you mean hashed?"),
        (String, {"team": "search"}, "goods:x: expected tags of kind, role, hashed, .*, found 'team'.$"),
        (Int64, {"kind": "catgory"}, "tag kind: expected one of .*, found 'catgory'. Did you mean category?"),
        (String, {"kind": "number"}, "tag kind: expected category for its type, found number"),
        (Int64, {"role": "canddate"}, "found 'canddate'. Did you mean candidate?"),
        (Int64, {"role": "user"}, "tag role: expected candidate or behaviour, .* found user"),
        (Int64, {"transform": "logs"}, "tag transform: expected log, standard or buckets, found 'logs'"),
        (Int64, {"null": "-1"}, "tag null: expected a whole number from 0, found '-1'"),
        (String, {"null": "0"}, "tag null is for features of kind number or timestamp, not category"),
        (Int64, {"null": "0", "transform": "buckets"}, "tag null is not for buckets"),
        (String, {"min_count": "0"}, "tag min_count: expected a whole number from 1, found '0'"),
        (Float32, {"hashed": "10"}, "tag hashed is for features of kind category or categories, not number"),
    ],
)
def test_a_tag_that_nobody_knows_is_refused(dtype, tags, said):
    with pytest.raises(StoreError, match=said):
        signature(view(x=(dtype, tags)))


def test_every_field_of_a_view_can_be_looked_at_apart():
    goods = view(price=Float32)
    assert [one.name for one in features_of(goods, goods.features[0], {})] == ["price"]
